# %% [markdown]
# # 06 · Sampling
#
# A trained network has a single skill: shown a noisy clip, it can say what the clean one might be. That is a guess,
# and the first guess is poor. In this chapter you make a clip out of guesses. You will walk from noise to a clip with
# straight steps, with random steps, and with steps that look ahead; and you will make the prompt count for more than
# the network would by itself, which is called *guidance*.

# %% [markdown]
# ## What you will build
#
# The next cell uses the finished code. The mini model takes twelve steps from noise to a clip, and after each step we
# keep what it believes the clean clip to be. Each strip is such a belief; time runs from left to right, as always.

# %%
import math
from collections.abc import Callable
from functools import partial

import minit2v
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from minit2v.course import figures, widgets
from minit2v.diffusion import Process, Time, broadcast, draw_noise
from minit2v.referee import agrees, read
from minit2v.video import to_uint8
from minit2v.world import Scene, Thing

torch.set_grad_enabled(False)                                # nothing is trained in this chapter
pipe = minit2v.load()
process = pipe.process


def decode(latents):
    """Latents (B, 4, F, h, w) -> clips (B, F, H, W, 3) uint8."""
    return to_uint8(pipe.autoencoder.decode(latents))

# %%
guesses = []
clip = pipe("a blue square grows", sampler="dpm++", num_inference_steps=12, seed=1, progress=False,
            on_step=lambda i, x0: guesses.append(x0))
shown = (1, 3, 6, 12)
figures.strip(decode(torch.cat([guesses[n - 1] for n in shown])), frames=6, titles=[f"after step {n}" for n in shown],
              alt="Four strips: blurred shapes in several colours first, then one object, at the end a clear clip.")

# %% [markdown]
# **You need** chapter 04: the noising process, and what a network that predicts the noise or the velocity knows. The
# formulas are few, and each stands beside the line that computes it.
#
# **It takes** about 75 minutes to read and play with. All cells together run in about two minutes; most of that is
# the mini model making clips.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | twice the steps divide the error of DDIM by | 2 |
# | twice the steps divide the error of DPM-Solver++(2M) by | 4 |
# | steps that the original takes when you ask it for 30 | 31 |
# | clips that the network sees in a step: without guidance, with guidance | 1, 2 |
# | spread of a toy world's peak at guidance 1 and at guidance 4 | 0.18, 0.09 |

# %% [markdown]
# ## 1 · A world with an oracle
#
# A clip of the mini model is 4,096 latent numbers. Nobody can watch 4,096 numbers walk. So let us begin with the
# smallest clips there can be, of **one number each**, and a world in which that number is either close to -1.4 or
# close to 0.6. Three clips in ten are of the first kind.

# %%
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)      # how many are of each kind
MEANS = torch.tensor([-1.4, 0.6], dtype=torch.float64)       # where they lie
SPREAD = 0.2                                                 # and how closely


def draw_world(count, generator):
    """Clips of this world, one number each: (N,)."""
    kind = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return MEANS[kind] + SPREAD * torch.randn(count, generator=generator, dtype=torch.float64)

# %% [markdown]
# Noise does to these numbers what it did to latents in chapter 04, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. A bell
# curve stays a bell curve under it. Its centre moves from $m$ to $\alpha_t m$, its variance from $w^2$ to
# $\alpha_t^2 w^2 + \sigma_t^2$, since variances of independent things add up. Two bells stay two bells:

# %%
def peaks(t):
    """The two bells at time t: their centres (2,) and their common width ()."""
    return process.alpha(t) * MEANS, ((process.alpha(t) * SPREAD) ** 2 + process.sigma(t) ** 2).sqrt()


def density(x, t):
    """How densely the world lies at x (N,) at time t: (N,)."""
    centres, width = peaks(t)
    bells = torch.exp(-((x[:, None] - centres) / width) ** 2 / 2) / (width * math.sqrt(2 * math.pi))     # (N, 2)
    return bells @ WEIGHTS

# %% [markdown]
# A picture of the whole process. Time runs to the right, from noise at t = 1000 to clean clips at t = 0: the direction
# in which we are going to walk. The darker, the more of the world is there.

# %%
LINE = torch.linspace(-2.6, 2.6, 261, dtype=torch.float64)   # (261,): places along the number line
SHADE = torch.stack([density(LINE, t) for t in range(1000, -1, -5)], dim=1)      # (261, 201)


def landscape(walks, alt):
    """The world at all times, as a shade, and walks over it. walks: title -> (times (N + 1,), stations (N + 1, K))."""
    figure = Figure(figsize=(max(4.5, 3.0 * len(walks)), 2.8), layout="constrained")
    panels = figure.subplots(1, len(walks), sharey=True, squeeze=False)[0]
    for axes, (title, (times, stations)) in zip(panels, walks.items()):
        axes.contourf(range(1000, -1, -5), LINE, (SHADE / SHADE.amax(0)).sqrt(), levels=10, cmap="Greys", vmax=2)
        for walk, colour in zip(stations.T, figures.LINES[:6] * 9):
            axes.plot(times, walk, color=figures.PALETTE[colour], linewidth=1, marker=".", markersize=2)
        axes.set(title=title, xlabel="time t", xlim=(1000, 0), ylim=(-2.6, 2.6))
    panels[0].set_ylabel("x")
    return figures.picture(figure, alt)

# %%
landscape({"": (torch.empty(0), torch.empty(0, 0))},
          alt="One broad grey band at time 1000 on the left parts into two narrow ones at -1.4 and 0.6 on the right.")

# %% [markdown]
# ### The best possible guess
#
# A network learns to guess $x_0$ from $x_t$. In this world we need no network: the best guess is a formula, and we
# can ask an **oracle**. It answers in two steps.
#
# *If only one bell existed*, around $m$, the guess would be $m$, corrected by how far $x_t$ lies from where we would
# expect it, $\alpha_t m$:
#
# $$\hat x_0^{(m)} = m + \frac{\alpha_t w^2}{\alpha_t^2 w^2 + \sigma_t^2}\,(x_t - \alpha_t m)$$
#
# The fraction says how far to trust $x_t$. With little noise it is about $1/\alpha_t$, full trust; with much noise it
# goes to zero, and the guess stays at $m$.
#
# *With two bells*, each makes its guess, and each guess counts as much as the bell is likely to be where $x_t$ came
# from. Those two shares are a softmax of the bells' log densities.

# %%
def oracle(x, t, weights=WEIGHTS):
    """The best guess of the clean clip behind x (N,) at time t, and of the noise: (x0, eps), (N,) each."""
    centres, width = peaks(t)
    away = x[:, None] - centres                              # (N, 2)
    share = (weights.log() - (away / width) ** 2 / 2).softmax(-1)                # (N, 2): which bell is x from?
    guess = MEANS + process.alpha(t) * SPREAD ** 2 / width ** 2 * away           # (N, 2): and if it is this one?
    x0 = (share * guess).sum(-1)
    return x0, (x - process.alpha(t) * x0) / process.sigma(t)

