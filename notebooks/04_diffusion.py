# %% [markdown]
# # 04 · Diffusion
#
# To spoil a clip is easy: pour noise over it. Done in a thousand tiny steps, each step is so small that it could be
# undone, if only somebody could say which part of the picture is noise. In this chapter you spoil clips, exactly and
# by formula, and then you train a network that says which part is noise. That is the whole idea of a diffusion model.
# Chapter 06 will walk the thousand steps backwards and arrive at clips that never existed.

# %% [markdown]
# ## What you will build
#
# The next cells use the finished code. A clip plays, and while it plays it dissolves: each frame has a later time
# than the one before it, from `t = 0`, which is clean, to `t = 1000`, which is noise. What dissolves are its latents,
# 8 x 8 cells a frame. You see them twice: on the left as they are, with three of their four channels as red, green and
# blue; on the right through the decoder.

# %%
import random
import tempfile

import minit2v
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from minit2v.course import figures
from minit2v.diffusion import draw_noise
from minit2v.video import to_uint8
from minit2v.world import Scene, Thing, render, sample_scene

pipe = minit2v.load()
autoencoder = pipe.autoencoder


@torch.no_grad()
def encode(clips):
    """(B, F, H, W, 3) uint8 -> latents (B, 4, F, h, w)."""
    return autoencoder.encode(rearrange(clips, "b f h w c -> b c f h w").float() / 127.5 - 1)


@torch.no_grad()
def decode(latents):
    """Latents (B, 4, F, h, w) -> (B, F, H, W, 3) uint8."""
    return to_uint8(autoencoder.decode(latents))


def raw(latents):
    """Latents as pictures without the decoder: (B, 4, F, h, w) -> (B, F, 8h, 8w, 3) uint8, each cell a square."""
    colours = to_uint8(latents[:, [0, 2, 3]] / 3)                                # -3 is dark, 3 is bright
    return colours.repeat_interleave(8, 2).repeat_interleave(8, 3)

# %%
scene = Scene((Thing("yellow", "star", "orbit", size="big", x=0.5, y=0.5, heading=(1.0, 0.0)),), ground="black")
film = encode(render([scene]))                                                   # (1, 4, 16, 8, 8)
times = torch.linspace(0, 1000, 16).long()[None]                                 # (1, 16): one time a frame
eps = draw_noise(film.shape, Generator().manual_seed(0))
dissolving = pipe.process.noise(film, times, eps)
figures.play([raw(dissolving)[0], decode(dissolving)[0]], fps=4,
             alt="Left, coarse cells show a star in an orbit and become confetti. Right, the star frays and is lost.")

# %% [markdown]
# **You need** chapter 02 for what latents are, and a little probability: mean, variance, the bell curve. Each formula
# is checked by a cell.
#
# **It takes** about 75 minutes to read and play with. All cells together run in one or two minutes; half of that is
# the training of two small networks.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | share of the noisy latents' variance that is still clip: after one step, after all | 0.99915, 0.00466 |
# | the time at which there is as much noise as clip | 355 |
# | an error of 1 in the predicted noise becomes in the guess of the clip, at the noisiest time | 14.6 |
# | the same for an error of 1 in the predicted velocity | 0.998 |
# | parameters of the small denoiser | 119,668 |
# | error of a network that has not learnt anything | 1 |

# %% [markdown]
# ## 1 · One small step
#
# We shall noise *latents*, since that is where the big model works too. Here are two frames each of eleven hundred
# random scenes, encoded as in chapter 02. Two thousand frames are to train on, and two hundred to test with.

# %%
rng = random.Random(4)
scenes = [sample_scene(rng) for _ in range(1100)]
clips = torch.cat([encode(render(scenes[i:i + 50], num_frames=2, fps=1)) for i in range(0, 1100, 50)])
frames = rearrange(clips, "b c f h w -> (b f) c h w")        # (2200, 4, 8, 8)
train, test = frames[:2000], frames[2000:]

# %% tags=["nbval-check-output"]
print(tuple(train.shape), tuple(test.shape), f"size {frames.square().mean().sqrt():.1f}")
print("of each channel:", " ".join(f"{size:.1f}" for size in frames.square().mean((0, 2, 3)).sqrt()))

# %% [markdown]
# By *size* we mean the root of the mean square. The autoencoder's scaling factor has made it 1, and that will matter:
# the noise we add has size 1 as well. (One channel is empty. The autoencoder was free to use four, and found three
# enough; those three are what you saw as red, green and blue.)
#
# How do you add a little noise to x? The obvious way is `x + a little noise`. Do that a thousand times and x grows
# and grows. So each step also *shrinks* x, by just as much as keeps the size (Ho et al. 2020, *Denoising Diffusion
# Probabilistic Models*; everybody says DDPM):
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; z, \qquad z \sim N(0, 1)$$
#
# Independent things add up in their *variances*, the squares of their sizes. The first part has the variance
# $1-\beta$, the noise has $\beta$, and together they make 1. The roots are there because we multiply numbers and not
# variances: keep this in mind, for it is one of the mistakes at the end of the chapter.

# %%
def one_step(x, beta, generator):
    """From time t - 1 to t: a little less of x, a little noise (DDPM eq. 2)."""
    return (1 - beta).sqrt() * x + beta.sqrt() * draw_noise(x.shape, generator)

# %% [markdown]
# $\beta$ is the share of noise that a step adds, and it need not be the same in all steps. The original starts with
# less than a thousandth and ends with a good hundredth; in between, the *root* of $\beta$ grows evenly. We take its
# thousand numbers, and section 3 will ask why.

# %%
betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2                  # (1000,): step t adds betas[t - 1]
figures.plot({"beta": betas}, x=torch.arange(1, 1001), xlabel="step t", ylabel="share of noise",
             alt="Beta rises from 0.00085 to 0.012 over a thousand steps, a little faster towards the end.")

# %% [markdown]
# Now walk. Sixty-four frames take the thousand steps, once as the formula says, once without the shrinking.

# %%
generator = Generator().manual_seed(0)
walked = added = train[:64]
sizes = {"shrink and add": [], "only add": []}
for beta in betas:
    walked = one_step(walked, beta, generator)
    added = added + beta.sqrt() * draw_noise(added.shape, generator)
    sizes["shrink and add"].append(walked.square().mean().sqrt())
    sizes["only add"].append(added.square().mean().sqrt())

figures.plot(sizes, xlabel="step t", ylabel="size", alt="Shrink and add stays at 1, only add rises to about 2.5.")

# %% tags=["nbval-check-output"]
print(", ".join(f"{name}: {values[-1]:.1f}" for name, values in sizes.items()))

# %% [markdown]
# A network does not like inputs that are small at one time and large at another, so size 1 throughout is a gift.
# This is what *variance preserving* means in papers.
#
# And what does it look like? One frame on its way, decoded every so often:

