# %% [markdown]
# # 02 · The autoencoder
#
# A frame of our clips is 12,288 numbers, and nearly all of them say what their neighbours have said already. In this
# chapter you build one network that writes a frame down in 256 numbers, and a second one that draws the frame again
# from these. You train both, you look at what the 256 numbers mean, and you see why the diffusion model of the later
# chapters is trained on them and never sees a pixel.

# %% [markdown]
# ## What you will build
#
# The first cell collects what the chapter needs. Two small functions take pictures to a network and back, as in
# chapter 01, and a third one draws a frame of each scene in a list.

# %%
import math
import random
from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.course import figures
from minit2v.referee import agrees, read
from minit2v.video import to_uint8
from minit2v.world import COLOURS, Scene, Thing, combinations, render, sample_scene, sample_thing


# %%
def to_input(pictures):
    """Pictures as shown, (N, H, W, 3) uint8, as a network sees them: (N, 3, H, W), from -1 to 1."""
    return rearrange(pictures, "n h w c -> n c h w").float() / 127.5 - 1


def to_pictures(x):
    """The way back: (N, 3, H, W) -> (N, H, W, 3) uint8."""
    return to_uint8(rearrange(x, "n c h w -> c n h w"))


def frames_of(scenes, seconds=1.0):
    """One frame of each scene, as a network sees it: (N, 3, H, W)."""
    return to_input(render(scenes, seconds=torch.tensor([seconds]))[:, 0])

# %% [markdown]
# And here is where we are going. The finished autoencoder ships with the package. Its *encoder* turns each frame into
# *latents*: four channels of 8 x 8 numbers. Its *decoder* makes the frame again, out of nothing else.

# %%
vae = minit2v.load().autoencoder.requires_grad_(False)
rng = random.Random(207)
test = frames_of([sample_scene(rng, level) for level in (1, 1, 1, 1, 2, 2, 3, 3)])      # (8, 3, 64, 64)
latents = vae.encode(test)                                                             # (8, 4, 8, 8)
rebuilt = vae.decode(latents)                                                          # (8, 3, 64, 64)

# %%
def channels(latents):
    """The channels of latents (N, 4, h, w) as four rows of pictures: purple below zero, white zero, orange above."""
    return [figures.tint(latents[:, c]) for c in range(latents.shape[1])]


rows = ["frames", "latents, channel 0", "channel 1", "channel 2", "channel 3", "made again from the latents"]
figures.strip([to_pictures(test), *channels(latents), to_pictures(rebuilt)], titles=rows,
              alt="Eight frames; below them their latents, four rows of 8 by 8 coloured cells; then the frames again.")

# %% [markdown]
# (One channel is blank, and not by mistake; section 8 tells why.)
#
# **You need** chapter 01, and of PyTorch: `nn.Module`, convolutions, a training loop. What *attention* and
# *group normalisation* are is explained here.
#
# **It takes** about 75 minutes to read and play with. All cells together run in two minutes on one core; more than
# half of that is the training in section 6.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | numbers of a clip: pixels, latents | 196,608 and 4,096, that is 48 times fewer |
# | parameters of our encoder and decoder | 259,248 and 428,323 |
# | parameters of the released autoencoder | 83,653,863 |
# | how far a wrong padding moves the picture | 7 pixels |
# | clips that the referee still reads right after a passage, of 40 | 36 or more |

# %% [markdown]
# ## 1 · Why smaller
#
# Count first. A clip has 16 frames of 64 x 64 pixels with 3 colours. Its latents have 16 frames of 8 x 8 cells with 4
# channels.

# %% tags=["nbval-check-output"]
pixels, cells = 16 * 3 * 64 * 64, 16 * 4 * 8 * 8
print(f"{pixels:,} and {cells:,}, that is {pixels // cells} times fewer")
assert pixels == 48 * cells

# %% [markdown]
# For the released model it is the same ratio: its frames of 256 x 256 pixels become 32 x 32 cells. And fewer numbers
# save more than memory. In an attention layer, each place looks at each other place, so its work grows with the
# *square* of the number of places. A frame has 64 times fewer cells than pixels, and 64 squared is 4,096.
#
# ### Without a network
#
# Do we need a network for this? The simplest way to shrink a picture is to replace each block of 8 x 8 pixels by its
# mean. That leaves 3 numbers a block. A bit less simple: a block is a list of 192 numbers; find the four directions
# along which such lists differ most, and keep how far the block lies along each of them. This is *principal
# component analysis*, and no linear map can do better with four numbers.

# %%
rng = random.Random(0)
many = frames_of([sample_scene(rng, rng.choice((1, 2))) for _ in range(400)])
blocks = rearrange(many, "n c (h y) (w x) -> (n h w) (c y x)", y=8, x=8)                # (N 64, 192)
centre = blocks.mean(0)
directions = torch.linalg.svd(blocks - centre, full_matrices=False).Vh[:4]             # (4, 192)

# %%
own = rearrange(test, "n c (h y) (w x) -> (n h w) (c y x)", y=8, x=8)
four = (own - centre) @ directions.T                         # (8 x 64, 4): four numbers a block
linear = rearrange(four @ directions + centre, "(n h w) (c y x) -> n c (h y) (w x)", h=8, w=8, y=8, x=8)
means = F.interpolate(F.avg_pool2d(test, 8), scale_factor=8)

figures.strip([to_pictures(x) for x in (test, means, linear)], titles=["frames", "mean of each block", "best four "
              "linear numbers"], alt="Eight frames; the same in coarse blocks; the same as blurred blocks with smears.")

# %% [markdown]
# To compare pictures by a number, we use the *peak signal-to-noise ratio*. It is the mean squared error, told in
# decibels, and larger is better. Six decibels more are a quarter of the mean squared error, that is, half of its
# root.
#
# $$\text{PSNR} = 10 \log_{10} \frac{2^2}{\text{mean squared error}} \qquad \text{(2 is the range, from -1 to 1)}$$

# %%
def psnr(rebuilt, frames):
    """Peak signal-to-noise ratio of pictures (N, 3, H, W) in decibels."""
    return (10 * torch.log10(4 / (rebuilt.clamp(-1, 1) - frames).square().mean())).item()

# %%
for name, x in {"means": means, "linear": linear, "our autoencoder": rebuilt}.items():
    print(f"{name:16} {psnr(x, test):.1f} dB")
assert psnr(rebuilt, test) > psnr(linear, test) + 6

