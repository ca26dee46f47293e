# %% [markdown]
# # 02 · Exercises: the autoencoder
#
# Five exercises on chapter 02, about 65 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("02.draw")` helps, a little more each time.

# %%
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task

# %% [markdown]
# ## 02.draw · A point of the cloud
#
# *Build · easy · 10 minutes · 2 points.* Why it matters: with this line gradients get past the dice, and the decoder
# learns neighbourhoods.
#
# The encoder answers with twice as many channels as there are latents: first all means, then all log-variances,
# log(sigma^2). `noise` has been drawn from N(0, 1). Make of it a point of the cloud.

# %%
def draw(moments: Tensor, noise: Tensor) -> Tensor:
    """The reparametrisation trick. moments: (N, 2 C, h, w); noise: (N, C, h, w); returns (N, C, h, w)."""
    ### BEGIN SOLUTION
    mean, logvar = moments.chunk(2, dim=1)                   # (N, C, h, w) each
    return mean + torch.exp(0.5 * logvar) * noise
    ### END SOLUTION


moments = torch.tensor([3.0, math.log(4.0)]).view(1, 2, 1, 1)              # mean 3, variance 4
[draw(moments, torch.full((1, 1, 1, 1), e)).item() for e in (-1.0, 0.0, 1.0)]                 # 1, 3, 5

# %% tags=["nbval-check-output"]
check("02.draw", draw)

# %% [markdown] tags=["solution"]
# Half of the logarithm of the variance is the logarithm of its root. The dice were thrown before, so the mean and the
# log-variance enter by plain arithmetic, and gradients reach both.

# %% [markdown]
# ## 02.kl · Two clouds
#
# *Build · medium · 15 minutes · 2 points.* Why it matters: with the goal N(0, 1) it is the pull of this chapter; with
# two general clouds it is what DDPM is derived from.
#
# The Kullback-Leibler divergence of a cloud p from a goal q, both Gaussian, is
#
# $$\text{KL}(p \,\|\, q) = \log \frac{\sigma_q}{\sigma_p} + \frac{\sigma_p^2 + (\mu_p - \mu_q)^2}{2 \sigma_q^2} -
#   \frac12$$
#
# Write it for log-variances, of each number by itself. The chapter's formula is the special case of a goal with mean 0
# and log-variance 0.

# %%
def kl(mean: Tensor, logvar: Tensor, goal_mean: Tensor, goal_logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(goal_mean, exp(goal_logvar))) in nats. All tensors and the result: one shape."""
    ### BEGIN SOLUTION
    distance = logvar.exp() + (mean - goal_mean).square()
    return 0.5 * (goal_logvar - logvar + distance / goal_logvar.exp() - 1)
    ### END SOLUTION


zero = torch.zeros(3)
kl(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, -4.0]), zero, zero)     # 0, 0.5, and 1.5092 for being small

# %% tags=["nbval-check-output"]
check("02.kl", kl)

# %% [markdown] tags=["solution"]
# The logarithm of a ratio of spreads is half the difference of the log-variances; then one half can be taken out of
# everything. Take the goal's mean and log-variance to be 0, and 1/2 (mu^2 + sigma^2 - 1 - log sigma^2) is left.

# %% [markdown]
# ## 02.half · A bad port
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: this one line decides whether released weights see sharply.
#
# Someone has ported the layer that halves the picture. All shapes fit, the weights load, and whatever is encoded and
# decoded comes out a few pixels further right and down, with dirt at two edges. Find the cause, and mend it.

# %%
class HalfSize(nn.Module):
    """(N, C, H, W) -> (N, C, H/2, W/2), as the original does it. H and W are even."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        return self.conv(F.pad(x, (0, 1, 0, 1)))             # pad: left, right, top, bottom
        ### END SOLUTION
        return self.conv(F.pad(x, (1, 1, 1, 1)))             # broken: mend this


half = HalfSize(1)
half.conv.weight.data = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))              # copies the pixel in its middle
half.conv.bias.data.zero_()
half(torch.arange(8.0).expand(1, 1, 8, 8))[0, 0, 0].tolist()                     # 1, 3, 5, 7

# %% tags=["nbval-check-output"]
check("02.half", HalfSize)