# %%
def pictures(latents, look=decode):
    """Latents of single frames (N, 4, h, w) -> (N, H, W, 3) uint8, to be laid out as a strip."""
    return look(rearrange(latents, "n c h w -> 1 c n h w"))[0]

# %%
x = film[:, :, 3]                                            # one frame of the star: (1, 4, 8, 8)
generator, stations = Generator().manual_seed(1), [x]
for t in range(1, 1001):
    x = one_step(x, betas[t - 1], generator)
    if t in (50, 200, 350, 500, 700, 1000):
        stations.append(x)

stations = torch.cat(stations)                               # (7, 4, 8, 8)
figures.strip([pictures(stations, raw), pictures(stations)], scale=2,
              titles=["latents after 0, 50, 200, 350, 500, 700, 1000 steps", "the same, decoded"],
              alt="Above, cells that show a star turn into confetti. Below, the star frays, changes colour, is gone.")

# %% [markdown]
# The upper row is what the network will see. The lower row is for us, and take it with a pinch of salt: the decoder
# knows how frames look, and cleans up a little noise by itself; what it makes of much noise is its own affair.

# %% [markdown]
# ## 2 · A thousand steps in one jump
#
# To train a network we shall need frames at all times, millions of them. A thousand steps for each would be hopeless.
# Luckily, two steps are one larger step. Put the first into the second:
#
# $$x_2 = \sqrt{1-\beta_2}\,\sqrt{1-\beta_1}\; x_0 \;+\; \underbrace{\sqrt{1-\beta_2}\,\sqrt{\beta_1}\; z_1 +
# \sqrt{\beta_2}\; z_2}_{\text{noise}}$$
#
# What stands before $x_0$ is a product. And the noise is a sum of two bell curves, which is a bell curve again. Its
# variance is $(1-\beta_2)\,\beta_1 + \beta_2$, and that is $1 - (1-\beta_1)(1-\beta_2)$: whatever the clip has lost.
# Go on like this, and with
#
# $$\bar\alpha_t = (1-\beta_1)(1-\beta_2)\cdots(1-\beta_t)$$
#
# any number of steps is one jump:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \varepsilon, \qquad \varepsilon \sim N(0, 1)$$
#
# $\bar\alpha_t$, "alpha-bar", is the share of the variance that is still clip. In code it is a *cumulative product*,
# and everybody calls it `alphas_cumprod`. We put a 1 in front, so that `alphas_cumprod[t]` is what is left after t
# steps, and after none it is everything.

# %% tags=["nbval-check-output"]
alphas_cumprod = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])              # (1001,): t = 0 .. 1000
for t in (0, 1, 500, 1000):
    print(f"t = {t:4}: {alphas_cumprod[t]:.5f}")

# %%
def jump(x0, t, generator):
    """From time 0 to t at once (DDPM eq. 4)."""
    noise = draw_noise(x0.shape, generator)
    return alphas_cumprod[t].sqrt() * x0 + (1 - alphas_cumprod[t]).sqrt() * noise

# %% [markdown]
# ### Do both arrive at the same place?
#
# Not at the same numbers, since the noise is drawn anew. But at the same *distribution*: had you a million results of
# each kind in two boxes, you could not tell which box is which. So let us fill two boxes. We take a single latent
# number, 1.5, and twenty thousand copies of it. One lot walks, the other jumps.

# %%
copies, generator = torch.full((20_000,), 1.5), Generator().manual_seed(2)
walked, walks = copies, {}
for t in range(1, 1001):
    walked = one_step(walked, betas[t - 1], generator)
    if t in (100, 400, 1000):
        walks[t] = walked

jumps = {t: jump(copies, t, generator) for t in (100, 400, 1000)}

# %%
def density(values):
    """Histogram of values between -4 and 4 in steps of 0.1, scaled to area 1: (80,)."""
    return torch.histc(values, bins=80, min=-4, max=4) / len(values) / 0.1


centres = torch.linspace(-3.95, 3.95, 80)
lines = {f"{name}, t = {t}": density(box[t]) for t in (100, 400) for name, box in (("walk", walks), ("jump", jumps))}
figures.plot(lines, x=centres, xlabel="where 1.5 has got to", ylabel="density",
             alt="Two bell curves, each drawn twice: a narrow one around 1.4 for t = 100, a wide one near 1 for 400.")

# %% tags=["nbval-check-output"]
for t in jumps:
    mean, std = alphas_cumprod[t].sqrt() * 1.5, (1 - alphas_cumprod[t]).sqrt()
    close = all(abs(box.mean() - mean) < 0.03 and abs(box.std() - std) < 0.03 for box in (walks[t], jumps[t]))
    print(f"t = {t:4}: formula {mean:.2f} ± {std:.2f}, walk and jump agree: {close}")
    assert close

# %% [markdown]
# So from now on we only jump. The thousand steps have done their work: they gave us the formula. (They will return in
# chapter 06, on the way back, where no such short cut exists.)

# %% [markdown]
# ## 3 · The schedule: when is the clip lost?
#
# Two numbers say everything about a time: how much clip, $\alpha_t = \sqrt{\bar\alpha_t}$, and how much noise,
# $\sigma_t = \sqrt{1-\bar\alpha_t}$. (Beware when you open the DDPM paper: its $\alpha_t$, without a bar, is
# $1-\beta_t$. Ours is the root of its $\bar\alpha_t$.)

# %%
alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
figures.plot({"alpha: clip": alpha, "sigma: noise": sigma}, xlabel="t", ylabel="factor",
             alt="Alpha falls from 1 to 0.07, sigma rises from 0 to 1; they cross a little after a third of the way.")

# %% [markdown]
# Their squares' ratio is the *signal-to-noise ratio*, $\mathrm{SNR}(t) = \alpha_t^2 / \sigma_t^2$. It is 1 where the
# curves cross. Its logarithm is the best picture of a schedule: where the curve is steep, a few steps destroy much;
# where it is flat, nothing happens.
#
# Here it is for the original's betas, and for two others. The DDPM paper let beta itself grow evenly, from 0.0001 to
# 0.02. And in between lies a schedule with the original's ends, but straight.

# %%
schedules = {"root of beta straight (ours)": betas,
             "beta straight, same ends": torch.linspace(0.00085, 0.012, 1000),
             "beta straight, DDPM's ends": torch.linspace(0.0001, 0.02, 1000)}
left = {name: (1 - values.double()).cumprod(0) for name, values in schedules.items()}     # alpha-bar, t = 1 .. 1000
figures.plot({name: (a / (1 - a)).log10() for name, a in left.items()}, x=torch.arange(1, 1001), xlabel="t",
             ylabel="log10 of SNR",
             alt="Three falling curves; DDPM's starts highest, at 4, and ends lowest, at -4.4; ours ends at -2.3.")

# %% tags=["nbval-check-output"]
for name, a in left.items():
    useless = (a < 0.001).sum().item()
    print(f"{name:29} as much noise as clip at t = {(a < 0.5).int().argmax() + 1}, "
          f"left at the end {a[-1]:.5f}, below 0.001 {useless} times")