# %% [markdown]
# The network has as many numbers a block as the linear map, and the root of its mean squared error is less than half
# of that map's (6 dB are half). It can, because a block is not any 192 numbers: it is ground, or inside of a thing,
# or an edge of one, at some angle, between two of a few colours. To use what it knows it must bend, and *not be
# linear*.

# %% [markdown]
# ## 2 · The parts of the encoder
#
# ### Group normalisation
#
# Deep networks learn better if the numbers inside keep a steady size. *Group normalisation* sees to it: it takes the
# channels of one picture in groups, and makes the mean of each group 0 and its spread 1.
#
# $$y = \frac{x - \text{mean}}{\sqrt{\text{variance} + 10^{-6}}} \qquad \text{both over a group and all pixels}$$

# %%
def group_norm_by_hand(x, groups, eps=1e-6):
    """(N, C, H, W): each picture by itself, each group of channels to mean 0 and variance 1."""
    g = rearrange(x, "n (g c) h w -> n g (c h w)", g=groups)
    g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return rearrange(g, "n g (c h w) -> n (g c) h w", h=x.shape[2], w=x.shape[3])

# %% tags=["nbval-check-output"]
x = 5 + 3 * torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
theirs = nn.GroupNorm(4, 8, eps=1e-6)(x)
print("as PyTorch's:", torch.allclose(group_norm_by_hand(x, 4), theirs, atol=1e-5))

# %% [markdown]
# (PyTorch's layer also has a scale and a shift for each channel, which it learns and which begin as 1 and 0.) The
# better-known *batch* normalisation takes its means over the whole batch instead. Then a frame would come out
# differently in other company. For frames of a clip, that would be flicker.
#
# ### The residual block
#
# Most of the network is made of this one part. It normalises, bends (SiLU is $x \cdot \text{sigmoid}(x)$, a smooth
# kink) and convolves, twice. And then it **adds** the result to its input. So a block need not pass the picture on; it
# learns what to change about it. This is called *residual*.

# %%
from minit2v.autoencoder import EPS, GroupNorm, silu
from minit2v.winograd import Conv3x3

# %%
# from minit2v.autoencoder import ResBlock

# %% [markdown]
# (The package's `GroupNorm` and `silu` give PyTorch's numbers. They only mind the order in which these lie in memory,
# and save a copy where they can. `Conv3x3` is PyTorch's convolution of 3 x 3 pixels with a rim of zeros; in the
# released model's wide layers it takes a short cut to the same numbers.) If the last convolution says nothing, the
# block does nothing:

# %% tags=["nbval-check-output"]
block = ResBlock(8, 8, groups=4)
nn.init.zeros_(block.conv2.weight)
nn.init.zeros_(block.conv2.bias)
print("does nothing:", torch.equal(block(x), x), "- to 16 channels:", tuple(ResBlock(8, 16, groups=4)(x).shape))

# %% [markdown]
# ### Half the size, and where it looks
#
# On its way down, the encoder halves height and width three times, each time with a convolution that moves in steps
# of two pixels.

# %%
# from minit2v.autoencoder import Downsample

# %% [markdown]
# A 3 x 3 kernel needs one row and one column more than there are. This layer adds them **below and to the right
# only**. The usual way, `padding=1`, adds them on all four sides. Both halve the size. What is the difference? Take a
# picture in which each pixel holds its own column number, and a kernel that copies the pixel in its middle:

# %% tags=["nbval-check-output"]
columns = torch.arange(8.0).expand(1, 1, 8, 8)
middle_pixel = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))   # (1, 1, 3, 3): a one in the middle, zeros around
right = F.conv2d(F.pad(columns, (0, 1, 0, 1)), middle_pixel, stride=2)
both = F.conv2d(columns, middle_pixel, stride=2, padding=1)
print("right and below:", right[0, 0, 0].tolist(), "\nall sides:      ", both[0, 0, 0].tolist())

# %% [markdown]
# Two pixels become one, whose true centre lies between them, at 0.5, 2.5, 4.5 and so on. The first way looks half a
# pixel to the right of that, the second half a pixel to the left. Neither is better. But a network that was trained
# with one of them is used to it, and released weights were trained with the first. At the end of the chapter you will
# see what becomes of a picture if you take the other.
#
# ### One look at everything
#
# Convolutions see a neighbourhood. At the bottom, where the picture is only 8 x 8, there is one layer in which every
# cell looks at every other one. It is called *attention*. Each cell has a *query* q (what am I looking for?), a *key*
# k (what am I?) and a *value* v (what do I tell?), all three linear maps of its channels. The better a query fits a
# key, the more of that value it receives.
#
# $$\text{out}_i = \sum_j w_{ij} v_j \qquad w_{ij} = \text{softmax}_j \left( \frac{q_i \cdot k_j}{\sqrt{C}} \right)$$