# %% [markdown]
# Is it right? "Best guess" means: of all the clips that look like $x_t$ at time t, the mean. So we make a million
# clips noisy, keep those that come out close to 0.3, and look what they were.

# %% tags=["nbval-check-output"]
generator = Generator().manual_seed(0)
x0 = draw_world(1_000_000, generator)
x = process.noise(x0, 500, draw_noise(x0.shape, generator).to(x0))
near = (x - 0.3).abs() < 0.01
asked = oracle(torch.tensor([0.3], dtype=torch.float64), 500)[0].item()
print(f"mean of those that look like 0.3: {x0[near].mean():.1f}, the oracle: {asked:.1f}")
assert abs(x0[near].mean() - asked) < 0.05

# %%
figures.plot({f"t = {t}": oracle(LINE, t)[0] for t in (1000, 600, 300, 100)}, x=LINE,
             xlabel="noisy clip x", ylabel="guess of the clean clip",
             alt="Guesses against x: nearly flat around 0 at t = 1000, steeper at 600, almost a staircase at 100.")

# %% [markdown]
# At t = 100 the guess is nearly a staircase: x itself shows which kind it is. At t = 1000 the oracle can tell next to
# nothing and answers, whatever you show it, with something close to 0, the mean of everything. **It does not know
# better, for nobody could.** Remember this about networks too: a blurred first guess is not a mistake, it is the
# right answer.

# %% [markdown]
# ## 2 · Straight steps: DDIM
#
# ### One jump
#
# The simplest sampler trusts the first guess. Four thousand noises, one answer each. The black curve is the world, the
# blue bars are the answers, and bars that touch the upper edge go on beyond it:

