# %% [markdown]
# # 05 · Exercises: the image UNet
#
# Five exercises on chapter 05, about 85 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("05.attention")` helps, a little more each time.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task

# %% [markdown]
# ## 05.attention · Attention
#
# *Build · medium · 15 minutes · 3 points.* Why it matters: pixels read words, pixels see pixels, frames see frames: all
# by this one formula.
#
# Write it with a matrix product and a softmax; torch's ready-made operation is refused.

# %%
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. q: (..., Q, d); k, v: (..., K, d); returns (..., Q, d)."""
    ### BEGIN SOLUTION
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5                           # (..., Q, K)
    return scores.softmax(dim=-1) @ v                                               # (..., Q, d)
    ### END SOLUTION


attention(torch.ones(1, 1, 4), torch.eye(4)[None], torch.arange(4.0).view(1, 4, 1))        # all alike: the mean, 1.5

# %% tags=["nbval-check-output"]
check("05.attention", attention)

# %% [markdown] tags=["solution"]
# A score for each pair, made small enough that the softmax stays soft, and a weighted mean of the values. Each row of
# weights sums to one, because a query shares out its attention among the keys.

# %% [markdown]
# ## 05.cross_attention · Words for pixels
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: this is the only door through which the prompt comes in.
#
# Make several heads of it, as a module: `to_q`, `to_k`, `to_v` without bias, and `to_out` with one. Each head owns a
# block of neighbouring numbers, the first head the first block. You may use your `attention`.

# %%
class CrossAttention(nn.Module):
    """x: (N, L, width) pixels, context: (N, K, context_width) words; returns (N, L, width)."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        ### END SOLUTION

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        q, k, v = (rearrange(t, "n l (h d) -> n h l d", h=self.heads)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(rearrange(attention(q, k, v), "n h l d -> n l (h d)"))
        ### END SOLUTION


tuple(CrossAttention(8, 2, 6)(torch.zeros(2, 5, 8), torch.zeros(2, 3, 6)).shape)           # (2, 5, 8)

# %% tags=["nbval-check-output"]
check("05.cross_attention", CrossAttention)

# %% [markdown] tags=["solution"]
# The four layers and one reshape in each direction. Trained weights only fit if the numbers are split into heads in the
# order in which they were trained, and the error would make no noise.

# %% [markdown]
# ## 05.geglu · The gate on the wrong side
#
# *Repair · medium · 10 minutes · 2 points.* Why it matters: a half of all parameters of a transformer block are in
# here, and swapped halves load without a complaint.
#
# The feed-forward layer makes values and gates in one go. The version below gives pictures with the right places and
# the wrong colours. Find out why, and mend it.

# %%
def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GEGLU (Shazeer 2020). x: (..., C); weight: (2 M, C), the values' rows first; bias: (2 M,); returns (..., M)."""
    ### BEGIN SOLUTION
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)
    ### END SOLUTION
    gate, value = F.linear(x, weight, bias).chunk(2, dim=-1)                       # broken: mend this
    return value * F.gelu(gate)


geglu(torch.ones(1, 1), torch.tensor([[3.0], [-1.0]]), torch.zeros(2))             # -0.476

# %% tags=["nbval-check-output"]
check("05.geglu", geglu)

# %% [markdown] tags=["solution"]
# The values come first and the gates second. Nothing but the order of two names was wrong.

# %% [markdown]
# ## 05.resblock · The residual block
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: it is the brick of the whole U.
#
# Norm (`nn.GroupNorm(groups, ...)`, its eps as it is), SiLU, convolution of 3 x 3; then the time `emb`, through SiLU
# and `time_proj`, is added to each channel; norm, SiLU, dropout, convolution. The input goes around all of it, through
# `shortcut`: a convolution of 1 x 1, or nothing where the number of channels stays. Names: `norm1`, `conv1`,
# `time_proj`, `norm2`, `dropout`, `conv2`, `shortcut`.

# %%
class ResBlock(nn.Module):
    """x: (N, in_channels, H, W), emb: (N, emb_channels); returns (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, dropout: float):
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        ### END SOLUTION

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        h = self.conv1(F.silu(self.norm1(x)))                                       # (N, out_channels, H, W)
        h = h + self.time_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h
        ### END SOLUTION


tuple(ResBlock(4, 6, 7, 2, 0.0)(torch.zeros(2, 4, 6, 6), torch.zeros(2, 7)).shape)         # (2, 6, 6, 6)

# %% tags=["nbval-check-output"]
check("05.resblock", ResBlock)

# %% [markdown] tags=["solution"]
# Each line of `forward` is one line of the sentence above. The time is added before the second norm: the norm then sees
# it, and the second convolution is told what time it is.

# %% [markdown]
# ## 05.words · What a sentence costs
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: the released model has sixteen such layers for the words.
#
# How many parameters has a `CrossAttention` of the `width` that `task` gives you, reading words of `context_width`
# numbers? Compute it by hand before you count.

# %%
task("05.words")

# %%
### BEGIN SOLUTION
answer_words = sum(p.numel() for p in CrossAttention(heads=8, **task("05.words")).parameters())
### END SOLUTION
check("05.words", answer_words)

# %% [markdown] tags=["solution"]
# Two square matrices for the pixels' side, two of width times context width for the words', and one bias.

# %% [markdown]
# ## The model runs on your code
#
# No points, but the best moment. Your `ResBlock` goes into every place of the trained UNet where ours stands, with its
# weights, and the same clip must come out.

# %%
# mine = the class that shall stand in for ours
### BEGIN SOLUTION
mine = ResBlock
### END SOLUTION
pipe = minit2v.load()
sentence, settings = "a green square moves up", dict(num_inference_steps=10, sampler="dpm++", progress=False)
clip = pipe(sentence, **settings)
again = pipe.swap(ResBlock=mine)(sentence, **settings)
assert (clip.int() - again.int()).abs().max() <= 1           # the last digit of a colour may be rounded otherwise
figures.strip([clip, again], titles=["with the package's residual block", "with yours"],
              alt="Two film strips of the same clip, one made with each residual block. They look alike.")

# %% [markdown]
# ## What you have now

# %%
progress()