# %%
def attention_by_hand(q, k, v):
    """(N, places, C) each: the mean of all values, weighted by how well each key fits the query."""
    scores = torch.einsum("nic,njc->nij", q, k) / math.sqrt(q.shape[-1])                # (N, places, places)
    return torch.einsum("nij,njc->nic", scores.softmax(-1), v)

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(3, 2, 64, 16, generator=torch.Generator().manual_seed(0))
print("as PyTorch's:", torch.allclose(attention_by_hand(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5))

# %% [markdown]
# The package's layer is this, once, with the residual addition of before. (Chapter 05 is all about attention. Here
# one such layer is enough.)

# %%
# from minit2v.autoencoder import PixelAttention

# %% [markdown]
# ### The whole encoder
#
# Residual blocks and a step down make a *level*; block, attention, block make the *middle*.

# %%
# from minit2v.autoencoder import Level

# %%
# from minit2v.autoencoder import middle

# %% [markdown]
# The encoder is four levels and a middle. Its sizes come from a *configuration*. Ours is narrow, 8 to 64 channels;
# the released one has 128 to 512.

# %%
from minit2v.config import AutoencoderConfig, mini

print(mini().autoencoder)

# %%
# from minit2v.autoencoder import Encoder

# %% [markdown]
# Watch a batch of frames on its way down. A *hook* is a function that PyTorch calls when a layer is done.

# %% tags=["nbval-check-output"]
encoder = Encoder(mini().autoencoder)
for name, part in [("conv_in", encoder.conv_in), *((f"level {i}", part) for i, part in enumerate(encoder.levels)),
                   ("middle", encoder.middle), ("conv_out", encoder.conv_out)]:
    part.register_forward_hook(lambda part, given, out, name=name: print(f"{name:9} {tuple(out.shape)}"))
moments = encoder(test)

# %% [markdown]
# The picture gets smaller and deeper, and in the end 64 x 64 x 3 numbers have become 8 x 8 x 8. But there should be
# *four* channels of latents, and here are eight. The other four are the subject of the next section.

# %% [markdown]
# ## 3 · A cloud instead of a point
#
# An encoder that answers with a point is free to put its points anywhere, say red circles here and blue ones far
# away, with nothing in between. The decoder would then know what to do with exactly these points. But it will have to
# decode what a diffusion model makes, and that is always a little beside.
#
# So we make the decoder learn *neighbourhoods*. For each latent number, the encoder answers with a small Gaussian
# cloud: a mean $\mu$, and a spread $\sigma$. In training, the decoder is given a random point of the cloud. It is a
# *variational* autoencoder, a VAE, and the cloud is called the *posterior*: it is what is known of the latents once
# the frame has been seen.
#
# Here are the clouds of one cell in the middle of a frame, in which a big circle of each colour lies. Only two of the
# four channels fit on paper. An ellipse reaches one spread $\sigma$ to each side. (The clouds are those of the shipped
# autoencoder.)

# %%
circles = frames_of([Scene((Thing(colour, "circle", "stay", size="big"),), ground="white") for colour in COLOURS])
mean, logvar = vae.posterior(circles)                                                  # (8, 4, 8, 8) each
cell, spread = mean[:, :, 3, 3], torch.exp(0.5 * logvar)[:, :, 3, 3]                   # (8 colours, 4 channels)

# %%
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

figure = Figure(figsize=(5.5, 4), layout="constrained")
axes = figure.subplots()
for name, (x, y), (wide, high) in zip(COLOURS, cell[:, 2:].tolist(), spread[:, 2:].tolist()):
    axes.add_patch(Ellipse((x, y), 2 * wide, 2 * high, color=[c / 255 for c in COLOURS[name]], alpha=0.4))
    axes.text(x, y, name, ha="center", va="center")
axes.autoscale_view()
axes.set(xlabel="channel 2", ylabel="channel 3")
figures.picture(figure, alt="Eight small ellipses, one for each colour; like colours lie side by side.")

# %% [markdown]
# Nobody told the network about colours. Still, like ones lie side by side: cyan, blue, purple and pink in one row, red,
# orange and yellow in another. A point that misses its cloud a little becomes a colour that is a little off. That is
# what neighbourhoods are good for.
#
# ### Why the logarithm
#
# A spread must be positive, and a network's output is any number. So the encoder names the *logarithm of the
# variance*, `logvar`. From it, $\sigma^2 = e^{\text{logvar}}$ and $\sigma = e^{\text{logvar} / 2}$, whatever it says.

# %% tags=["nbval-check-output"]
for value in (-4.0, -2.0, 0.0, 2.0):
    print(f"logvar {value:4} -> sigma {math.exp(0.5 * value):.2f}")

# %% [markdown]
# ### Past the dice
#
# Drawing a random point has a snag. PyTorch can draw it, but no gradient comes back through the dice:

# %% tags=["nbval-check-output"]
mean, logvar = torch.zeros(5, requires_grad=True), torch.zeros(5, requires_grad=True)
drawn = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).sample()
print("can learn from it:", drawn.requires_grad)

# %% [markdown]
# The way out is to throw the dice *first*: draw $\varepsilon$ from $N(0, 1)$, which has nothing to learn, then stretch
# and shift it.
#
# $$z = \mu + \sigma \varepsilon$$
#
# It has the same distribution, and $\mu$ and $\sigma$ enter by plain arithmetic, with gradients. This is the
# *reparametrisation trick*.

# %%
# from minit2v.autoencoder import sample

# %% tags=["nbval-check-output"]
z = sample(mean, logvar, torch.Generator().manual_seed(0))
z.sum().backward()
print("gradients reach mean:", mean.grad.tolist(), "and logvar:", bool(logvar.grad.abs().sum() > 0))

# %% [markdown]
# ## 4 · A price on information: the KL term
#
# Left alone, an encoder would make its clouds tiny and put them far apart. Then it is back to points. So each cloud is
# pulled gently towards one and the same standard cloud, $N(0, 1)$. How far it is from that is measured by the
# *Kullback-Leibler divergence*, and for Gaussians it is a short formula (Kingma & Welling 2014, appendix B):
#
# $$\text{KL} = \tfrac{1}{2} \left( \mu^2 + \sigma^2 - 1 - \log \sigma^2 \right)$$

# %%
def kl_to_standard(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each number, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)

# %% [markdown]
# PyTorch knows this divergence too, by other code. Are we right?

# %% tags=["nbval-check-output"]
mean, logvar = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
normal = torch.distributions.Normal
oracle = torch.distributions.kl_divergence(normal(mean, torch.exp(0.5 * logvar)), normal(0.0, 1.0))
print("as torch.distributions:", torch.allclose(kl_to_standard(mean, logvar), oracle, atol=1e-9))

# %%
means = torch.linspace(-3, 3, 61)
curves = {f"σ = {s:g}": kl_to_standard(means, torch.tensor(2 * math.log(s))) for s in (1.0, 0.5, 0.1, 0.01)}
figures.plot(curves, x=means, xlabel="mean μ", ylabel="KL (nats)",
             alt="KL over the mean: four parabolas, lowest at mean 0; the smaller the spread, the higher they lie.")

# %% [markdown]
# It is zero for the standard cloud alone. A cloud pays for lying off the centre, and it pays for being small. A cloud
# at 0 with spread 1 is the cheapest, and it tells the decoder nothing: it is the same whatever the frame. So this is
# a **price on information**. It is counted in *nats*, the unit of the natural logarithm; divided by log 2, in bits.

# %%
mean, logvar = vae.posterior(test)
bits = kl_to_standard(mean, logvar).sum((1, 2, 3)) / math.log(2)
print("bits a frame:", [round(b) for b in bits.tolist()])

# %% [markdown]
# The shipped encoder tells a frame in a few hundred bits, and it spends the most on those with a pattern. Why it is so
# thrifty, and what that is good for, is for section 8.

# %% [markdown]
# ## 5 · The decoder and the loss
#
# The decoder is the encoder in a mirror. To double a picture, it repeats each pixel twice in both directions, and a
# convolution smooths the stairs. (Where no gradient is wanted, the package does the two in one step, `doubled_conv`,
# with the same result for half of the work.)