# %%
def histograms(lots, alt, columns=3, limits=(-2.6, 2.6), top=2.2):
    """Where samples lie, against the world's own density (black). lots: title -> (N,)."""
    rows, columns = -(-len(lots) // columns), min(columns, len(lots))
    figure = Figure(figsize=(max(4.5, 2.9 * columns), 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (title, lot) in zip(panels, lots.items()):
        axes.hist(lot.clamp(*limits), bins=90, range=limits, density=True, color=figures.PALETTE["sky"])
        axes.plot(LINE, density(LINE, 0), color="black", linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_yticks([])
    panels[0].set_ylim(0, top)
    return figures.picture(figure, alt)

# %%
start = torch.randn(4000, generator=Generator().manual_seed(0), dtype=torch.float64)
histograms({"the first guess": oracle(start, 1000)[0]},
           alt="A heap of samples around 0, between the two peaks of the true density, where it is almost zero.")

# %% [markdown]
# Every sample lies about where the world has nothing at all. **The mean of two good clips is not a good clip.** So we
# must not go all the way to the guess. We go a little way, then ask again: with a little less noise, the next guess
# is a little less blurred.

# %% [markdown]
# ### A little way
#
# The answer at time t splits what we have into a clean part and a noise part, $x_t = \alpha_t \hat x_0 + \sigma_t
# \hat\varepsilon$. At an earlier time $s$ there should be more of the first and less of the second, and we know how
# much. So keep both parts and mix them anew:
#
# $$x_s = \alpha_s\, \hat x_0 + \sigma_s\, \hat\varepsilon \qquad \hat\varepsilon = (x_t - \alpha_t \hat x_0)/\sigma_t$$
#
# That is a whole sampler, and a famous one: **DDIM** (Song et al. 2021).

# %%
def straight(x, x0, t, s):
    """One step from t to an earlier s: the same guess, the same noise, mixed anew."""
    eps = (x - process.alpha(t) * x0) / process.sigma(t)
    return process.alpha(s) * x0 + process.sigma(s) * eps

# %% [markdown]
# A walk is a loop around it. `times` falls from 1000 to 0; at each of them we ask once.

# %%
def walk(denoise, x, times, step):
    """From times[0] to times[-1], asking at each but the last. Returns all stations, (N + 1, ...)."""
    stations = [x]
    for t, s in zip(times[:-1], times[1:]):
        x0, _ = denoise(x, t)
        x = step(x, x0, t, s)
        stations.append(x)
    return torch.stack(stations)

# %% [markdown]
# Twelve walkers start at different noises. Move the slider to give them more steps.

# %%
twelve = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64)
pictures = []
for steps in (1, 2, 4, 8, 25, 100):
    times = process.times(steps, "linspace")
    pictures.append(landscape({f"{steps} steps": (times, walk(oracle, twelve, times, straight))},
                              alt=f"Twelve walks of {steps} steps from the left, where x is noise, to the right."))
widgets.slider(pictures, labels=["1", "2", "4", "8", "25", "100"], name="steps", start=4)

# %% [markdown]
# With enough steps, each walker goes smoothly into one of the two bands, and which one is decided early, by the
# noise it started from. Nothing else is random. And with all four thousand:

# %%
ends = {f"{n} steps": walk(oracle, start, process.times(n, "linspace"), straight)[-1] for n in (2, 8, 50)}
histograms(ends, alt="2 steps: one wide, skewed heap. 8 steps: two narrow peaks. 50 steps: nearly the true ones.")

# %% [markdown]
# ### Where should a walk end, exactly?
#
# Look at the walks again: **they never cross**. (A step depends on place and time only, so two that met would go on
# as one.) So each walker keeps its rank: who starts with 12 % of the crowd below her, ends with 12 % of the crowd
# below her. And how much of the world lies below a point we know, at every time: it is the bells' cumulative
# function, which PyTorch calls `ndtr`. This gives us, as a second oracle, the exact end of every walk with infinitely
# many steps. (Ranks exist on a line only. With 4,096 numbers there is no such shortcut.)

# %%
def below(x, t):
    """The share of the world that lies below x (N,) at time t: (N,)."""
    centres, width = peaks(t)
    return torch.special.ndtr((x[:, None] - centres) / width) @ WEIGHTS


def exact(x, t, s):
    """Where those who stand at x at time t must stand at time s, to have as much of the world below them."""
    share, low, high = below(x, t), torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(50):                                      # halve the interval that holds the answer
        middle = (low + high) / 2
        left = below(middle, s) < share
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return middle

# %% tags=["nbval-check-output"]
for n in (10, 100, 1000):
    end = walk(oracle, twelve, process.times(n), straight)[-1]
    print(f"{n:4} steps: off by {(end - exact(twelve, 1000, 1)).abs().mean():.3f} on average")

# %% [markdown]
# More steps, less error, and no error is left in the limit: the walk and the ranks agree, though they have nothing in
# common but the world.

# %% [markdown]
# ## 3 · Which times?
#
# A walk of 25 steps needs 25 of the thousand times to ask at, and an end. Chapter 04 left open how to choose them,
# and here programs really differ. `process.times` knows three lists; if you name none, it takes *modelscope*. Here
# they are for eight steps, so that you can count. A filled dot is a time at which the network is asked, an open one
# is the end; the very last times are enlarged on the right.

# %%
figure = Figure(figsize=(7, 1.7), layout="constrained")
panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
for axes in panels:
    for row, spacing in enumerate(["linspace", "leading", "modelscope"]):
        *asked, end = process.times(8, spacing).tolist()
        axes.plot(asked, [row] * len(asked), "o", color=figures.PALETTE["blue"])
        axes.plot(end, row, "o", color=figures.PALETTE["blue"], fillstyle="none")
    axes.set(yticks=range(3), yticklabels=["linspace", "leading", "modelscope"], ylim=(-0.6, 2.6), xlabel="time t")
panels[0].set_xlim(1030, 60)
panels[1].set_xlim(4.5, -0.5)                                # the last few times, enlarged
figures.picture(figure, "linspace starts at 1000 and ends at 0; the other two start at 877, ask at 2 and end at 1.")

# %% [markdown]
# *linspace* divides the way evenly, from 1000 to 0. *modelscope*, the original's own, counts upwards from below: 2,
# 127, 252 and so on. So it starts a whole stride short of the top, asks a last time where there is hardly any noise,
# and ends at t = 1. *leading* is the name of the same idea in diffusers. For eight steps they agree. For thirty, a
# number that does not divide 1000, they do not:

# %% tags=["nbval-check-output"]
for n in (25, 30):
    for spacing in ("linspace", "leading", "modelscope"):
        times = process.times(n, spacing).tolist()
        print(f"{n} asked for, {len(times) - 1} taken, {spacing:10}", *times[:3], "...", *times[-3:])
assert len(process.times(30)) - 1 == 31

# %% [markdown]
# Asked for 30 steps, the original goes on in strides of 33 until the thousand is full, and takes 31. diffusers takes
# 30 and begins lower. (The released network counts its times from 0, so that in the original's files all these numbers
# are one smaller: 961, 921, ..., 1. Chapter 04 met this off-by-one.)
#
# Does it matter? Look at how wide the right-hand peak comes out. It should be 0.20.

# %% tags=["nbval-check-output"]
print(f"what the process leaves of a clip: {process.alpha(962):.2f} at t = 962, {process.alpha(1000):.2f} at t = 1000")
for spacing in ("linspace", "modelscope"):
    end = walk(oracle, start, process.times(25, spacing), straight)[-1]
    print(f"{spacing:10} spread of the right peak: {end[end > -0.4].std():.2f}")

# %% [markdown]
# linspace spends its last step on a jump from t = 41 straight to the guess, and you know what guesses are: means of
# everything that is still possible. So a bit of variety is missing at the end. The other lists ask again at t = 2. In
# return they begin at t = 962 with pure noise, where the process would have left 9 % of a clip; but even at t = 1000
# it leaves 7 %. Neither is wrong; one must know which one a result was made with. (What is still missing from 0.20 is
# the error of few steps.)

# %% [markdown]
# ## 4 · Random steps: DDPM
#
# The first diffusion sampler was a random one (Ho et al. 2020). Chapter 04 measured its step: if we know $x_t$ and
# also $x_0$, then $x_s$ is drawn from a bell curve, the *posterior*. Its formula came from two witnesses, who say where
# $x_s$ is, neither of them exactly. Once more, in short:
#
# - The clip says: at $\alpha_s x_0$, give or take $\sigma_s$.
# - $x_t$ says: I came from $x_s$ by $x_t = k\, x_s + \sqrt{b}\; z$, with $k = \alpha_t / \alpha_s$ kept and $b =
#   \sigma_t^2 - k^2 \sigma_s^2$ of noise added. So $x_s$ was at $x_t / k$, give or take $\sqrt{b} / k$.
#
# Two independent witnesses are averaged, each weighted by **one over its variance**; and one over the variance of the
# average is the sum of the two.

# %%
def ask_both(x, x0, t, s):
    """Mean and standard deviation of x_s, from what the clip and what x_t say."""
    kept = process.alpha(t) / process.alpha(s)
    added = process.sigma(t) ** 2 - (kept * process.sigma(s)) ** 2
    trust_clip, trust_x = 1 / process.sigma(s) ** 2, kept ** 2 / added
    variance = 1 / (trust_clip + trust_x)
    return variance * (trust_clip * process.alpha(s) * x0 + trust_x * x / kept), variance.sqrt()

# %% tags=["nbval-check-output"]
from minit2v.samplers import _steps, _unless_clean, posterior

toward_x0, keep_x, std = posterior(process, 400, 300)
mean, spread = ask_both(x=0.8, x0=-1.4, t=400, s=300)
print(f"two witnesses {mean:.4f} ± {spread:.4f}, posterior {toward_x0 * -1.4 + keep_x * 0.8:.4f} ± {std:.4f}")
assert torch.allclose(mean, toward_x0 * -1.4 + keep_x * 0.8) and torch.allclose(spread, std)

# %% [markdown]
# Of course we do not know $x_0$. We put the guess in its place, draw, and ask again. This is the whole step as the
# package has it; z is fresh noise, and `broadcast` only shapes the three coefficients so that they multiply x.

# %%
# from minit2v.samplers import ddpm_step

# %% [markdown]
# (`_unless_clean` leaves alone what is clean already, at t = 0.) A random step, and a walk of them:

# %%
noises = Generator().manual_seed(0)


def random_step(x, x0, t, s):
    return ddpm_step(process, x, x0, t, s, draw_noise(x.shape, noises).to(x))


times = process.times(100, "linspace")
landscape({"straight": (times, walk(oracle, twelve[::3], times, straight)),
           "random": (times, walk(oracle, twelve[::3], times, random_step))},
          alt="Four smooth walks on the left; on the right four jittery ones that wander across half of the picture.")

# %% [markdown]
# The random walkers cross, turn round and change sides, until about t = 300. Where they end is not decided by the
# start. And yet the crowd as a whole arrives where it should:

# %%
ends = {f"{n} random steps": walk(oracle, start, process.times(n, "linspace"), random_step)[-1] for n in (8, 50, 500)}
histograms(ends, alt="8 random steps: two heaps with some in between; 50 and 500: two peaks, ever closer to the truth.")

# %% [markdown]
# Why random, if straight works as well? History, for one: the paper derived the network's training and this sampler
# together. And it has a merit. Let us make a gross mistake and start all four thousand at -0.7. Three in ten should
# end on the left:

# %% tags=["nbval-check-output"]
mistaken, times = torch.full_like(start, -0.7), process.times(100)
for name, step in {"straight": straight, "random": random_step}.items():
    end = walk(oracle, mistaken, times, step)[-1]
    print(f"{name}: {(end < -0.4).double().mean():.1f} of them end on the left")

# %% [markdown]
# A straight walker carries an error to the very end. Fresh noise washes it out. So random walks forgive a network that
# is not quite right, if there is time for many steps.

# %% [markdown]
# ## 5 · Everything between: eta
#
# Straight and random steps are two ends of one family. At time s a clip must carry noise of the size $\sigma_s$. DDIM
# takes all of it from the old noise $\hat\varepsilon$. We may instead draw a part of it anew, as long as the variances
# add up to the same:
#
# $$x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - (\eta\tilde\sigma)^2}\; \hat\varepsilon + \eta\tilde\sigma\, z$$
#
# Here $\tilde\sigma$ is the standard deviation of the posterior, and $\eta$ (eta), from 0 to 1, says how much is drawn
# anew: nothing, or as much as DDPM draws. It is one line more than our straight step. The package's:

# %%
# from minit2v.samplers import ddim_step

# %%
# from minit2v.samplers import ddim

# %% [markdown]
# At $\eta = 1$ it must be DDPM. It does not look like it: there the coefficients came from two witnesses, here from
# mixing anew. But from the same noise they make the same walk:

# %% tags=["nbval-check-output"]
from minit2v.samplers import ddpm

times = process.times(50)
as_ddim = ddim(oracle, process, start, times, eta=1.0, generator=Generator().manual_seed(5))
as_ddpm = ddpm(oracle, process, start, times, generator=Generator().manual_seed(5))
print("the same:", torch.allclose(as_ddim, as_ddpm, atol=1e-10))
assert torch.allclose(as_ddim, as_ddpm, atol=1e-10)

# %% [markdown]
# (`ddpm` and `ddim` of the package are `walk` with their step inside.) Here are six walkers that all start at the
# *same* noise, for three values of eta:

# %%
def fan(eta):
    generator = Generator().manual_seed(0)

    def step(x, x0, t, s):
        return ddim_step(process, x, x0, t, s, eta, draw_noise(x.shape, generator).to(x))
    return times, walk(oracle, torch.full((6,), -0.7, dtype=torch.float64), times, step)


landscape({f"eta {eta}": fan(eta) for eta in (0.0, 0.3, 1.0)},
          alt="Eta 0: six walks on one line. Eta 0.3: a narrow fan. Eta 1: a wide fan that ends in both bands.")

# %% [markdown]
# ## 6 · Looking ahead: DPM-Solver++
#
# Straight steps are exact if the guess stays the same during the step. It does not. Watch one walker's guess along a
# very fine walk, and what a walk of eight steps makes of it:

# %%
def guesses_along(times, begin):
    """One walker's guess at each time it asks."""
    stations = walk(oracle, torch.tensor([begin], dtype=torch.float64), times, straight)
    return torch.stack([oracle(x, t)[0][0] for x, t in zip(stations[:-1], times[:-1])])


fine, coarse = torch.arange(1000, 199, -1), torch.arange(1000, 199, -100)
held = guesses_along(coarse, -0.9)[(1000 - fine[:-1]) // 100]                    # each guess, kept for a whole step
figures.plot({"where the guess is": guesses_along(fine, -0.9), "what eight steps hold": held}, x=1000 - fine[:-1],
             xlabel="way behind us, 1000 - t", ylabel="guess of the clean clip",
             alt="The guess falls smoothly; the eight steps hold it in a staircase that lags behind the curve.")

# %% [markdown]
# The staircase is always late. To mend it, draw a line through the last two guesses and follow it into the step. For
# that we need the right clock to draw the line over, and time t is not it.
#
# ### The clock
#
# Let $r = \alpha / \sigma$ say how many times as much clip there is as noise. Divide $x_t = \alpha_t \hat x_0 +
# \sigma_t \hat\varepsilon$ by $\sigma_t$, and it reads $x_t/\sigma_t = r_t\,\hat x_0 + \hat\varepsilon$. In a straight
# step the guess and the noise stay as they are; only $r$ grows. So the step adds
#
# $$\frac{x_s}{\sigma_s} - \frac{x_t}{\sigma_t} = (r_s - r_t)\, \hat x_0$$
#
# That is the area of a *rectangle*: as wide as $r$ has grown, and as high as the guess. A walk adds up one rectangle
# for each step. The more steps, the narrower they get, and in the end they fill the area under the curve of the
# guesses. **Sampling is an integral of the guesses.**

# %%
def ratio(t):
    """How many times as much clip as noise there is at time t."""
    return process.alpha(t) / process.sigma(t)

# %% tags=["nbval-check-output"]
x, t, s = torch.tensor([0.8], dtype=torch.float64), 600, 500
x0, _ = oracle(x, t)
grown = x / process.sigma(t) + (ratio(s) - ratio(t)) * x0
print("the same as the straight step:", torch.allclose(grown * process.sigma(s), straight(x, x0, t, s)))
print("\n".join(f"t = {t:4}: r = {ratio(t):5.2f}, log {ratio(t).log():5.2f}" for t in (1000, 600, 350, 100, 1, 0)))

# %% [markdown]
# But look at $r$: it creeps at first and leaps at the end, where the guess hardly changes any more. A line through
# guesses would be drawn over a badly stretched axis. Its logarithm goes more evenly, so we take $\lambda = \log r$
# instead. With $r = e^\lambda$ and $dr = e^\lambda\, d\lambda$ the area is
#
# $$\frac{x_s}{\sigma_s} - \frac{x_t}{\sigma_t} = \int_{r_t}^{r_s} \hat x_0 \; dr
#   = \int_{\lambda_t}^{\lambda_s} e^{\lambda}\, \hat x_0 \; d\lambda$$
#
# So λ is the solver's clock: about -2.7 at t = 1000, 0 where there is as much noise as clip, and rising without end
# towards t = 0.

# %% [markdown]
# ### The line
#
# A rectangle is a good one if it is as high as the curve is in the *middle* of the step: what it has too much on one
# side is missing on the other. DDIM makes it as high as the curve was at the beginning. What will the guess be in the
# middle? Over the last step, which had the length $h'$ on the clock λ, the guess changed by $\hat x_0 - \hat x_0'$.
# The coming step has the length $h$. If the guess goes on like this, then half-way through the step it will be
#
# $$\hat x_0 + \frac{h/2}{h'}\,(\hat x_0 - \hat x_0')$$
#
# Aim a straight step at this, and you have **DPM-Solver++(2M)** (Lu et al. 2022): second order, for it follows a line;
# M for *multistep*, for it remembers the step before. The network is not asked once more than before. The fraction
# first, with a guard for the places where there is no line to draw:

# %%
# from minit2v.samplers import extrapolation

# %%
# from minit2v.samplers import dpm_solver_pp_step

# %% [markdown]
# The walker from above, in eight steps by either sampler. The black curve is where the guess is, on a very fine walk;
# the area under it is the truth.

# %%
def aims(times, begin, ahead):
    """How high one walker's rectangles are: its guesses (DDIM), or with `ahead` the line's height half-way (2M)."""
    x, x0_last, t_last, heights = torch.tensor([begin], dtype=torch.float64), None, None, []
    for t, s in zip(times[:-1], times[1:]):
        x0, _ = oracle(x, t)
        beyond = extrapolation(process, t_last, t, s) * (x0 - x0_last) if ahead and x0_last is not None else 0
        heights.append(x0 + beyond)
        x, x0_last, t_last = straight(x, x0 + beyond, t, s), x0, t
    return torch.cat(heights)

# %%
curve, areas = guesses_along(fine, -0.9), {}
figure = Figure(figsize=(8, 2.8), layout="constrained")
for axes, (name, ahead) in zip(figure.subplots(1, 2, sharey=True), [("DDIM", False), ("DPM-Solver++(2M)", True)]):
    heights, widths = aims(coarse, -0.9, ahead), ratio(coarse).diff()
    areas[name] = (heights * widths).sum()
    axes.bar(ratio(coarse)[:-1], heights, widths, align="edge", color=figures.PALETTE["sky"], edgecolor="white")
    axes.plot(ratio(fine)[:-1], curve, color="black")
    axes.set(title=name, xlabel="r = alpha / sigma")
axes.figure.axes[0].set_ylabel("guess of the clean clip")
figures.picture(figure, "Eight bars hang from zero to a falling black curve. DDIM's end short of it; the curve passes "
                        "through the ends of those of DPM-Solver++.")

# %% tags=["nbval-check-output"]
truth = (curve * ratio(fine).diff()).sum()
print(f"area under the curve {truth:.2f};", ", ".join(f"{name}: {area:.2f}" for name, area in areas.items()))
assert abs(areas["DPM-Solver++(2M)"] - truth) < abs(areas["DDIM"] - truth) / 2

# %% [markdown]
# The whole sampler is a loop around this step:

# %%
# from minit2v.samplers import dpm_solver_pp

# %% [markdown]
# ### What it buys
#
# From t = 1000 to t = 200, with 5 to 160 steps; the exact ends are known from the ranks. Both axes are logarithmic, so
# that a power becomes a line, and its slope is the power.

# %%
crowd = exact(torch.linspace(-1.5, 1.5, 101, dtype=torch.float64), 200, 1000)    # they end evenly spread, at t = 200
target = exact(crowd, 1000, 200)
counts, errors = [5, 10, 20, 40, 80, 160], {"DDIM": [], "DPM-Solver++(2M)": []}
for n in counts:
    times = torch.linspace(1000, 200, n + 1).long()
    for name, sampler in zip(errors, (ddim, dpm_solver_pp)):
        errors[name].append((sampler(oracle, process, crowd, times) - target).abs().mean().item())

# %%
figure = Figure(figsize=(5.4, 3.0), layout="constrained")
axes = figure.subplots()
for (name, values), colour, mark in zip(errors.items(), ("blue", "orange"), "os"):
    axes.loglog(counts, values, color=figures.PALETTE[colour], marker=mark, label=name)
axes.set(xlabel="steps", ylabel="mean error at t = 200", xticks=counts, xticklabels=counts)
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend()
figures.picture(figure, "Two falling lines; that of DPM-Solver++ is twice as steep and ends far lower.")

# %% tags=["nbval-check-output"]
for name, values in errors.items():
    print(f"{name}, 20 steps: {values[2]:.4f}, 160 steps: {values[5]:.5f}")
    print(f"{name}: twice the steps divide the error by", *(f"{a / b:.1f}" for a, b in zip(values[2:], values[3:])))
by_two, by_four = (values[3] / values[4] for values in errors.values())
assert 1.9 < by_two < 2.1 and 3.5 < by_four < 4.5 and errors["DPM-Solver++(2M)"][2] < errors["DDIM"][5]

# %% [markdown]
# With 20 steps it is nearer to the truth than DDIM with 160. (Below 15 steps the package makes the last one a plain
# one, for a long line overshoots: hence the kink.)
#
# And to the very end? There the clock runs to infinity and no line can be drawn, so the step to t = 0 is always a
# plain one, and on this last stretch the two samplers lose the same. What is lost there is the last trace of noise.

# %% [markdown]
# ## 7 · The same walk, with clips
#
# None of these functions knows that x is a number. They work on each number by itself, and a clip is 4,096 of them.
# All that changes is who is asked: the network in the place of the oracle.
#
# Four prompts, and for each a *seed*, the number that decides the noise. They stay the same to the end of the chapter.

# %%
THINGS = [Thing("red", "circle", "right"), Thing("blue", "square", "grow"), Thing("green", "triangle", "left"),
          Thing("yellow", "star", "down")]
PROMPTS = ["a red circle moves right", "a blue square grows", "a green triangle moves left", "a yellow star moves down"]


def fresh_noise():
    """The noise of four clips, each from its own seed."""
    return draw_noise((4, 4, 16, 8, 8), [Generator().manual_seed(seed) for seed in range(4)])

# %% [markdown]
# The network answers with a velocity; `split` makes the pair $(\hat x_0, \hat\varepsilon)$ of it (chapter 04). The
# prompts go in as `context` (chapters 03 and 05), and the time as the network counts it, one less than ours.

# %%
context = pipe.encode_text(PROMPTS)                          # (4, 40, 128)


def ask_network(x, t):
    """The oracle's place: (x0, eps), each (4, 4, 16, 8, 8)."""
    velocity = pipe.unet(x, process.network_times(t, x), context)
    return process.split(velocity, x, t)

# %%
x = dpm_solver_pp(ask_network, process, fresh_noise(), process.times(12, "linspace"))
unguided = decode(x)
figures.strip(unguided, titles=PROMPTS, alt="Four strips of moving shapes, each below the prompt it was made from.")

# %% [markdown]
# These are clips, made by a sampler that you wrote down on a number line. Are they what was asked for? The referee of
# chapter 01 counts: colour, shape and motion of four clips, twelve answers in all.

# %%
def right_answers(clips):
    """How many of the twelve answers are right, of clips made of the four prompts."""
    return sum(agrees(read(clip), Scene((thing,)))[what]
               for clip, thing in zip(clips, THINGS) for what in ("colour", "shape", "motion"))


print("right:", right_answers(unguided), "of 12")

# %% [markdown]
# (Twelve answers are few, enough to see what helps a lot. Chapter 09 measures with hundreds, and says how sure one can
# be of the result.)
#
# ## 8 · Guidance
#
# A caption says what is to be seen, and still the network leaves room for much else: it has seen clips in which the
# caption mattered little. Guidance asks it *twice*, with the prompt and with an empty one, and looks at the
# difference: that is what the prompt changes. Then it goes further in the direction of that difference:
#
# $$\hat\varepsilon = \hat\varepsilon_\varnothing + g\,(\hat\varepsilon_c - \hat\varepsilon_\varnothing)$$
#
# $g$ is the `guidance_scale`. At 0 the prompt is ignored, at 1 the formula is just $\hat\varepsilon_c$, and above 1
# the prompt is exaggerated. The network can do both because one caption in ten was left empty in its training.
#
# ### Why this direction?
#
# The noise part of the answer is a slope in disguise: it points to where the world is *less* dense,
#
# $$\hat\varepsilon = -\sigma_t\, \frac{d}{dx} \log p_t(x)$$
#
# The oracle can be checked on this:

# %% tags=["nbval-check-output"]
x, t = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64), 300
slope = (density(x + 1e-5, t).log() - density(x - 1e-5, t).log()) / 2e-5
agree = torch.allclose(oracle(x, t)[1], -process.sigma(t) * slope, atol=1e-6)
print("the noise is minus sigma times the slope of the log density:", agree)
assert agree

# %% [markdown]
# And by Bayes' rule, $\log p(x | c) - \log p(x) = \log p(c | x) - \log p(c)$. The last term does not depend on x and
# has no slope. So the difference of the two noises is $-\sigma_t$ times the slope of $\log p(c | x)$; and since noise
# is what a step takes away, x moves along that slope: **in the direction in which x looks more like the prompt**. To
# multiply it by $g$ is to care $g$ times as much about the prompt. No second network is needed that would recognise
# prompts; hence the paper's name for it, *classifier-free guidance*, CFG for short (Ho & Salimans 2022).
#
# ### On the number line
#
# Let "left" be a caption that belongs to the left bell. An oracle that is told the caption knows one bell only: the
# same function with other weights.

# %%
told_left = partial(oracle, weights=torch.tensor([1.0, 0.0], dtype=torch.float64))


def exaggerate(cond, uncond, g):
    """A denoiser that compares two: (x, t) -> (x0, eps)."""
    def denoise(x, t):
        _, eps_cond = cond(x, t)
        _, eps_uncond = uncond(x, t)
        eps = eps_uncond + g * (eps_cond - eps_uncond)
        return (x - process.sigma(t) * eps) / process.alpha(t), eps
    return denoise

# %%
ends = {f"guidance {g}": ddim(exaggerate(told_left, oracle, g), process, start, process.times(50)) for g in (0, 1, 4)}
histograms(ends, top=4.8, alt="Guidance 0: both peaks. 1: the left peak alone. 4: a narrow spike beyond the left peak.")

# %% tags=["nbval-check-output"]
for name, end in list(ends.items())[1:]:
    print(f"{name}: {(end < -0.4).double().mean():.0%} on the left, mean {end.mean():.1f}, spread {end.std():.2f}")
assert round(ends["guidance 1"].std().item(), 2) == 0.18 and round(ends["guidance 4"].std().item(), 2) == 0.09

# %% [markdown]
# Here is the whole truth about guidance in three pictures. With this oracle, guidance 1 would be right already: all
# is on the left, in the shape of the left peak (only taller, for now everybody is there). Guidance 4 does *not* draw
# from "left". It goes where x is least like "right", beyond the peak, and crowds there: **more like the prompt, less
# variety, and a little too much of everything**. One uses it because networks are no oracles: their guidance 1 is too
# vague, and a bit of exaggeration puts that right.

# %% [markdown]
# ### In the network
#
# The package's `guided_denoiser` does three more things. It computes the text's keys and values once for all steps. It
# sends both halves through the network as one batch. And for guidance 1 it leaves out the half that would be
# multiplied by zero.

# %%
# from minit2v.diffusion import guided_denoiser

# %% [markdown]
# It mixes the network's answers before they are split, and for the mini model these are velocities, not noises. That
# is the same: $\varepsilon$ is $\sigma_t x_t + \alpha_t v$, the weights $g$ and $1 - g$ add up to 1, so what is mixed
# of the one is mixed of the other. Our own `exaggerate` around two plain denoisers agrees:

# %% tags=["nbval-check-output"]
uncond = pipe.encode_text([""])                              # (1, 40, 128)
x, t = fresh_noise()[:1], torch.tensor(700)
ours = exaggerate(guided_denoiser(pipe.unet, process, context[:1]), guided_denoiser(pipe.unet, process, uncond), 4.0)
theirs = guided_denoiser(pipe.unet, process, context[:1], uncond, guidance_scale=4.0)
same = torch.allclose(ours(x, t)[0], theirs(x, t)[0], atol=1e-3)
print("the same guess:", same)
assert same

# %% [markdown]
# What does it cost? We let the network count how many clips pass through it in one step.

# %% tags=["nbval-check-output"]
seen = []
counter = pipe.unet.register_forward_pre_hook(lambda network, inputs: seen.append(len(inputs[0])))
for g in (1.0, 4.0):
    guided_denoiser(pipe.unet, process, context[:1], uncond, guidance_scale=g)(x, t)
counter.remove()
print("clips through the network: guidance 1:", seen[0], "- guidance 4:", seen[1])
assert seen == [1, 2]

# %% [markdown]
# **Guidance doubles the price of a clip; guidance 1 costs half.** Now the sweep. The same noise and twelve steps for
# all:

# %%
def make(guidance_scale=4.0, steps=12, sampler=dpm_solver_pp, **how):
    """Latents of the four prompts: (4, 4, 16, 8, 8)."""
    denoise = guided_denoiser(pipe.unet, process, context, uncond, guidance_scale)
    return sampler(denoise, process, fresh_noise(), process.times(steps, "linspace"), **how)

# %%
scales = (1.0, 2.0, 4.0, 8.0, 16.0)
swept = {g: make(g) for g in scales}
guided = {g: decode(latents) for g, latents in swept.items()}
grids = [figures.strip([guided[g][i] for g in scales], titles=[f"guidance {g:g}" for g in scales],
                       frames=5, alt=f"{prompt}: five strips, guidance 1 to 16, ever harsher; the last may be broken.")
         for i, prompt in enumerate(PROMPTS)]
widgets.slider(grids, labels=PROMPTS, name="prompt")

# %% [markdown]
# Look from the top downwards: what does a little guidance improve, when do colours and edges become harsh, and when
# does the clip begin to break? In numbers:

# %%
for g in scales:
    size = swept[g].square().mean().sqrt()
    print(f"guidance {g:4}: {right_answers(guided[g]):2} of 12 right, size of the latents {size:.2f}")
assert swept[16.0].square().mean() > swept[1.0].square().mean()

# %% [markdown]
# Twelve answers are too few to show a small gain; what they can show is where too much begins to break the clip. The
# latents' size tells more: real clips have about 1, guidance 1 stays below that, and large guidance overshoots, as on
# the number line. What the best $g$ is depends on the network. The mini model's default is 4, the released model's 9.
#
# ### A prompt to go away from
#
# In the formula stands an answer to the *empty* prompt. Put another sentence in its place, and guidance goes away from
# that one instead: a **negative prompt**. The difference is then what tells the two sentences apart. A red circle that
# moves right, but please not on white; and not on black:

# %%
def without(negative, seeds=2):
    """Two clips of the first prompt, (2, F, H, W, 3)."""
    return pipe(PROMPTS[:1] * seeds, negative_prompt=negative, sampler="dpm++", num_inference_steps=12,
                seed=list(range(seeds)), progress=False)


negatives = ("", "a red circle moves right on white", "a red circle moves right on black")
rows = {negative: without(negative) for negative in negatives}
figures.strip([torch.cat([*clips[:, ::4]]) for clips in rows.values()],
              titles=[f"negative prompt: {negative or 'none'}" for negative in negatives],
              alt="Four frames each of two clips, with three negative prompts: the grounds change.")

# %%
brightness = {}
for negative, clips in rows.items():
    brightness[negative] = clips[:, :, :2, :2].float().mean((1, 2, 3, 4))        # (2,): of a corner, 0 to 255
    print(f"ground's brightness {[round(b.item()) for b in brightness[negative]]}, not: {negative or '-'}")
assert brightness[negatives[1]].mean() < brightness[negatives[2]].mean()

# %% [markdown]
# "Not white" goes towards black and "not black" towards white: as far away as it can. See also what became of the
# rest. Both sentences say "red circle" and "right", so these cancel in the difference, and **guidance no longer helps
# with what the two have in common**. A negative prompt says best only what you do not want.

# %% [markdown]
# ## 9 · How many steps?
#
# On the number line we knew the exact end. For a clip we do not, but we can take many steps and call that the end:
# here 24 of DPM-Solver++. Then each sampler makes the four clips in 3, 6 and 12 steps, from the same noise.

# %%
samplers = {"DPM-Solver++(2M)": dpm_solver_pp, "DDIM": ddim, "DDPM": ddpm}
randomness = {"DPM-Solver++(2M)": {}, "DDIM": {}, "DDPM": {"generator": Generator().manual_seed(0)}}
budgets = (3, 6, 12)
end = make(steps=24)
runs = {name: [make(steps=n, sampler=sampler, **randomness[name]) for n in budgets]
        for name, sampler in samplers.items()}

# %%
for name, made in runs.items():
    scores = ", ".join(f"{right_answers(decode(latents)):2} in {n} steps" for n, latents in zip(budgets, made))
    print(f"{name:16} right of 12: {scores}")
print(f"24 steps of DPM-Solver++: {right_answers(decode(end))}")

# %% [markdown]
# Twelve answers cannot tell good samplers apart. The distance to the end can, for the two that have one:

# %%
def apart(a, b):
    """Root mean square difference."""
    return (a - b).square().mean().sqrt().item()


figures.plot({name: [apart(latents, end) for latents in runs[name]] for name in ("DPM-Solver++(2M)", "DDIM")},
             x=budgets, xlabel="steps", ylabel="distance to the end",
             alt="Both curves fall with the number of steps.")

# %% [markdown]
# Three steps or twelve makes a large difference, and which of the two samplers a small one. At so few steps the
# second order hardly comes into play, for the first step and the last are plain ones; on the number line, too, the
# curves parted only later.
#
# The random sampler has no such end: its clip depends on the noise that it draws on the way, too. In twelve steps
# that need not lead it far. Here is the second clip of each, from the same start noise; look for what DDPM has made
# otherwise:

# %%
figures.strip(decode(torch.stack([*(made[-1][1] for made in runs.values()), end[1]])),
              titles=[*(f"{name}, 12 steps" for name in runs), "DPM-Solver++(2M), 24 steps"], frames=6,
              alt="Four strips of a blue square that grows; those of DPM-Solver++ and DDIM are nearly the same.")

# %% [markdown]
# ### The same seed, the same clip
#
# All chance is in the generators, and each clip has its own. So a seed is a name for a clip: the same one today and
# tomorrow, alone or in a list with others. (Across machines, rounding may differ in the last digit.)

# %% tags=["nbval-check-output"]
how = {"sampler": "dpm++", "num_inference_steps": 3, "progress": False}
first, again = (pipe(PROMPTS[1], seed=7, **how) for _ in range(2))
among = pipe(PROMPTS[:2], seed=[3, 7], **how)[1]
print("again, bit for bit:", torch.equal(first, again))
print("in a list, up to rounding:", (first.int() - among.int()).abs().max().item() <= 3)
print("another seed, another clip:", not torch.equal(first, pipe(PROMPTS[1], seed=8, **how)))
assert torch.equal(first, again)

# %% [markdown]
# ## 10 · Play
#
# The panel makes a clip of your own prompt. Begin with these four things to find out:
#
# - At which number of steps does a clip stop getting better?
# - Keep the seed and change one word. What stays?
# - Keep everything and change the seed. What stays?
# - Guidance 1, and guidance 16: which fails, and how?

# %%
def clip_of(prompt, negative, steps, guidance, seed):
    clip = pipe(prompt, negative_prompt=negative, sampler="dpm++", num_inference_steps=steps,
                guidance_scale=guidance, seed=seed, progress=False)
    return figures.play(clip, scale=4, alt=f"A clip, made from the prompt: {prompt}.")


widgets.panel(clip_of, prompt="a red circle moves right", negative="", steps=(12, 1, 50),
              guidance=(4.0, 1.0, 16.0), seed=0)

# %% [markdown]
# ## 11 · What the original does
#
# **ModelScope** uses DDIM with 50 steps, guidance 9 and eta 0, and nothing else can be chosen. It asks the network
# twice, one after the other, with the prompt and with the empty prompt; it knows no negative prompts. Its start noise
# is not seeded. Here is its loop, in its own way of counting, where 0 is the least noisy level:

# %%
def original_loop(denoise, x, n):
    """ModelScope's DDIM. The list `a` has no clean level: a[0] is our time 1."""
    a, stride = process.alphas_cumprod[1:], 1000 // n
    for step in (1 + torch.arange(0, 1000, stride)).clamp(0, 999).flip(0):
        _, eps = denoise(x, step + 1)
        x0 = (1 / a[step]).sqrt() * x - (1 / a[step] - 1).sqrt() * eps
        before = a[(step - stride).clamp(min=0)]
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    return x

# %% tags=["nbval-check-output"]
for n in (50, 30):
    theirs, ours = original_loop(oracle, start, n), ddim(oracle, process, start, process.times(n, "modelscope"))
    print(f"asked for {n}: {len(process.times(n)) - 1} steps, the same end: {torch.allclose(ours, theirs, atol=1e-9)}")
    assert torch.allclose(ours, theirs, atol=1e-9)
print(f"noise that is left at t = 1: {process.sigma(1):.2f}")

# %% [markdown]
# Look at `before`. `a[0]` is as far down as it gets, so the walk ends at our t = 1 and not at 0: the clip keeps a
# trace of noise, which the decoder does not show.
#
# **diffusers** runs the same weights with its `DDIMScheduler`, set to `steps_offset: 1` and `set_alpha_to_one:
# false`, which means this very loop, but *leading* times: for 50 steps the same, for 30 not. The two halves of
# guidance go as one batch, the unguided first. It takes a negative prompt, and skips guidance at 1 or below. The
# model card recommends `DPMSolverMultistepScheduler` with 25 steps: that is `dpm_solver_pp` on *linspace* times,
# 1000, 960, ... 41, 0. The project's tests compare all of these with diffusers, step by step.
#
# In our pipeline all of it is an argument: `sampler`, `num_inference_steps`, `guidance_scale`, `eta`, `spacing`,
# `seed`.

# %% [markdown]
# ## 12 · What can go wrong
#
# Sampling code fails without an error message. The shapes are right, the loop runs, and what comes out is a bit off,
# or very much so. So here are the classic mistakes. Each is wrong in **one place**; first on the number line, where
# you see exactly what it does, then in a clip.

# %%
def not_the_next(x, x0, t, s):
    """Goes to t - 1, when the next time asked is s."""
    return straight(x, x0, t, t - 1)


def noise_to_the_end(x, x0, t, s):
    """Draws noise as DDPM's step adds it on the way up, at the last step too."""
    toward_x0, keep_x, _ = posterior(process, t, s)
    added = process.sigma(t) ** 2 - (process.alpha(t) / process.alpha(s) * process.sigma(s)) ** 2
    return toward_x0 * x0 + keep_x * x + added.sqrt() * draw_noise(x.shape, noises).to(x)


def new_noise_on_top(x, x0, t, s):
    """eta = 1, but the old noise is not made smaller to make room for the new."""
    return straight(x, x0, t, s) + posterior(process, t, s)[2] * draw_noise(x.shape, noises).to(x)

# %%
times = process.times(15, "linspace")
MISTAKES = {
    "all right": (times, straight),
    "alpha-bar of t - 1, not of s": (times, not_the_next),
    "noise at the last step": (times, noise_to_the_end),
    "eta 1, old noise kept": (times, new_noise_on_top),
    "starts at t = 500": (torch.linspace(500, 0, 16).long(), straight),
    "stops at t = 200": (torch.linspace(1000, 200, 16).long(), straight),
}
histograms({name: walk(oracle, start, *how)[-1] for name, how in MISTAKES.items()},
           alt="All right: two peaks. The other five: smeared, too broad, or in the wrong place.")

# %%
denoise = guided_denoiser(pipe.unet, process, context[:1], uncond, 4.0)
broken = [walk(denoise, fresh_noise()[:1], *how)[-1] for how in MISTAKES.values()]         # (1, 4, 16, 8, 8) each
rows = [torch.cat([decode(latents)[0, ::4], figures.tint(latents[0, 1, ::4])]) for latents in broken]
figures.strip(rows, titles=list(MISTAKES),
              alt="Six rows: four frames of a clip, then a channel of their latents: noise in four, a jump in row 5.")

# %% [markdown]
# Each row shows four frames, and on the right one channel of their latents: the one that the autoencoder leaves empty
# (chapter 02), so that whatever shows in it is noise. The decoder forgives a good deal of that. (In the histograms even
# "all right" is too narrow: that is what fifteen steps lose, see section 3, and no mistake.) How to tell the mistakes
# apart:
#
# - **alpha-bar of t - 1** (alpha-bar is $\alpha^2$). The times jump by 67, and x is mixed for a neighbour. So x stays
#   almost as noisy as it was, while the network is told that the noise has gone. What comes out is noise. It happens
#   to everybody who turns a loop of a thousand steps into one of fifteen.
# - **Noise at the last step.** The peaks are right but too wide: a good clip under a grain in the latents, which the
#   decoder mostly hides. In DDPM's own thousand steps one would not see it; with fifteen it has the size of the last
#   stride. The posterior's own deviation is zero there.
# - **Old noise kept.** The variances must add up to $\sigma_s^2$. Here they add up to more, at every step, and the
#   network meets noise it was never told about.
# - **Starts at t = 500.** On the number line one hardly sees it, for a world of two bells, half dissolved, looks much
#   like pure noise. A clip does not: the network is told that half of this is clip, finds hardly an object in it, and
#   so makes a smaller one that does not hold together: in the last of the four frames it is back where it began.
# - **Stops at t = 200.** The list of times has been cut off below. Clip and noise, in the proportions of t = 200. The
#   decoder hides most of it; the latents and the histogram do not.
#
# Since you have two oracles, you need not look at clips to find such a mistake. **Test a sampler on a distribution
# whose answer you know**; it takes a second, and the project's own tests do it.
#
# ### Guidance the wrong way round
#
# This one leaves no noise. In the batch of two, which half is the prompt? Hand them over in the wrong
# order, and the formula becomes $\hat\varepsilon_c + g(\hat\varepsilon_\varnothing - \hat\varepsilon_c)$:

# %%
far = ddim(exaggerate(oracle, told_left, 4), process, start, process.times(50))
print(f"mean with guidance 4 towards left: {ends['guidance 4'].mean():.1f}, with the halves swapped: {far.mean():.1f}")

# %%
swapped = guided_denoiser(pipe.unet, process, uncond.expand_as(context), context, 4.0)
right = guided[4.0]
wrong = decode(dpm_solver_pp(swapped, process, fresh_noise(), process.times(12, "linspace")))
figures.strip([right[0], wrong[0], right[1], wrong[1]], frames=4,
              titles=[PROMPTS[0], "the same, swapped", PROMPTS[1], "the same, swapped"],
              alt="Two clips as asked for, and below each a clip that shows something else.")

# %%
print("right of 12:", right_answers(right), "- swapped:", right_answers(wrong))
assert right_answers(wrong) < right_answers(right)

# %% [markdown]
# A clip comes out, sharp, in strong colours, with everything in it but what you asked for. And the more guidance, the
# worse it gets: that is how to recognise it. **Guidance 1 is the test**: it must equal the prompt's answer alone, and
# with the halves swapped it equals the empty prompt's.

# %% [markdown]
# ## Recap
#
# 1. A guess is a mean of all that is still possible, and a mean of clips is no clip: so go a little way, and ask
#    again.
# 2. DDIM mixes guess and noise anew for the next time; DDPM draws part of the noise anew; eta lies between them.
# 3. In the clock λ sampling is an integral of the guesses. DPM-Solver++(2M) follows their line: half the step, a
#    quarter of the error.
# 4. Guidance asks twice and exaggerates the difference: more of the prompt, less variety, twice the price.
# 5. Times, ends and counting from 0 or 1 are part of a result. Test a sampler where the answer is known.
#
# What you now own: the whole way from noise to a clip, with every choice on it. Chapter 07 opens the network where it
# sees time.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/06_sampling](../exercises/06_sampling.ipynb).
#
# 1. **A step of DDIM** (build). Mix the guess, the old noise and fresh noise anew, for any eta.
# 2. **A step of DDPM** (build). Draw from the posterior, of which you know the mean and the variance.
# 3. **A step of DPM-Solver++(2M)** (build). Follow the line of the guesses.
# 4. **The prompt turned round** (repair). Somebody's guidance leads away from the prompt. Find out why.
# 5. **What a clip costs** (explore). Predict how many clips go through the network.
#
# And without a check, for an evening: walk DDIM from a clip *up* to noise and down again, and see how many steps bring
# the clip back. Guide only between two times, and count the passes that you save. Measure how far eight clips of one
# prompt lie apart, at guidance 1, 4 and 16.

# %% [markdown]
# ## References
#
# - J. Ho, A. Jain and P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv:2006.11239. Section 4 here.
# - J. Song, C. Meng and S. Ermon, *Denoising Diffusion Implicit Models*, 2020, arXiv:2010.02502. Sections 2 and 5.
# - C. Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models*, 2022,
#   arXiv:2211.01095. Section 6.
# - J. Ho and T. Salimans, *Classifier-Free Diffusion Guidance*, 2022, arXiv:2207.12598. Section 8.
# - S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2023, arXiv:2305.08891. What
#   linspace, leading and other spacings do.
# - T. Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, 2022, arXiv:2206.00364.
#   Straight and random steps, and what each forgives.
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The original.