assert (left["root of beta straight (ours)"] < 0.5).int().argmax() + 1 == 355

# %% [markdown]
# With DDPM's betas more than one time in six is noise and nothing else. A network that is trained there learns
# nothing, and a sampler that walks there gets nowhere. (Nichol & Dhariwal noticed it in 2021, and drew a better curve
# from a cosine.) The original's schedule spends its steps where there is still something to see. Side by side, with
# the same noise:

# %%
shown = torch.tensor([50, 200, 350, 500, 700, 1000])
x, noise = film[:, :, 3], draw_noise((6, 4, 8, 8), Generator().manual_seed(3))
rows = []
for name in ("root of beta straight (ours)", "beta straight, DDPM's ends"):
    a = left[name][shown - 1].float()[:, None, None, None]                       # (6, 1, 1, 1)
    rows.append(pictures(a.sqrt() * x + (1 - a).sqrt() * noise))

figures.strip(rows, titles=["ours: t = 50, 200, 350, 500, 700, 1000", "DDPM's, the same times"],
              alt="The same star noised by two schedules; below, DDPM's loses it earlier.")

# %% [markdown]
# The price of the gentle schedule stands at its end: 0.00466 is little, but it is not nothing. The last part of this
# chapter shows what that does.

# %% [markdown]
# ## 4 · How to count time
#
# In this course `t = 0` is clean, and `t = 1` to `t = 1000` are noisy. DDPM's paper counts in the same way, and it
# has a pleasant consequence: a frame at t = 0 is *exactly* itself. But arrays count from 0. So the released network,
# and most code you will read, has a list of 1000 values in which place 0 is the *first noisy* level. What we call t,
# they call t - 1.

# %%
from minit2v.config import DiffusionConfig
from minit2v.diffusion import Process, Time, broadcast

process = Process(DiffusionConfig())

# %% tags=["nbval-check-output"]
for t in (0, 1, 2, 1000):
    shown_as = process.network_times(t, frames[:1]).item()
    print(f"our t = {t:4}: alpha-bar {process.alphas_cumprod[t]:.5f}, the network is shown {shown_as}")

assert [round(process.alphas_cumprod[t].item(), 5) for t in (1, 1000)] == [0.99915, 0.00466]

# %% [markdown]
# A clean frame has no number in the network's counting; it is shown as the least noisy one. The package translates in
# one place, `network_times`, and nowhere else. An off-by-one that lives in one place can be found.
#
# `Process` is the package's class for all of this. You have written its schedule already; here is its constructor.
# (Quoted alone, a method still has its `self`.)

# %%
# from minit2v.diffusion import Process.__init__

# %% [markdown]
# It keeps the schedule in float64, as the original does, since a product of a thousand factors collects rounding
# errors. `process.alpha(t)`, `process.sigma(t)` and `process.snr(t)` look up what section 3 plotted. Our jump is its
# method `noise`:

# %%
# from minit2v.diffusion import Process.noise

# %% [markdown]
# `broadcast` shapes the factors so that they multiply latents: one time for all, one time a sample (B,), or one time
# a frame (B, F). The last is how the clip at the top dissolved while it played.

# %% tags=["nbval-check-output"]
t, eps = torch.tensor([0, 10, 500, 1000]), draw_noise((4, 4, 8, 8), Generator().manual_seed(0))
x = process.noise(frames[:4], t, eps)
ours = torch.stack([alpha[t] * x0 + sigma[t] * noise for t, x0, noise in zip(t, frames, eps)])
print(torch.allclose(x, ours, atol=1e-4), "- clean stays clean, bit for bit:", torch.equal(x[0], frames[0]))

# %% [markdown]
# ## 5 · The way back, if we knew the clip
#
# Suppose somebody stands at $x_t$, and we know both where she stands and where she started, $x_0$. Where was she at an
# earlier time $s$? She has come from $x_0$, so she was probably not far from it. She has arrived at $x_t$, so probably
# not far from that either. Somewhere in between, then, and not exactly known: a bell curve. It is called the
# *posterior*, what is still possible once something is known.
#
# Before the formula, the experiment. Many walkers start at 1.5; we note where each is at s = 200 and at t = 400. Then
# we keep only those that arrived near 0, and look where *they* were at s.

# %%
s, t, generator = 200, 400, Generator().manual_seed(4)
k = (alphas_cumprod[t] / alphas_cumprod[s]).sqrt()           # what the steps from s to t keep of x_s
b = 1 - k ** 2                                               # and the variance of the noise that they add
at_s = jump(torch.full((400_000,), 1.5), s, generator)
at_t = k * at_s + b.sqrt() * draw_noise(at_s.shape, generator)
chosen = at_s[at_t.abs() < 0.05]                             # those that arrived near 0

# %% [markdown]
# ### Two witnesses
#
# Now the formula. There are two witnesses to where such a walker was at s, and neither is exact:
#
# - **Her start.** From $x_0$ to time s is one jump. So she was at $\alpha_s x_0$, give or take $\sigma_s$.
# - **Her end.** From s to t is one jump, too, $x_t = k\,x_s + \sqrt{b}\,z$. Read it backwards: she was at $x_t / k$,
#   give or take $\sqrt{b} / k$.
#
# Each witness draws a bell curve of where she may have been. Call their means $m_1, m_2$ and their variances
# $V_1, V_2$. Both are to be believed, so the curves are multiplied, and then their exponents add up:
#
# $$\frac{(x_s - m_1)^2}{V_1} + \frac{(x_s - m_2)^2}{V_2}
#   = x_s^2 \left( \frac{1}{V_1} + \frac{1}{V_2} \right)
#   - 2 x_s \left( \frac{m_1}{V_1} + \frac{m_2}{V_2} \right) + \ldots$$
#
# That is a parabola again, so the product is a bell again. Its mean $m$ and its variance $V$ stand in the brackets, for
# $(x_s - m)^2 / V = x_s^2 / V - 2 x_s\, m / V + \ldots$:
#
# $$\frac{1}{V} = \frac{1}{V_1} + \frac{1}{V_2}, \qquad m = V \left( \frac{m_1}{V_1} + \frac{m_2}{V_2} \right)$$
#
# In words: it is the mean of the two, each weighted by *one over its variance*. In numbers, for our walkers:

# %%
def bell(mean, variance):
    """A bell curve over `centres`: (80,)."""
    return torch.exp(-0.5 * (centres - mean) ** 2 / variance) / (2 * torch.pi * variance).sqrt()


m1, V1 = alphas_cumprod[s].sqrt() * 1.5, 1 - alphas_cumprod[s]                   # her start: x_0 = 1.5
m2, V2 = 0.0 / k, b / k ** 2                                                     # her end: x_t = 0
V = 1 / (1 / V1 + 1 / V2)
m = V * (m1 / V1 + m2 / V2)
figures.plot({"her start says": bell(m1, V1), "her end says": bell(m2, V2), "both together": bell(m, V),
              "measured": density(chosen)}, x=centres, xlabel="x at time s", ylabel="density",
             alt="A bell around 1.3 and a flat, wide one around 0. Between them, nearer to the first, a narrower bell: "
                 "both together. The measured curve lies on it.")