# %%
from minit2v.upsample import doubled_conv

# %%
# from minit2v.autoencoder import Upsample

# %%
# from minit2v.autoencoder import Decoder

# %% [markdown]
# Put together, this is your autoencoder. `chunk` cuts the eight channels into the means and the log-variances. The
# clouds begin small, with a spread of 0.14; otherwise the decoder would at first be handed nothing but dice.

# %%
class FrameVAE(nn.Module):
    """Frames (N, 3, H, W) -> made again, and the clouds they went through: mean and logvar, (N, 4, h, w) each."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.encoder.conv_out.bias.data[config.latent_channels:] = -4.0      # logvar at first: sigma is exp(-2)

    def forward(self, frames, generator):
        mean, logvar = self.encoder(frames).chunk(2, dim=1)
        return self.decoder(sample(mean, logvar, generator)), mean, logvar

# %% tags=["nbval-check-output"]
model = FrameVAE(mini().autoencoder)
counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
print(f"{counts[0]:,} parameters in the encoder, {counts[1]:,} in the decoder")
assert counts == [259_248, 428_323]

# %% [markdown]
# What should it learn? To make the frame again, and to pay little. The error counts twice, as an absolute value, which
# keeps edges sharp, and as a square, which punishes the rare large mistake. The KL term counts with a weight
# that we shall call the *pull*.
#
# $$\text{loss} = \text{mean} \, |\hat{x} - x| + \text{mean} \, (\hat{x} - x)^2
#   + \text{pull} \cdot \frac{\text{sum of KL}}{\text{number of pixel values}}$$

# %%
def vae_loss(frames, rebuilt, mean, logvar, pull):
    """The two terms of the loss, as numbers a pixel value: what was drawn wrong, and what the clouds cost."""
    error = rebuilt - frames
    wrong = error.abs().mean() + error.square().mean()
    cost = kl_to_standard(mean, logvar).sum() / frames.numel()
    return wrong + pull * cost

# %% [markdown]
# The package's `Autoencoder` has the same loss as a method. The same frames and the same seed must give the same
# number:

# %% tags=["nbval-check-output"]
mean, logvar = vae.posterior(test)
z = sample(mean, logvar, torch.Generator().manual_seed(7))
mine = vae_loss(test, vae.decoder(vae.post_quant_conv(z)), mean, logvar, pull=0.1)
theirs, _ = vae.loss(test, torch.Generator().manual_seed(7), kl_weight=0.1)
print("as the package's:", torch.allclose(mine, theirs, atol=1e-6))

# %% [markdown]
# ## 6 · Training
#
# ### What to train on
#
# In most of our frames most pixels are ground. A network that only gets the ground right has a small error already,
# and it takes its time to learn the difference between red and orange, which concerns few pixels. So we crowd the
# frames: up to nine things, anywhere, one on another.

# %%
def crowded(rng, count):
    """Frames full of things, as a network sees them: (count, 3, 64, 64)."""
    scenes = []
    for _ in range(count):
        scene = sample_scene(rng, rng.choice((1, 2)))
        more = [sample_thing(rng, *rng.choice(combinations())) for _ in range(rng.choice((1, 3, 5, 7)))]
        scenes.append(replace(scene, things=(*scene.things, *more)))
    return frames_of(scenes, seconds=rng.uniform(0, 2))

# %%
rng = random.Random(1)
crowd = torch.cat([crowded(rng, 64) for _ in range(8)])                                # (512, 3, 64, 64)
figures.strip(to_pictures(crowd[::64]), scale=2,
              alt="Eight frames, each full of coloured shapes that lie on one another.")

# %% [markdown]
# From these 512 frames we cut squares of 32 x 32 pixels, at random places. A square costs a quarter of a frame, and
# what a convolution learns on a part holds for the whole. (The original, too, learnt from squares of 256 pixels, and
# is used on frames of any size.)

# %%
def cut_out(frames, rng, count=16, size=32):
    """Squares of `count` random frames, all from one random place: (count, 3, size, size)."""
    y, x = rng.randrange(65 - size), rng.randrange(65 - size)
    return frames[rng.sample(range(len(frames)), count), :, y:y + size, x:x + size]

# %% [markdown]
# ### The loop
#
# Cut, compute the loss, go a step down. The steps are small at first, then large, then small again. From time to time
# we keep how the network draws the eight test frames. They are whole frames, and it is not trained on them.
#
# One thing is not plain Adam: the large weight matrices are in the care of *Muon*, an optimizer that goes a step of the
# same length in all directions of a matrix, the rare ones too. In a run as short as ours that is a gain of several
# decibels. (`minit2v/muon.py` has it, on one page, with its source.)

# %%
from minit2v.muon import Muon, split

# %%
def redraw(model, frames):
    """Frames made again from the means of their clouds, without dice."""
    with torch.no_grad():
        return model.decoder(model.encoder(frames).chunk(2, dim=1)[0])


def train_vae(model, steps, pull, lr=5e-3, look_at=()):
    """Trains a FrameVAE. Returns the loss of each step, and the test frames as drawn at the steps `look_at`."""
    matrices, others = split(model, list(model.parameters()))
    optimizers = [Muon(matrices, lr), torch.optim.Adam(others, lr)]
    rng, generator, losses, looks = random.Random(0), torch.Generator().manual_seed(0), [], []
    for step in range(steps + 1):
        if step in look_at:
            looks.append(redraw(model, test))
        frames = cut_out(crowd, rng)
        loss = vae_loss(frames, *model(frames, generator), pull)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20, 2 - 2 * step / (steps + 1))
            optimizer.step()
        losses.append(loss.item())
    return losses, looks

# %% [markdown]
# Now let it run. It takes about a minute.

# %%
torch.manual_seed(0)                                         # decides the first weights
model, steps = FrameVAE(mini().autoencoder), (30, 100, 250, 500)
losses, looks = train_vae(model, steps[-1], pull=1e-3, look_at=steps)

# %%
smooth = torch.tensor(losses[1:]).reshape(-1, 10).mean(1)    # means of ten steps
figures.plot({"loss": smooth}, x=5 + 10 * torch.arange(len(smooth)), xlabel="step", ylabel="loss",
             alt="The loss falls steeply at first, then slowly, over 500 steps.")

# %%
figures.strip([to_pictures(x) for x in (*looks, test)], titles=[f"after {n} steps" for n in steps] + ["the frames"],
              frames=6, alt="Six of the test frames as drawn after 30, 100, 250 and 500 steps, and as they are.")

# %% [markdown]
# First there is mush. Then come the grounds, then where something is, then colours: warm or cold first, most of them
# in the end. Corners are last. What is large and common is learnt before what is small and rare. Keep that in mind: the
# UNet of the later chapters learns in the same order.

# %%
for n, x in zip(steps, looks):
    print(f"after {n:3} steps: {psnr(x, test):.1f} dB")
print(f"best four linear numbers: {psnr(linear, test):.1f} dB, shipped: {psnr(rebuilt, test):.1f} dB")
assert psnr(looks[-1], test) > 20

# %% [markdown]
# After a minute it is about as good as the best that is linear, and it has just begun. The shipped autoencoder has the
# same layers, but it had many thousand steps, and a stronger pull; section 8 tells what that changes.

# %% [markdown]
# ## 7 · What the latents say
#
# Here are your latents, above, and the ones that ship, below.

# %%
with torch.no_grad():
    mean, logvar = model.encoder(test).chunk(2, dim=1)
figures.strip([to_pictures(test), *channels(mean / mean.std()), *channels(latents)],
              titles=["frames", *(f"{whose}, channel {c}" for whose in ("yours", "shipped") for c in range(4))],
              alt="Eight frames, and below each eight small maps of cells in which the object shows in many colours.")

# %% [markdown]
# Three things can be seen. Latents are still *pictures*: where the object is, the cells differ from the ground. No
# channel is "red" or "circle"; each mixes colour, ground and edge in its own way. And the two networks speak different
# languages, since nobody told them what to put where. (The shipped one writes with more contrast; section 8 tells why.)
# So latents of one autoencoder mean nothing to the decoder of another:

# %%
with torch.no_grad():
    crossed = model.decoder(vae.posterior(test)[0])
figures.strip([to_pictures(test), to_pictures(crossed)], titles=["frames", "shipped encoder, your decoder"],
              frames=5, alt="Five frames, and what the wrong decoder makes of their latents: wildly coloured ripples.")

# %% [markdown]
# The language is spatial, though. Shift the latents by one cell, and the picture shifts by eight pixels:

# %%
shifted = latents.roll(1, dims=3)                            # one cell to the right
figures.strip([to_pictures(x) for x in (test, vae.decode(shifted))], titles=["frames", "latents shifted by one cell"],
              frames=5, scale=2, alt="Five frames, and the same with everything an eighth of the frame further right.")

# %% [markdown]
# The spreads say something as well. Where is the encoder sure?

# %%
sigma = torch.exp(0.5 * vae.posterior(test)[1]).mean(1)      # (8, 8, 8): mean over the channels
figures.heat(list(sigma[:3]), titles=[f"σ, frame {i}" for i in range(3)], size=2.6, limits=(0, 1), xlabel="cell",
             alt="Three maps of the spread: 0.8 on the ground, half of that where the object lies.")

# %% [markdown]
# On the ground most is left to the dice: a spread near 1 costs next to nothing, and tells next to nothing. Bits are
# spent where something is.

# %% [markdown]
# ## 8 · The pull: sharp pictures or robust latents
#
# How strong should the pull be? To see it, take your trained network three times, and train each a bit further: one
# with the weak pull of before, one with a pull fifty times as strong, one with a thousand times. (Half a minute.)

# %%
pulls = {"weak": 0.001, "middle": 0.05, "strong": 1.0}
models = {name: deepcopy(model) for name in pulls}
for name, one in models.items():
    train_vae(one, 100, pulls[name], lr=3e-3)

# %%
print("pull    spread  size of means  bits a frame  PSNR of the mean  of a sample")
for name, one in models.items():
    with torch.no_grad():
        mean, logvar = one.encoder(test).chunk(2, dim=1)
        drawn = one.decoder(sample(mean, logvar, torch.Generator().manual_seed(0)))
    bits = kl_to_standard(mean, logvar).sum((1, 2, 3)).mean() / math.log(2)
    print(f"{name:7} {torch.exp(0.5 * logvar).mean():6.3f} {mean.std():14.2f} {bits:13.0f} "
          f"{psnr(redraw(one, test), test):17.1f} {psnr(drawn, test):12.1f}")

# %% [markdown]
# A strong pull makes wide clouds, and each frame must make do with a fraction of the bits. The price is sharpness,
# here about one decibel. A weak pull makes tiny clouds and spends bits as it likes; mean and sample are then the
# same. If pictures were all, weak would be the choice, and it was Stable Diffusion's, whose weight is a millionth.
#
# Now the other side. A diffusion model will hand latents to the decoder that are never quite right. So add noise,
# half as large as the latents themselves, and decode:

# %%
eps = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
noisy = {}
with torch.no_grad():
    for name, one in models.items():
        mean = one.encoder(test).chunk(2, dim=1)[0]
        noisy[name] = one.decoder(mean + 0.5 * mean.std() * eps)
figures.strip([to_pictures(x) for x in noisy.values()], titles=[f"{name} pull" for name in noisy], frames=4,
              alt="Three rows of frames decoded from noisy latents; those of the strong pull are the least broken.")

# %%
print({name: round(psnr(x, test), 1) for name, x in noisy.items()})
assert psnr(noisy["strong"], test) > psnr(noisy["weak"], test)

# %% [markdown]
# ### Fine print
#
# What is it that breaks? Colours, first of all. So measure how large they are written. How far do the latents of an
# orange circle lie from those of a red one, as a share of how far the red circle lies from its ground?

# %%
def colour_distance(one, other):
    """How far two colours' latents lie apart, as a share of the distance of the first one from the white ground."""
    things = [Thing(colour, "circle", "stay", size="big") for colour in (one, other)]
    z = vae.encode(frames_of([Scene((thing,), ground="white") for thing in things]))
    thing, ground = z[:, :, 3:5, 3:5], z[:1, :, :1, :1]      # four cells inside of each circle; one in a corner
    return ((thing[0] - thing[1]).norm() / (thing[0] - ground).norm()).item()

