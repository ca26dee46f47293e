# %% [markdown]
# # 01 · Exercises: video as tensors
#
# Five exercises on chapter 01, about 45 minutes. In each cell replace the line that raises `NotImplementedError`, and
# run the cell; its last line tries your code on something small. Then run the check below it. A check knows the usual
# mistakes and says which one it sees. If you are stuck, `hint("01.ring")` helps, a little more each time.

# %%
import math

import torch
from einops import rearrange
from torch import Tensor

from minit2v.course import check, hint, progress, solution, task

# %% [markdown]
# ## 01.ring · A ring
#
# *Build · easy · 10 minutes · 2 points.* Why it matters: outlined shapes are the second drawing style of our world, and
# a signed distance is the whole trick behind soft edges.
#
# Points `(x, y)` are given relative to the ring's centre, in fractions of the frame. Return their signed distance to a
# ring: a band of width `thickness`, half of it on each side of the circle with radius `radius`. Inside the band the
# distance is negative, elsewhere positive.

# %%
def ring(x: Tensor, y: Tensor, radius: float, thickness: float) -> Tensor:
    """Signed distance to a ring around (0, 0). x, y: any shape; returns the same shape."""
    ### BEGIN SOLUTION
    return (torch.sqrt(x * x + y * y) - radius).abs() - thickness / 2
    ### END SOLUTION


ring(torch.tensor([0.0, 0.3, 0.5]), torch.zeros(3), radius=0.3, thickness=0.1)    # outside, in the band, outside

# %% tags=["nbval-check-output"]
check("01.ring", ring)

# %% [markdown] tags=["solution"]
# The distance to a circle line is |length - radius|, the same from within and from without. A band is the line made
# thicker, and every distance shrinks by half the thickness.

# %% [markdown]
# ## 01.pendulum · A pendulum
#
# *Build · easy · 10 minutes · 2 points.* Why it matters: every motion of our world is a formula of time, so a clip can
# be drawn at any frame rate.
#
# A thing swings between `middle - reach` and `middle + reach`. At `t = 0` it is let go at its left end (small x), and
# after `period` seconds it is there again. Like a pendulum it is slow at its ends and fast in the middle.

# %%
def pendulum(t: Tensor, middle: float, reach: float, period: float) -> Tensor:
    """Place at the times t, in seconds. t: (F,); returns (F,)."""
    ### BEGIN SOLUTION
    return middle - reach * torch.cos(2 * math.pi * t / period)
    ### END SOLUTION


pendulum(torch.tensor([0.0, 0.5, 1.0]), middle=0.5, reach=0.3, period=2.0)        # left end, middle, right end

# %% tags=["nbval-check-output"]
check("01.pendulum", pendulum)

# %% [markdown] tags=["solution"]
# A cosine is 1 at the start and flat there. Minus turns it to the left end; 2 pi is one turn, made in `period` seconds.

# %% [markdown]
# ## 01.flip_book · The flip book
#
# *Build · medium · 10 minutes · 2 points.* Why it matters: film strips are how this whole course shows you clips.
#
# Lay out clips as one picture: the frames of a clip from left to right, the clips below one another. One `rearrange` is
# enough.

# %%
def flip_book(clips: Tensor) -> Tensor:
    """Clips as one sheet. clips: (N, F, H, W, 3); returns (N * H, F * W, 3)."""
    ### BEGIN SOLUTION
    return rearrange(clips, "n f h w c -> (n h) (f w) c")
    ### END SOLUTION


tuple(flip_book(torch.zeros(2, 16, 8, 8, 3, dtype=torch.uint8)).shape)            # (16, 128, 3)

# %% tags=["nbval-check-output"]
check("01.flip_book", flip_book)

# %% [markdown] tags=["solution"]
# In brackets the first name changes slowest. Down the sheet that is the clip, then its rows; along the sheet the frame,
# then its columns.

# %% [markdown]
# ## 01.unmix · Unmix
#
# *Repair · medium · 10 minutes · 2 points.* Why it matters: this fault raises no error; it only spoils what is learnt.
#
# Someone folded clips with the pattern `"n f h w c -> (f n) h w c"` and wants them back. The code below gives the right
# shape and mixed clips. Find the cause, and mend it.

# %%
def unmix(mixed: Tensor, frames: int) -> Tensor:
    """Clips from frames that were folded frame by frame. mixed: (F * N, H, W, 3); returns (N, F, H, W, 3)."""
    ### BEGIN SOLUTION
    return rearrange(mixed, "(f n) h w c -> n f h w c", f=frames)
    ### END SOLUTION
    return rearrange(mixed, "(n f) h w c -> n f h w c", f=frames)                 # broken: mend this


unmix(torch.arange(6).view(6, 1, 1, 1), frames=3).flatten(1)                      # the clips hold 0 2 4 and 1 3 5

# %% tags=["nbval-check-output"]
check("01.unmix", unmix)

# %% [markdown] tags=["solution"]
# What was folded as `(f n)` must be unfolded as `(f n)`: the frames change slowest. Only after that may the axes be put
# in another order.

# %% [markdown]
# ## 01.bytes · How heavy is a clip?
#
# *Explore · easy · 5 minutes · 1 point.* Why it matters: memory is the first thing that video runs out of.
#
# `task` gives you a size in pixels, each of three colours. How many bytes does one such clip take in float32? Predict
# first, then compute, and write the whole number (bytes, not MB) into `answer_bytes`.

# %%
task("01.bytes")

# %%
### BEGIN SOLUTION
answer_bytes = math.prod(task("01.bytes").values()) * 3 * 4
### END SOLUTION
check("01.bytes", answer_bytes)

# %% [markdown] tags=["solution"]
# Frames times height times width are the pixels; each has three numbers, and each number four bytes.

# %% [markdown]
# ## What you have now

# %%
progress()