# %% [markdown]
# What remains is to put the letters in. For the variance,
#
# $$\frac{1}{V} = \frac{1}{\sigma_s^2} + \frac{k^2}{b} = \frac{b + k^2 \sigma_s^2}{b\, \sigma_s^2}
#   = \frac{\sigma_t^2}{b\, \sigma_s^2}$$
#
# since all noise at time t is what was there at s, made smaller by $k$, and what was added:
# $\sigma_t^2 = k^2 \sigma_s^2 + b$. Then $m = V\,(\alpha_s x_0 / \sigma_s^2 + k\,x_t / b)$ becomes
#
# $$m = \frac{\alpha_s\, b}{\sigma_t^2}\, x_0 + \frac{k\, \sigma_s^2}{\sigma_t^2}\, x_t,
#   \qquad \sqrt{V} = \frac{\sqrt{b}\, \sigma_s}{\sigma_t}$$
#
# DDPM has it for one step (eq. 6 and 7; there $k^2 = 1 - \beta_t$ and $b = \beta_t$). The package's function allows a
# stride of any length, which chapter 06 will need; it lives with the samplers. It answers with the three factors: how
# much of $x_0$ and how much of $x_t$ make the mean, and how far to stray from it. Its `kept` is our $k$, its `added` is
# our $b$.

# %%
# from minit2v.samplers import posterior

# %% tags=["nbval-check-output"]
toward_x0, keep_x, std = posterior(process, t, s)
mean = toward_x0 * 1.5 + keep_x * 0.0                        # x_0 = 1.5, x_t = 0
print(f"two witnesses {m:.2f} ± {V.sqrt():.2f}, the package {mean:.2f} ± {std:.2f}; measured within 0.02:",
      bool(abs(chosen.mean() - mean) < 0.02 and abs(chosen.std() - std) < 0.02))
assert abs(chosen.mean() - mean) < 0.02 and abs(chosen.std() - std) < 0.02 and abs(m - mean) < 1e-4

# %% [markdown]
# This is a machine that goes back in time: from $x_t$ to $x_s$, from there to an earlier one, and at last to $x_0$.
# There is only one thing wrong with it. It wants to be told $x_0$, and if we had that, we were done.
#
# So we let a network *guess* $x_0$. Everything that follows is about this guess.

# %% [markdown]
# ## 6 · What shall the network say?
#
# It sees $x_t$ and $t$. It could answer with the clip, $x_0$. But look at the formula once more,
#
# $$x_t = \alpha_t x_0 + \sigma_t \varepsilon$$
#
# If you know $x_t$, $\alpha_t$ and $\sigma_t$, then $x_0$ and $\varepsilon$ are two names for one unknown: tell me one
# and I compute the other. So a network may as well predict the **noise**; DDPM does, and so does the original. A third
# choice is a mixture of both, the **velocity** (Salimans & Ho 2022):
#
# $$v_t = \alpha_t\, \varepsilon - \sigma_t\, x_0$$
#
# Since $\alpha_t^2 + \sigma_t^2 = 1$, the pair $(\alpha_t, \sigma_t)$ lies on a circle. Write $\alpha_t =
# \cos\varphi$ and $\sigma_t = \sin\varphi$. Then $x_t = \cos\varphi\, x_0 + \sin\varphi\, \varepsilon$, and its
# derivative by the angle is $-\sin\varphi\, x_0 + \cos\varphi\, \varepsilon$, which is $v_t$: the direction in which
# time turns $x_t$ from the clip towards the noise. Hence the name.

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(3.6, 3.4), layout="constrained")
axes = figure.subplots()
axes.plot(alpha, sigma, color=figures.PALETTE["blue"])
for t in (50, 250, 500, 1000):
    axes.annotate("", (alpha[t] - 0.3 * sigma[t], sigma[t] + 0.3 * alpha[t]), (alpha[t], sigma[t]),
                  arrowprops={"arrowstyle": "->", "color": figures.PALETTE["red"]})
    axes.text(alpha[t] - 0.05, sigma[t] - 0.05, f"t = {t}", ha="right", va="top", fontsize=8)
axes.set(xlabel="how much clip, alpha", ylabel="how much noise, sigma", xlim=(-0.3, 1.15), ylim=(0, 1.25),
         aspect="equal")
figures.picture(figure, "A quarter circle from pure clip to almost pure noise, with arrows along it: the velocity.")

# %% [markdown]
# Early on, x is nearly the clip and the arrow points towards the noise. At the end x is nearly the noise, and the
# arrow points *away from the clip*: there, velocity is minus the clip.
#
# In the package `target` makes the right answer for training, and `split` takes an answer apart into $x_0$ and
# $\varepsilon$.

# %%
# from minit2v.diffusion import Process.target

# %%
# from minit2v.diffusion import Process.split

# %% [markdown]
# The last line is the circle turned back. Let us see that both kinds of answer, taken apart, give back what went in:

# %% tags=["nbval-check-output"]
processes = {name: Process(DiffusionConfig(prediction=name)) for name in ("noise", "velocity")}
x0, eps, t = frames[:4].double(), eps.double(), torch.tensor([1, 250, 700, 1000])
for name, one in processes.items():
    found_x0, found_eps = one.split(one.target(x0, eps, t), one.noise(x0, t, eps), t)
    apart = max((found_x0 - x0).abs().max(), (found_eps - eps).abs().max())
    print(f"{name:8} exact: {bool(apart < 1e-10)}")

# %% [markdown]
# ### The same, but not equally good
#
# A perfect network could use either. A real one makes errors. If its noise is wrong by d, its clip,
# $x_0 = (x_t - \sigma_t\varepsilon)/\alpha_t$, is wrong by $d \cdot \sigma_t/\alpha_t$. If its velocity is wrong by
# d, the clip, $x_0 = \alpha_t x_t - \sigma_t v$, is wrong by $d \cdot \sigma_t$.

# %%
figures.plot({"it predicts the noise": sigma / alpha, "it predicts the velocity": sigma}, xlabel="t",
             ylabel="error of x0 for an error of 1",
             alt="For noise the curve shoots up to 14.6 at t = 1000; for velocity it stays below 1.")

# %% tags=["nbval-check-output"]
print(f"at t = 1000: noise {sigma[1000] / alpha[1000]:.1f}, velocity {sigma[1000]:.3f}")
assert round((sigma[1000] / alpha[1000]).item(), 1) == 14.6 and round(sigma[1000].item(), 3) == 0.998