# %%
for pair in [("red", "orange"), ("blue", "cyan"), ("purple", "pink")]:
    print(f"{' and '.join(pair):16} {colour_distance(*pair):.2f}")
assert colour_distance("red", "orange") > 0.2

# %% [markdown]
# A third to a half, in the shipped autoencoder. That is no accident, and it decided about this course's model. Our
# first autoencoder was trained for thousands of steps with the weak pull, and drew frames without fault. But in its
# latents red and orange lay apart by a *tenth* of what the thing lay apart from its ground. An encoder under a weak
# pull may write in **fine print**: small differences on top of a large one. Its own decoder can read that, for in
# training it is handed latents with hardly any noise. The UNet cannot. It learns the large first, as your network did
# above, and it never came to read the small: it painted one circle in several hues.
#
# A strong pull is a strong noise, and what has to survive it must be **written large**. So the shipped autoencoder was
# trained with a pull of 1, a million times the original's.
#
# The price shows in another way as well. Look at the four channels of the shipped encoder, one by one:

# %%
mean, logvar = vae.posterior(many)
for c in range(4):
    print(f"channel {c}: size of the means {mean[:, c].std():.2f}, spread {torch.exp(0.5 * logvar[:, c]).mean():.2f}")

# %% [markdown]
# In channel 1 the means are 0 and the spread is 1, whatever the frame. It tells nothing and costs nothing: at this
# price, the encoder found three channels enough for our small world, and gave the fourth back. When that happens to
# *all* channels, nothing is learnt at all. It is called **posterior collapse**, and it is why the pull cannot be raised
# at will.
#
# And the sharpness that a strong pull costs? Some of it can be had back. When the latents are settled, the *decoder
# alone* is trained further, on latents with little noise, such as the UNet will hand it. It gets sharp again, and no
# latent changes. (For Stable Diffusion, too, there is a decoder that was finished in this way; it is known as
# ft-MSE.)