# %% [markdown] tags=["solution"]
# Kernels three wide, two pixels apart, stand on 0 1 2, then 2 3 4, and so on; the last one needs one pixel more than
# there is. The original adds it at that end, below and to the right, and nothing at the other.

# %% [markdown]
# ## 02.attention · One look at everything
#
# *Build · hard · 20 minutes · 3 points.* Why it matters: it is the only layer of the autoencoder in which one corner of
# a frame hears of the other.
#
# Write the attention of the middle: normalise, let every pixel ask every other one, send what they say through
# `to_out`, and add it to `x`. (The formula stands in section 2 of the chapter.) The layers are made for you. PyTorch's
# own attention is not allowed; `torch.einsum` and `softmax` are enough.

# %%
class Attention(nn.Module):
    """(N, C, H, W) -> the same shape. Each pixel is a place with C numbers; there is a single head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        places = rearrange(self.norm(x), "n c h w -> n (h w) c")
        q, k, v = self.to_q(places), self.to_k(places), self.to_v(places)        # (N, H W, C) each
        scores = torch.einsum("nic,njc->nij", q, k) / math.sqrt(x.shape[1])      # (N, H W, H W)
        heard = torch.einsum("nij,njc->nic", scores.softmax(dim=-1), v)          # (N, H W, C)
        return x + rearrange(self.to_out(heard), "n (h w) c -> n c h w", h=x.shape[2])
        ### END SOLUTION


tuple(Attention(8, 4)(torch.zeros(2, 8, 3, 5)).shape)        # (2, 8, 3, 5)

# %% tags=["nbval-check-output"]
check("02.attention", Attention)

# %% [markdown] tags=["solution"]
# i is the place that asks, j the one that is asked; the weights of one i add up to 1 over all j. `rearrange` moves the
# channels to the end before it joins rows and columns, which no `view` can do.

# %% [markdown]
# ## 02.shift · How far off?
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: it lets you recognise this fault in anybody's pictures.
#
# The bad port of 02.half moves a picture by 7 pixels in an encoder that halves three times. `task` gives you another
# number of halvings. By how many pixels of the frame does the picture move now? Predict first, then try it, with a row
# of column numbers as in 02.half. `answer_shift` is a whole number.

# %%
task("02.shift")

# %%
### BEGIN SOLUTION
answer_shift = sum(2 ** layer for layer in range(task("02.shift")["halvings"]))
### END SOLUTION
check("02.shift", answer_shift)

# %% [markdown] tags=["solution"]
# Each layer looks one of *its* pixels too far to the left, and its pixels are 1, 2, 4, 8, .. of the frame's wide.

# %% [markdown]
# ## The model runs on your code
#
# No points, but the best moment. One part is missing, the residual block: write it, too. Then `pipe.swap` puts your
# three classes in the place of the package's, with the same weights. The decoder must draw the same clip, and the
# encoder must find the same latents in it.

# %%
class Residual(nn.Module):
    """(N, C_in, H, W) -> (N, C_out, H, W): norm, SiLU, convolution, twice, and the input added (through `skip`)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        h = self.conv1(F.silu(self.norm1(x)))                # (N, C_out, H, W)
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h
        ### END SOLUTION


assert Residual(8, 16, 4)(torch.ones(1, 8, 6, 6)).shape == (1, 16, 6, 6)
pipe = minit2v.load()
clip = pipe("a red circle moves right", num_inference_steps=15, progress=False)                # (16, 64, 64, 3) uint8
frames = rearrange(clip, "f h w c -> f c h w") / 127.5 - 1
with torch.no_grad():
    latents = pipe.autoencoder.encode(frames)
    pipe.swap("autoencoder", ResBlock=Residual, PixelAttention=Attention, Downsample=HalfSize)
    assert (pipe.autoencoder.encode(frames) - latents).abs().max() < 1e-4
mine = pipe("a red circle moves right", num_inference_steps=15, progress=False)
assert (clip.int() - mine.int()).abs().max() <= 1            # the last digit of a colour may be rounded otherwise
figures.strip([clip, mine], titles=["with the package's autoencoder", "with yours"],
              alt="Two film strips of the same clip, one drawn with each autoencoder. They look alike.")

# %% [markdown]
# ## What you have now

# %%
progress()