# %% [markdown]
# At t = 1000 the noise *is* the input, but for seven per cent of the clip. A network that predicts noise must copy its
# input to within a few per cent, and whatever it gets wrong there is blown up fifteen times. A large network that is
# trained for long learns that. For small ones it is a hard start, and at the noisiest times it is decided what will be
# in the clip. Section 9 puts it to the test.

# %% [markdown]
# ## 7 · A small network that is told the time
#
# It needs latents in, latents out, and the time. Time is a number between 0 and 999; a network does better with many
# numbers of moderate size. Think of a clock: one hand goes round quickly and tells neighbouring minutes apart, another
# goes slowly and tells morning from evening. Here are sixteen hands, each as a cosine and a sine.

# %%
def clock(timesteps, width):
    """(B,) whole numbers 0 to 999 -> (B, width): cosines and sines from fast to slow (Vaswani et al. 2017)."""
    speeds = 10000.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = timesteps[:, None].float() * speeds             # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)

# %%
figures.heat(clock(torch.arange(0, 1000, 25), 32).T, size=3.4, xlabel="time, in steps of 25", ylabel="number",
             alt="32 rows over 40 columns of time: the upper rows of each half flicker, the lower ones change slowly.")

# %% [markdown]
# The network itself is as plain as possible. A convolution in, five more, each with what it should know of the time
# added to its input, and a convolution out. Every convolution *adds* to what is there, as the residual blocks of
# chapter 02 do. The last one starts at zero, so that an untrained network answers 0, which is the best guess of
# somebody who knows nothing.

# %%
class SmallDenoiser(nn.Module):
    """Latents (B, 4, h, w) and timesteps (B,) -> an answer, shaped as the latents. Text it does not read."""

    def __init__(self, width=48, layers=5):
        super().__init__()
        self.width = width
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, timesteps, context=None):
        hands = clock(timesteps, self.width)                                     # (B, width)
        h = self.conv_in(x)                                                      # (B, width, h, w)
        for time, norm, conv in zip(self.times, self.norms, self.convs):
            h = h + conv(F.silu(norm(h + time(hands)[:, :, None, None])))
        return self.conv_out(F.silu(h))                                          # (B, 4, h, w)

# %% tags=["nbval-check-output"]
net = SmallDenoiser()
answer = net(frames[:2], torch.tensor([0, 999]))
parameters = sum(p.numel() for p in net.parameters())
print(tuple(answer.shape), f"{parameters:,} parameters, all answers 0:", bool((answer == 0).all()))
assert parameters == 119_668

# %% [markdown]
# In chapter 05 its place is taken by a UNet, which also looks at the whole frame at once and reads the prompt.

# %% [markdown]
# ## 8 · Training
#
# DDPM's algorithm 1 is short enough to say in a breath. Take clean latents. Draw a time for each, and noise. Mix them.
# Ask the network. Compare its answer with the right one, square the difference, and take the mean.

# %% tags=["nbval-check-output"]
generator = Generator().manual_seed(5)
x0 = train[:512]
t = torch.randint(1, 1001, (len(x0),), generator=generator)                      # (B,): 1 .. 1000
eps = draw_noise(x0.shape, generator)
x = process.noise(x0, t, eps)
answer = net(x, process.network_times(t, x))                                     # shown t - 1
loss = (answer - process.target(x0, eps, t)).square().mean()
print(f"{loss.item():.1f}")
assert abs(loss - 1) < 0.05

# %% [markdown]
# **The loss begins at 1**, because the answer is 0 and the noise has variance 1. Learn this number by heart: a
# denoiser whose error is above 1 does worse than one that says nothing at all.
#
# The package's version does the same, for clips too. It can weight times, which we come to, and it also returns each
# sample's own error, for the log.

# %%
from minit2v.diffusion import loss_weight

# %%
# from minit2v.diffusion import denoising_loss

# %% [markdown]
# ### Three helpers of every training run
#
# **Seeds.** Everything random in step n is drawn from generators that are made from the seed and n. So a run can be
# repeated, and one that was interrupted goes on as if nothing had happened.

# %%
# from minit2v.training import generators

# %% tags=["nbval-check-output"]
first, again, other = (draw_noise((3,), generators(0, step)[0]) for step in (7, 7, 8))
print("the same step:", torch.equal(first, again), "- another step:", torch.equal(first, other))

# %% [markdown]
# **The average.** Each step of training follows a few random samples, so the weights tremble. An *exponential moving
# average* (EMA) of them is calmer, and as a rule the better model. Here is the package's, and one trembling weight:

# %%
# from minit2v.training import Ema

# %%
steps = torch.arange(150)
tremble = 1 - torch.exp(-steps / 30) + 0.15 * draw_noise((150,), Generator().manual_seed(6))
ema, calm = Ema({"w": tremble[0]}, decay=0.93), []
for step, value in enumerate(tremble):
    ema.update({"w": value}, step)
    calm.append(ema.average["w"].item())

figures.plot({"a weight": tremble, "its average": calm}, xlabel="step", ylabel="value",
             alt="A noisy curve that rises to 1, and a smooth one through its middle, a little late.")

# %% [markdown]
# **The loop.** `fit` takes a model, an *objective*, which is a function that draws a batch and returns its loss, and a
# `Plan`: how many steps, how large a batch, how fast. It warms up, slows down towards the end, averages the weights,
# writes a log, and saves as it goes. From time to time it calls `on_save` with the averaged weights. We use that to
# look over its shoulder: what does the network make of four test frames, noised to t = 500?

# %%
from minit2v.training import Plan, fit, read_log

WATCHED, ROWS = 500, [0, 30, 44, 80]
watched = process.noise(test[ROWS], WATCHED, draw_noise((4, 4, 8, 8), Generator().manual_seed(7)))


def guess(model, process, x, t):
    """The network's guess of the clean latents in x, all at time t."""
    with torch.no_grad():
        return process.split(model(x, process.network_times(t, x)), x, t)[0]