# %% [markdown]
# ## 9 · Why 0.18215: latents of unit size
#
# Chapter 04 will mix latents with noise of size 1, a little at first and more with each step. For the recipe of that
# mixture to fit, the latents must have size 1 themselves. What happens if they do not? Here is one and the same
# mixture, half a part of latents and 0.87 parts of noise, for latents of three sizes:

# %%
eps = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(2))
sizes = (5.5, 1, 0.2)
mixed = [vae.decode((0.5 * size * latents + 0.87 * eps) / (0.5 * size)) for size in sizes]
figures.strip([to_pictures(x) for x in mixed], titles=[f"latents of size {size}" for size in sizes],
              frames=2, alt="Decoded mixtures: clear frames at size 5.5, damaged ones at size 1, only noise at 0.2.")

# %% [markdown]
# Latents as they leave Stable Diffusion's encoder have the size 5.5. There the noise hides nothing, and a network that
# is to learn denoising has nothing to do. At size 0.2 all is gone. So after training one measures how large the latents
# are, and divides by that, for good:
#
# $$\text{scaling factor} = \frac{1}{\text{standard deviation of the latents}}$$

# %%
rng = random.Random(1)
singles = frames_of([sample_scene(rng) for _ in range(200)])                           # one thing each
with torch.no_grad():
    means_of = {"yours": model.encoder(singles).chunk(2, dim=1)[0], "shipped": vae.posterior(singles)[0]}
for name, mean in means_of.items():
    print(f"{name:8} latents of size {mean.std():.2f}, so the factor is {1 / mean.std():.2f}")

# %% tags=["nbval-check-output"]
print("shipped:", vae.config.scaling_factor, " released:", AutoencoderConfig().scaling_factor)
print(f"so the released encoder's latents have size {1 / AutoencoderConfig().scaling_factor:.2f}")
assert abs(vae.encode(singles).std() - 1) < 0.1

# %% [markdown]
# That is all there is to the famous number. It was measured on one batch of pictures (Rombach et al. 2022, appendix
# G), and it belongs to one set of weights. Train another autoencoder, and you need another number. The shipped one's
# is 2.11 (measured on other frames than those above). It is above 1 because under a strong pull the larger part of
# the variance is left to the clouds, and the means keep less than a third of it:

# %%
mean, logvar = vae.posterior(singles)
of_means, of_clouds = mean.square().mean(), logvar.exp().mean()
print(f"mean square of the means {of_means:.2f}, variance of the clouds {of_clouds:.2f}: {of_means + of_clouds:.2f}")

# %% [markdown]
# Nobody else should have to know the factor. In the package it lives in two lines, at the end of `encode` and in the
# middle of `decode`, and all code outside sees latents of size 1. These are the methods. (`fold_frames` and
# `unfold_frames` are the `(b f)` of chapter 01.)

# %%
# from minit2v.autoencoder import Autoencoder.encode

# %%
# from minit2v.autoencoder import Autoencoder.decode

# %% [markdown]
# ## 10 · Nothing comes of nothing
#
# The decoder draws frames from numbers whose clouds were pulled towards $N(0, 1)$. Could one simply throw dice, 256
# times $N(0, 1)$, and decode a new frame? (The cell multiplies the dice by the factor, for `decode` divides by it.)

# %%
dice = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
scrambled = latents.flatten(2)[..., order].unflatten(2, (8, 8))
figures.strip([to_pictures(x) for x in (vae.decode(dice * vae.config.scaling_factor), vae.decode(scrambled))],
              titles=["decoded dice", "real cells, shuffled"], frames=3,
              alt="A row of coloured blotches on torn grounds, from dice; a row of grounds with odd fragments.")

# %% [markdown]
# No. The KL term looks at each number **by itself**. It does not see that a cell of ground has ground for its
# neighbour, and that a circle takes up some cells that fit together. The second row shows the same: each cell in it is
# real, only their company is not. By a number: where latents are large, something is going on. How well does a cell
# know from its right neighbour whether something is going on?

# %%
def company(z):
    """Correlation of the energies of neighbouring cells in latents (N, 4, h, w), each frame's mean taken off."""
    energy = z.square().sum(1)                               # (N, h, w)
    energy = energy - energy.mean((1, 2), keepdim=True)
    return torch.corrcoef(torch.stack([energy[..., :-1].flatten(), energy[..., 1:].flatten()]))[0, 1].item()


z = vae.encode(many)                                         # (400, 4, 8, 8)
found = {"frames": z, "scrambled": z.flatten(2)[..., order].unflatten(2, (8, 8)), "dice": torch.randn_like(z)}
for name, z in found.items():
    print(f"{name:9} {company(z):.2f}")
assert company(found["frames"]) > 0.2 > abs(company(found["dice"]))

# %% [markdown]
# To make a new frame, the 256 numbers have to be drawn *together*, so that they fit each other, the sentence, and the
# frames before and after. That is the task of the diffusion model. The autoencoder knows how things look; the
# diffusion model will know what there is.

# %% [markdown]
# ## 11 · No time inside
#
# A clip goes through the autoencoder as `(b f)`: its frames are a batch. We know from chapter 01 what follows.

# %%
thing = Thing("blue", "star", "right", size="big", speed="fast", x=0.2, y=0.5)
clip = render([Scene((thing,), ground="white")])                                       # (1, F, H, W, 3) uint8
x = rearrange(clip, "b f h w c -> b c f h w").float() / 127.5 - 1
z = vae.encode(x)                                                                      # (1, 4, F, h, w)

# %% tags=["nbval-check-output"]
print(tuple(x.shape), "->", tuple(z.shape))
print("frame 5 alone:", torch.allclose(vae.encode(x[:, :, 5]), z[:, :, 5], atol=1e-4))
print("clip backwards:", torch.allclose(vae.encode(x.flip(2)), z.flip(2), atol=1e-4))

# %% [markdown]
# The encoder cannot know which way the star goes. Still, motion is not lost: it is there in the latents, as it was in
# the pixels. Cut across time once more, row 32 of the pixels and row 4 of the cells:

# %%
history = to_input(clip[0])[:, :, 32].mean(1)                # (F, W): brightness of row 32 in each frame
figures.heat([history, *z[0, 2:, :, 4]], titles=["pixels, row 32", "latents, channel 2, row 4", "channel 3, row 4"],
             xlabel="column", ylabel="frame",
             alt="Time runs down: a leaning band in the pixels, and a leaning staircase in the latents.")

# %% [markdown]
# **Motion is slant in space-time**, in latents too. But a cell is eight pixels wide, and the star takes several frames
# to cross it. In between, its motion is in the *values* of the cells: the latents of an edge say where in the cell it
# lies. This is what the temporal layers of chapter 07 will read and write.

# %%
back = to_uint8(vae.decode(z))[0]
figures.play([clip[0], back], alt="The blue star moves right twice: as rendered, and as it comes out of the decoder.")

# %% [markdown]
# Look closely at the right one: its points tremble a little. Each frame is drawn by itself, so each has its own small
# mistakes. (Later systems give the autoencoder temporal layers too. ModelScope's has none.)

# %% [markdown]
# ## 12 · The judge
#
# Is what comes back good enough? The referee of chapter 01 decides: forty clips, real, and after a passage through
# each autoencoder of this chapter.

# %%
rng = random.Random(5)
scenes = [sample_scene(rng) for _ in range(40)]
real = render(scenes)                                                                  # (40, F, H, W, 3)


def passed(through):
    """The forty clips after `through`, which takes frames (N, 3, H, W) and gives such."""
    return torch.stack([to_pictures(through(to_input(clip))) for clip in real])


def linear_passage(frames):
    blocks = rearrange(frames, "n c (h y) (w x) -> (n h w) (c y x)", y=8, x=8)
    rebuilt = (blocks - centre) @ directions.T @ directions + centre
    return rearrange(rebuilt, "(n h w) (c y x) -> n c (h y) (w x)", h=8, w=8, y=8, x=8)

# %%
def count_right(clips):
    """How many clips the referee reads as their scene says: colour, shape and motion."""
    return sum(agrees(read(clip), scene)["all"] for clip, scene in zip(clips, scenes))


shipped = passed(lambda frames: vae.decode(vae.encode(frames)))
score = {"real": count_right(real), "shipped autoencoder": count_right(shipped),
         "yours": count_right(passed(lambda frames: redraw(model, frames))),
         "best four linear numbers": count_right(passed(linear_passage))}
for name, count in score.items():
    print(f"{name:25} {count} of 40")
assert score["shipped autoencoder"] >= 36 > score["best four linear numbers"]

# %%
figures.strip([real[0], shipped[0], real[1], shipped[1]], titles=["real", "passed", "real", "passed"],
              alt="Two clips as film strips, each as rendered and after the passage; hardly any difference.")

# %% [markdown]
# Compare the last two lines. In decibels your network of one minute and the linear map were equal, but the referee can
# make more of yours: decibels count pixels, and it reads what is meant. (Forty clips are few for such a comparison.
# Chapter 09 tells how far a count of forty can be trusted.)
#
# And hold on to the second line. No clip of our model can be better than what its decoder can draw, so this is the
# **ceiling** for all that follows. Chapter 09 puts it beside every score.

# %% [markdown]
# ## 13 · What the original does
#
# **The same network**, wider. ModelScope takes the autoencoder of Stable Diffusion 2.1 as it is, weights and all; it
# was trained on images alone. From the same classes, with the released configuration:

# %% tags=["nbval-check-output"]
from minit2v.autoencoder import Autoencoder

with torch.device("meta"):                                   # shapes only, no memory
    big = Autoencoder(AutoencoderConfig())
    out = big.encode(torch.zeros(1, 3, 16, 256, 256))
print(f"{sum(p.numel() for p in big.parameters()):,} parameters;", "clip to latents", tuple(out.shape))
assert sum(p.numel() for p in big.parameters()) == 83_653_863

# %% [markdown]
# **Two 1 x 1 convolutions more**, `quant_conv` behind the encoder and `post_quant_conv` before the decoder. They come
# from an older kind of autoencoder with a table of codes between the two. The weights have them, so the package has.
#
# **Another loss** (Rombach et al. 2022, section 3.1 and appendix G). On photographs, absolute and squared errors (L1
# and L2) turn grass into green mist: of many possible blades, their mean has the smallest error. So the original adds
# a *perceptual* loss, which compares features of a second network instead of pixels, and a *discriminator*, a third
# network that learns to tell real patches from drawn ones. Our world has flat colours and clean edges; there is
# nothing to turn into mist.
#
# **A weak pull**, $10^{-6}$, and so latents of size 5.5 and the factor 0.18215. Its clouds are tiny, so it hardly
# matters whether one takes the mean or a sample. With our wide clouds it does, as you will see now.

# %% [markdown]
# ## 14 · What can go wrong
#
# ### Padding on the wrong sides
#
# The same weights, with the usual `padding=1` in the three layers that halve the picture. All shapes fit, and nothing
# fails.

# %%
def padded_everywhere(vae):
    """A copy whose Downsample layers pad all four sides."""
    wrong = deepcopy(vae)
    for level in wrong.encoder.levels[:-1]:
        level.resample = level.resample.conv
        level.resample.padding = (1, 1)                      # and not below and to the right only
    return wrong