# %%
def learn(process, steps=400, batch=64):
    """Trains a small denoiser; returns it with its log, and its guesses while it learnt."""
    def objective(model, generator, rng):
        rows = torch.randint(len(train), (batch,), generator=generator)
        return denoising_loss(model, process, train[rows], None, generator)[0], {}

    def on_save(average, step):
        now = SmallDenoiser()
        now.load_state_dict(average)
        seen.append(guess(now, process, watched, WATCHED))

    torch.manual_seed(0)                                     # PyTorch draws a new network's weights globally
    model, seen = SmallDenoiser(), []
    plan = Plan(steps=steps, batch=batch, lr=3e-3, warmup=20, ema=0.99, save_every=steps // 4, log_every=10)
    with tempfile.TemporaryDirectory() as folder:
        model.load_state_dict(fit(model, objective, plan, f"{folder}/{process.prediction}", on_save=on_save))
        return model.eval(), read_log(f"{folder}/{process.prediction}"), seen

# %% [markdown]
# We train two, from the same start, on the same frames, times and noise. One learns to say the noise, the other the
# velocity. Each takes about half a minute on one core.

# %%
models, logs, seen = {}, {}, {}
models["noise"], logs["noise"], seen["noise"] = learn(processes["noise"])

# %%
models["velocity"], logs["velocity"], seen["velocity"] = learn(processes["velocity"])

# %%
losses = {name: torch.tensor([line["loss"] for line in log]) for name, log in logs.items()}
figures.plot({f"predicts the {name}": values for name, values in losses.items()},
             x=[line["step"] for line in logs["noise"]], xlabel="step", ylabel="loss",
             alt="Two falling losses that begin near 1; the noise network's ends near 0.15, the other near 0.55.")

# %% tags=["nbval-check-output"]
for name, most in {"noise": 0.25, "velocity": 0.65}.items():
    print(f"{name:8} starts near 1: {bool(0.7 < losses[name][0] < 1.2)}, ends below {most}: "
          f"{bool(losses[name][-5:].mean() < most)}")
    assert losses[name][-5:].mean() < most

# %% [markdown]
# The noise network seems to be far ahead, but the two were asked different questions, so their losses cannot be
# compared. (The next section finds a measure that can.) Look at their work instead: four test frames at t = 500, and
# what the networks made of them after 100 and after 400 steps.

# %%
rows = [pictures(x) for x in (*seen["noise"][::3], *seen["velocity"][::3])]
names = ["clean", "what they were given, raw", *(f"{name} network, {n} steps" for name in seen for n in (100, 400))]
figures.strip([pictures(test[ROWS]), pictures(watched, raw), *rows], titles=names, scale=2,
              alt="Six rows of four frames: clean, confetti, which is what they were given, and the networks' guesses.")

# %% [markdown]
# Grounds and places are right. Colours are near, but not sure: most of the purple is pink, blue turns to cyan in
# places, and yellow to orange at its rim. The star has most of its points early. Other corners come late, and with a
# network this small hardly at all.

# %% [markdown]
# ## 9 · The loss by time
#
# One mean over all times hides almost everything. Let us ask both networks about the test frames at certain times, and
# measure how wrong each is in what *it* was asked to say.

# %%
ASKED = (1, 20, 50, 100, 250, 400, 500, 600, 750, 900, 1000)


def errors(model, process, t):
    """Mean squared errors of a network's noise and of its velocity at time t, on the test frames."""
    eps = draw_noise(test.shape, Generator().manual_seed(8))
    x = process.noise(test, t, eps)
    with torch.no_grad():
        x0, noise = process.split(model(x, process.network_times(t, x)), x, t)
    velocity = processes["velocity"].target(x0, noise, t) - processes["velocity"].target(test, eps, t)
    return {"noise": (noise - eps).square().mean(), "velocity": velocity.square().mean()}

# %%
found = {name: {t: errors(models[name], one, t) for t in ASKED} for name, one in processes.items()}
figures.plot({f"predicts the {name}": [found[name][t][name] for t in ASKED] for name in found}, x=ASKED, xlabel="t",
             ylabel="error of its own answer",
             alt="The noise network's error falls from near 1 at early times to near 0; the velocity network's is a U.")

# %% [markdown]
# The noise network is bad at early times and splendid at late ones. That does not mean that late times are easy! At
# t = 1 there is hardly any noise in the frame, so nobody could say what it was. At t = 1000 there is hardly anything
# else, so copying the input is a splendid answer. The loss tells how well the *noise* is known, and we care for the
# clip.
#
# To compare the two, measure both in one currency. We take the velocity, in which a guess of zero costs 1 at all
# times.

# %%
lines = {f"trained on the {name}": [found[name][t]["velocity"] for t in ASKED] for name in found}
figures.plot({**lines, "a guess of zero": torch.ones(len(ASKED))}, x=ASKED, xlabel="t", ylabel="error of the velocity",
             alt="Both networks' errors of the velocity over t. At t = 1000 the noise network's is far higher.")

# %%
for t in ASKED:
    print(f"t = {t:4}:", ", ".join(f"{name} network {found[name][t]['velocity']:.3f}" for name in found))

assert found["noise"][1000]["velocity"] > 1 > found["velocity"][1000]["velocity"]

# %% [markdown]
# At early times the noise network is even a little better, around t = 250 the two are equal, and later the velocity
# network is ahead. At the noisiest times the noise network does worse than one that says nothing, although its own
# loss looked splendid there.
#
# The same happened when the mini model was made. We trained its UNet on 25,000 frames, once to predict the noise, once
# the velocity, and measured this:

# %%
measured = {"trained on the noise": [0.145, 0.153, 0.38, 0.89, 1.87],
            "trained on the velocity": [0.178, 0.150, 0.24, 0.47, 0.57], "a guess of zero": [1] * 5}
figures.plot(measured, x=[250, 500, 750, 900, 1000], xlabel="t", ylabel="error of the velocity",
             alt="The mini UNet: equal up to t = 500, then noise rises to 1.87 at t = 1000, velocity to 0.57.")

# %% [markdown]
# At t = 1000 the one's guess was worse than none, and t = 1000 is where every clip begins. **That is why the mini model
# predicts the velocity.** The original, two hundred times as large and trained for much longer, predicts the noise and
# gets away with it.
#
# ### A weight for each time
#
# There is another way to see it. If the noise is wrong by d, the clip is wrong by $-d\,\sigma_t/\alpha_t$, so the
# velocity $\alpha_t\varepsilon - \sigma_t x_0$ is wrong by $\alpha_t d + d\,\sigma_t^2/\alpha_t = d/\alpha_t$, since
# $\alpha_t^2+\sigma_t^2=1$. So training on the velocity is training on the noise, with each time weighted by
# $1/\bar\alpha_t$. In numbers, for our noise network:

# %% tags=["nbval-check-output"]
for t in (250, 1000):
    ratio = found["noise"][t]["velocity"] / found["noise"][t]["noise"]
    print(f"t = {t:4}: the velocity's error is {ratio:.1f} times the noise's; 1 / alpha-bar is "
          f"{1 / process.alphas_cumprod[t]:.1f}; loss_weight {loss_weight(process, t, clip=1000):.1f}")

# %% [markdown]
# `loss_weight` with its `clip` is there for networks that predict the noise and yet should care for late times: the
# weight of 215 is cut off at whatever you choose. Other papers weight by other functions of the SNR, and all of them
# answer one question: *at which times should the network try hardest?* For video the answer is "late", since that is
# where it is decided what moves, and how: in chapter 08 our model will see late times more often than early ones.

# %% [markdown]
# ## 10 · What the guess looks like
#
# Here is what the velocity network makes of one test frame at ever later times.

# %%
shown = (50, 200, 350, 500, 600, 700, 850, 1000)
noise, best = draw_noise((1, 4, 8, 8), Generator().manual_seed(9)), models["velocity"]
noisy = [processes["velocity"].noise(test[30:31], t, noise) for t in shown]
guesses = [guess(best, processes["velocity"], x, t) for x, t in zip(noisy, shown)]
figures.strip([pictures(torch.cat(noisy), raw), pictures(torch.cat(guesses), raw), pictures(torch.cat(guesses))],
              titles=["latents at t = 50, 200, 350, 500, 600, 700, 850, 1000", "its guess of the clean latents",
                      "the guess, decoded"], scale=2,
              alt="Above, a frame dissolves. Below, the guesses: right at first, then vague, then next to nothing.")

# %%
print("size of the guess:", ", ".join(f"{x.square().mean().sqrt():.2f}" for x in guesses))

# %% [markdown]
# Early on it restores the frame. Later the guess goes soft and small, and at the end it is next to nothing, of which
# the decoder can make no frame. This is not a failure. With a squared error, the best answer is the *mean of all
# frames that could be behind the noise*, and at t = 1000 that is nearly all frames there are. They cancel out. The
# mean of many frames is not a frame.
#
# ### A crude sampler
#
# So one guess from pure noise gives nothing but murk. But read the picture from right to left:
# as soon as there is a little less noise, fewer frames are possible, and the guess becomes more definite. So make a
# guess, believe it *a little*, and noise it again, to a slightly earlier time. Then guess again.

# %%
def crude(model, process, x, times, generator):
    """Noise x at times[0] -> latents at times[-1]: guess, noise again to the next time, guess, ..."""
    for t, s in zip(times, times[1:]):
        x = process.noise(guess(model, process, x, t), s, draw_noise(x.shape, generator))
    return x

# %%
start = draw_noise((8, 4, 8, 8), Generator().manual_seed(10))
rows, tried = [], [("velocity", 1), ("velocity", 5), ("velocity", 50), ("noise", 50)]
for name, steps in tried:
    times = torch.linspace(1000, 0, steps + 1).round().long().tolist()
    rows.append(pictures(crude(models[name], processes[name], start, times, Generator().manual_seed(11))))

figures.strip(rows, titles=[f"{name} network, guesses: {steps}" for name, steps in tried],
              alt="Eight samples a row: murk; murk, black or a smudge; four coloured things, four empty; all white.")

# %% [markdown]
# Fifty guesses, and out of nothing come grounds with coloured things on them, some of them nearly a shape. Other
# frames stay empty. The network is tiny, it has been learning for half a minute, and the sampler is the crudest there
# is: at each step it throws away what it knew of the noise. But it is a generative model, whole, and you have written
# every part of it. Better networks come in chapter 05, better samplers in 06.
#
# The last row is the noise network, from the same start. Its first guesses are wrong, as section 9 measured, and the
# later ones build on them: it hardly ever puts a thing into its frames.

# %% [markdown]
# ## 11 · What the original does
#
# **The schedule** is ours to the last digit. In ModelScope's code it is `beta_schedule('linear_sd', ...)` in
# `models/multi_modal/video_synthesis/diffusion.py`: a `linspace` between the roots of 0.00085 and 0.012, squared, in
# float64. "sd" is for Stable Diffusion, from which it comes. In diffusers the same is called `scaled_linear`.
#
# **The forward process** is DDPM's, eq. 4, on the latents of all 16 frames. All frames of a clip share one time, and
# the noise of each is drawn by itself: `torch.randn` over (1, 4, 16, 32, 32).
#
# **The answer** is the noise (`mean_type: "eps"` in its `configuration.json`), **the loss** the mean square
# (`loss_type: "mse"`), with equal weights for all times: DDPM's eq. 14.
#
# **Time** is counted from 0 to 999. With 50 steps it visits 981, 961, ..., 21, 1. In our counting that is 982 to 2:

# %% tags=["nbval-check-output"]
times = process.times(50, "modelscope")
print(times[:3].tolist(), "...", times[-3:].tolist(), "- the last is where it stops")

# %% [markdown]
# It stops at our t = 1, where 0.085 % of the variance is still noise, and not at 0. To be bit for bit equal, we do
# the same.

# %% [markdown]
# ## 12 · What can go wrong
#
# Diffusion code with a mistake in it still runs. Shapes fit, losses fall, and pictures come out, only worse. Here are
# five mistakes and their symptoms.
#
# ### Beta where alpha-bar belongs
#
# There are three lists of a thousand numbers: $\beta_t$, $1-\beta_t$ and $\bar\alpha_t$. Somebody forgets `cumprod`:

# %%
shown = torch.tensor([50, 200, 350, 500, 700, 1000])
x0, noise = film[:, :, 3], draw_noise((6, 4, 8, 8), Generator().manual_seed(3))


def mixed(clip_share, noise_share, look=decode):
    """x0 and noise mixed with six pairs of factors, as pictures."""
    return pictures(clip_share[:, None, None, None] * x0 + noise_share[:, None, None, None] * noise, look)


right, wrong = alphas_cumprod[shown], 1 - betas[shown - 1]
figures.strip([mixed(right.sqrt(), (1 - right).sqrt()), mixed(wrong.sqrt(), (1 - wrong).sqrt())],
              titles=["alpha-bar, t = 50 ... 1000", "1 - beta instead"],
              alt="Above, the star dissolves. Below, with 1 - beta, it is as clear at t = 1000 as at t = 50.")

# %% [markdown]
# The clip never dissolves. A network trained so has never seen anything but nearly clean frames; give it pure noise,
# and it does not know where to begin. The cure: look at `process.noise(x0, 1000, eps)` once. You must not recognise
# anything.
#
# ### Variance for standard deviation
#
# Somebody forgets the roots, and mixes with $\bar\alpha$ and $1 - \bar\alpha$.

# %%
a = alphas_cumprod
figures.plot({"with roots": (a + (1 - a)).sqrt(), "without": (a ** 2 + (1 - a) ** 2).sqrt()}, xlabel="t",
             ylabel="size of the noisy latents", alt="With roots the size is 1 throughout; without, it dips to 0.71.")

# %%
figures.strip([mixed(right.sqrt(), (1 - right).sqrt(), raw), mixed(right, 1 - right, raw)], scale=2,
              titles=["latents with roots, t = 50 ... 1000", "without"],
              alt="Above, the star's latents become confetti. Below as well, but paler in the middle of the way.")

# %% [markdown]
# Both ends are right, and in between the lower row is only a little paler. Who would notice? It shows in the size,
# and in samplers that use the right formulas with a network trained so: their steps do not fit. The cure is one
# assertion: the squares add up to 1.

# %% tags=["nbval-check-output"]
t = torch.arange(1001)
print("alpha² + sigma² = 1:", bool((process.alpha(t) ** 2 + process.sigma(t) ** 2 - 1).abs().max() < 1e-12))

# %% [markdown]
# ### Off by one
#
# Somebody takes our t for theirs, or theirs for ours. The noise is undone with the factors of the neighbouring time,
# $x_0 = (x_t - \sigma_{t-1}\,\varepsilon) / \alpha_{t-1}$. Even if a network knows $\varepsilon$ perfectly, some of it
# stays in. How much of what there was?

# %%
t = torch.arange(1, 41)
stays = (sigma[t] - sigma[t - 1]) / alpha[t - 1] / sigma[t]
figures.plot({"stays in": stays}, x=t, xlabel="t", ylabel="share of the noise",
             alt="All of the noise stays in at t = 1, 0.3 at t = 2, then less and less, about 0.01 at t = 40.")

# %% tags=["nbval-check-output"]
print(", ".join(f"t = {t}: {(sigma[t] - sigma[t - 1]) / alpha[t - 1] / sigma[t]:.1%}" for t in (1, 2, 10, 100, 1000)))

# %% [markdown]
# At large t it is nothing, and at t = 1, where the way back ends, it is everything: the last trace of noise is never
# removed. In a picture you will hardly see it, which is why this bug has lived in so many programs. Numbers see it.
# So compare with a formula that you trust at t = 1, not at t = 500.
#
# ### Latents that are not of unit size
#
# Somebody forgets the scaling factor. Stable Diffusion's raw latents are about 5.5 times too large (1 / 0.18215). The
# noise is not:

# %%
stars, rows = film[0, :, ::3].transpose(0, 1), []                                # (6, 4, 8, 8): 6 frames of the film
for size in (1.0, 5.5):
    x = process.noise(size * stars, 700, noise)
    rows.append(pictures(x / x.square().mean().sqrt()))                          # at unit size, for the decoder

figures.strip(rows, titles=["unit size, t = 700", "5.5 times too large, t = 700"], scale=2,
              alt="Above, hardly anything is left of a star. Below, the star and its orbit are clear.")

# %% tags=["nbval-check-output"]
snr = process.snr(torch.arange(1, 1001))
print(f"SNR at the end: {snr[-1]:.4f}; for latents 5.5 times too large {5.5 ** 2 * snr[-1]:.2f}, "
      f"as if it were t = {(snr <= 5.5 ** 2 * snr[-1]).int().argmax() + 1}")

# %% [markdown]
# Latents that are k times too large have k² times the SNR that the schedule promises. The last third of the times
# never comes, and as with beta the network never learns to start from nothing. The cure: print the size of your
# latents, as we did in section 1.
#
# ### The end is not pure noise
#
# The last one is no slip of the pen. It is in the original, in Stable Diffusion, and in our model: at t = 1000 the SNR
# is 0.0047, and not 0. A sampler starts from pure noise. Training never saw pure noise: 6.8 % of the clip,
# $\alpha_{1000} = 0.068$, was always in it.
#
# Is that enough to be seen? Not in a cell of the latents. But the *ground* is the same in all cells of all frames, and
# a mean over 1,024 cells makes the noise 32 times smaller. So let us take clips on black and clips on white, noise
# them to t = 1000, and measure their mean along the direction from black to white.

# %%
grounds = {ground: encode(render([Scene((Thing("red", "circle", "stay", x=0.5, y=0.5),), ground=ground)]))
           for ground in ("black", "white")}                                     # (1, 4, 16, 8, 8) each
means = {ground: z.mean((0, 2, 3, 4)) for ground, z in grounds.items()}          # (4,) each
direction = F.normalize(means["white"] - means["black"], dim=0)


def brightness(x):
    """Clips of latents (N, 4, F, h, w) -> (N,): their mean along the direction from black to white."""
    return x.mean((2, 3, 4)) @ direction

# %%
eps = draw_noise((500, 4, 16, 8, 8), Generator().manual_seed(12))
shades = {f"clips on {ground}, t = 1000": brightness(process.noise(z.expand_as(eps), 1000, eps))
          for ground, z in grounds.items()} | {"pure noise": brightness(eps)}
figures.plot({name: torch.histc(values, bins=36, min=-0.25, max=0.47) for name, values in shades.items()},
             x=torch.linspace(-0.24, 0.46, 36), xlabel="brightness read from it", ylabel="clips of 500",
             alt="Three bells: clips on black to the left, clips on white to the right, pure noise between.")

# %%
black, white, pure = shades.values()
middle_shade = (black.mean() + white.mean()) / 2
told = ((black < middle_shade).float().mean() + (white > middle_shade).float().mean()) / 2
print(f"ground told from what looks like noise: {told:.1%} of the clips")
assert told > 0.8

# %% [markdown]
# So a network can learn to read the ground off what you took for noise. Then it is given real noise, reads "neither
# black nor white", and makes something of medium brightness. Lin et al. (2023) found that Stable Diffusion could
# hardly make a dark night or a white page for this reason. Their cure is to bend the schedule until its last SNR is
# zero. It works for networks that predict the velocity, but not for those that predict the noise: at SNR 0, the noise
# tells nothing about the clip. The released model has been trained with its 0.0047, and it has to be run with it.

# %% [markdown]
# ## Recap
#
# 1. Each step of noise also shrinks; any number of steps is one jump, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$.
# 2. The schedule says when the clip is lost; the SNR is its honest picture, and 1000 is not quite the end.
# 3. Time 0 is clean for us; the network counts from 0 what we count from 1, and one function translates.
# 4. Noise, velocity and clip are one answer in three forms, but errors cost differently; the mini model says velocity.
# 5. Draw a time, noise, ask, compare: that is training. A guess is a mean; many guesses, noised again, are a sample.
#
# What you now own: the process, the loss, the loop, and a first generator of frames. Chapter 05 gives it a network
# that sees the whole frame and reads the prompt.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/04_diffusion](../exercises/04_diffusion.ipynb).
#
# 1. **The schedule (build).** Alpha-bar from its two ends, for any number of steps.
# 2. **Too little of everything (repair).** Both ends are right, the middle is not: find the mistake in a jump.
# 3. **Back from the velocity (build).** Write the function that takes an answer apart.
# 4. **The loss (build).** DDPM's algorithm 1, with both ways of counting time in it.
# 5. **Where the noise wins (explore).** From a signal-to-noise ratio to a time, after a guess of your own.
#
# Two to go further, without a check: build Nichol & Dhariwal's cosine schedule, and say where it spends its steps. And
# train the small denoiser with `timesteps` always zero: at which times does it suffer, and what else tells it how much
# noise there is?

# %% [markdown]
# ## References
#
# - J. Ho, A. Jain and P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv:2006.11239. Eq. 2, 4, 6, 7,
#   14 and algorithm 1 are in this chapter.
# - J. Sohl-Dickstein et al., *Deep Unsupervised Learning using Nonequilibrium Thermodynamics*, 2015,
#   arXiv:1503.03585. The first of its kind.
# - A. Nichol and P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, 2021, arXiv:2102.09672. Schedules.
# - A. Vaswani et al., *Attention Is All You Need*, 2017, arXiv:1706.03762. Section 3.5 has the clock.
# - T. Salimans and J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, 2022, arXiv:2202.00512.
#   The velocity.
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2023, arXiv:2305.08891.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022, arXiv:2112.10752.
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The original.