# %%
squares = frames_of([Scene((Thing(colour, "square", "stay", size="big", x=0.4, y=0.4),)) for colour in COLOURS])
moved = vae.decode(padded_everywhere(vae).encode(squares))
figures.strip([to_pictures(x) for x in (squares, vae.decode(vae.encode(squares)), moved)],
              titles=["frames", "right padding", "wrong padding"], frames=5,
              alt="Squares; the same squares; squares further right and below, in frames with streaks at two edges.")

# %% [markdown]
# There is dirt at two edges, and the picture has moved. By how much? At each of the three layers, the encoder looks
# one pixel further to the left and up than it should. But a pixel of the second layer is two pixels wide, and one of
# the third is four: 1 + 2 + 4 = 7. So a cell reports what lies 7 pixels to the left of and above its place; the
# decoder draws it *at* its place, and everything moves right and down.

# %%
def centre_of(frames):
    """Mean place of what is coloured, in pixels: x and y. The ten rows and columns with the dirt do not count."""
    weight = (frames.clamp(-1, 1).amax(1) - frames.clamp(-1, 1).amin(1)).mean(0)[10:, 10:] # (H - 10, W - 10)
    places = torch.arange(10.0, 64.0)
    return torch.stack([weight.sum(0) @ places, weight.sum(1) @ places]) / weight.sum()

# %%
shift = centre_of(moved) - centre_of(squares)
print(f"moved by {shift[0]:.1f} pixels to the right and {shift[1]:.1f} down")
assert (shift - 7).abs().max() < 2

# %% [markdown]
# ### A logarithm taken for a variance
#
# `logvar` is a log, of a variance, and we want a standard deviation. There are several ways to get that wrong. The
# truth here is a spread of 0.37:

# %% tags=["nbval-check-output"]
logvar = torch.full((100_000,), -2.0)
eps = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
for name, spread in {"exp(logvar / 2)": torch.exp(logvar / 2), "exp(logvar)": torch.exp(logvar),
                     "logvar": logvar, "sqrt(logvar)": logvar.sqrt()}.items():
    print(f"{name:16} -> samples with a spread of {(spread * eps).std():.2f}")

# %% [markdown]
# The last one announces itself, the others do not. If you *train* with `exp(logvar)`, the loss falls and the pictures
# are fine, because the network simply learns to name another number. The mistake comes out when you load somebody
# else's weights, or compare with an oracle, as we did with `torch.distributions` above.
#
# ### The factor forgotten
#
# Three ways to treat the latents on their way to the decoder:

# %%
bare = vae.posterior(test)[0]                                # as the encoder makes them, not scaled
ways = {"scaled, then scaled back": vae.decode(latents), "never scaled, but scaled back": vae.decode(bare),
        "scaled, but not scaled back": vae.decode(latents * vae.config.scaling_factor)}
figures.strip([to_pictures(x) for x in ways.values()], titles=list(ways), frames=3,
              alt="Three frames three times: right; grey with ghosts of the things; things in wrong hues, with edges.")

# %% [markdown]
# Latents too small give grey ghosts, latents too large give harsh frames in wrong hues. With the original's factor one
# is off by 5.5 times and not by two, and in training it is quieter still: a UNet learns from latents of any size, only
# worse. Wrong hues are the first thing to look for when a ported model "almost" works.
#
# ### A sample instead of the mean
#
# `encode` gives the mean, unless you hand it a generator; then it throws the dice. Here is a clip in which nothing
# moves:

# %%
still = to_input(render([Scene((Thing("red", "star", "stay", size="big"),), ground="grey")])[0])      # (16, 3, 64, 64)
by_mean = vae.decode(vae.encode(still))
by_sample = vae.decode(vae.encode(still, torch.Generator().manual_seed(0)))
figures.play([to_pictures(x) for x in (still, by_mean, by_sample)],
             alt="A red star at rest three times: as rendered; by the mean, as calm; by samples, specks come and go.")

# %% tags=["nbval-check-output"]
print("by mean, frames alike:", torch.allclose(by_mean[0], by_mean[9], atol=1e-4),
      "- by sample:", torch.allclose(by_sample[0], by_sample[9], atol=1e-4))

# %% [markdown]
# Each frame throws its own dice: the star's points twitch, and coloured specks come and go on the ground, in one
# frame all over it. With the original's tiny clouds you would hardly see a difference. So this mistake can sleep in a
# program for years, until it meets other weights.

# %% [markdown]
# ## Recap
#
# 1. An encoder of residual blocks makes 256 latent numbers of a frame's 12,288; a decoder makes the frame again.
# 2. It answers with clouds; $\mu + \sigma\varepsilon$ lets gradients past the dice, and the KL term prices every bit.
# 3. A weak pull gives sharp pictures and fine print; a strong pull writes large, and the decoder is sharpened after.
# 4. The scaling factor is one over the size of the latents, measured once; it lives in `encode` and `decode` alone.
# 5. Dice decode to no picture, and frames pass one by one: the autoencoder knows how things look, and no more.
#
# What you now own: a frame in 256 numbers, and back. Chapter 03 does the same for words, and from chapter 04 on, all
# that is learnt is learnt on latents.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/02_autoencoder](../exercises/02_autoencoder.ipynb).
#
# 1. **A point of the cloud** (build). From the encoder's eight channels to four that are drawn, past the dice.
# 2. **Two clouds** (build). The KL divergence between *any* two Gaussians; the paper behind chapter 04 builds its loss
#    of them.
# 3. **A bad port** (repair). All shapes fit, and every picture comes out further right and down. Find the cause.
# 4. **One look at everything** (build). Write the attention of the middle with einsum alone; it must fit the shipped
#    weights.
# 5. **How far off?** (explore). Predict by how many pixels a wrong padding moves the picture.
#
# At the end the shipped model encodes and decodes a clip on your own classes.

# %% [markdown]
# ## References
#
# - D. P. Kingma and M. Welling, *Auto-Encoding Variational Bayes*, 2014, arXiv:1312.6114. Posterior, trick, KL term.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022, arXiv:2112.10752. Our
#   architecture (section 3.1), the weight of the KL term and the scaling (appendix G).
# - I. Higgins et al., *β-VAE*, ICLR 2017. What a stronger pull does.
# - P. Esser, R. Rombach and B. Ommer, *Taming Transformers for High-Resolution Image Synthesis*, 2021,
#   arXiv:2012.09841. Where the code of this autoencoder, its perceptual loss and its discriminator come from.
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571.
