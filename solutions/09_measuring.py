# %% [markdown]
# # 09 · Exercises: measuring
#
# Four exercises on chapter 09, about 65 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("09.frechet")` helps, a little more each time.

# %%
import math

import torch
from torch import Tensor

from minit2v.course import check, hint, progress, solution, task

# %% [markdown]
# ## 09.frechet · Two clouds of features
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: FID and FVD, the numbers by which papers compare their models,
# are this formula; what differs is whose features go in.
#
# See each set of features as a Gaussian, with its mean m and its covariance S (divided by N - 1). Between two such
# clouds the Fréchet distance is
# $|m_a - m_b|^2 + \mathrm{tr}\bigl(S_a + S_b - 2\,(S_a S_b)^{1/2}\bigr)$. The root is that of a matrix: what gives
# $S_a S_b$ when it is multiplied by itself. Torch has no such function; `torch.linalg.eigh` leads there.

# %%
def frechet(a: Tensor, b: Tensor) -> Tensor:
    """Squared Fréchet distance (Dowson & Landau 1982). a: (N, D), b: (M, D), more rows than columns; returns ()."""
    ### BEGIN SOLUTION
    s, t = torch.cov(a.T), torch.cov(b.T)                                # (D, D) each
    values, vectors = torch.linalg.eigh(s)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T              # root @ root = s
    crossed = torch.linalg.eigvalsh(root @ t @ root).clamp(min=0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + s.trace() + t.trace() - 2 * crossed
    ### END SOLUTION


cloud = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
round(frechet(cloud, cloud + 2.0).item(), 3)                             # three axes, moved by 2 each: 12

# %% tags=["nbval-check-output"]
check("09.frechet", frechet)

# %% [markdown] tags=["solution"]
# Only the trace of the root is needed, the sum of the roots of the eigenvalues. S T has those of R T R, where R is the
# root of S: this one is symmetric, and so `eigh` can be used, which is exact and never complex.

# %% [markdown]
# ## 09.bootstrap · How sure?
#
# *Build · medium · 15 minutes · 2 points.* Why it matters: of 100 clips 60 were right with one model, and 66 with
# another. Before you say which is better, you should know how far these numbers jump by themselves.
#
# `right` says of each clip whether it was right (1) or not (0), or how right. Each row of `draws` is a draw of N clips
# out of these N, with replacement: their numbers. What share would each draw have reported? Return the interval from
# the 2.5 % to the 97.5 % quantile of these, as `torch.quantile` gives it (which wants its numbers in one type).

# %%
def bootstrap(right: Tensor, draws: Tensor) -> Tensor:
    """95 % interval of the mean (Efron 1979). right: (N,), draws: (R, N) 0 to N - 1; returns (2,), low first."""
    ### BEGIN SOLUTION
    means = right[draws].mean(dim=1)                                     # (R,)
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype))
    ### END SOLUTION


right = (torch.arange(100) < 60).double()                                # 60 of 100
draws = torch.randint(100, (1000, 100), generator=torch.Generator().manual_seed(0))
bootstrap(right, draws).tolist()                                         # about 0.5 and 0.7

# %% tags=["nbval-check-output"]
check("09.bootstrap", bootstrap)

# %% [markdown] tags=["solution"]
# The clips at hand stand for all that might have been made. Drawing from them again and again shows how far a mean of N
# clips jumps; no formula and no bell curve is needed, and it works for any number, the Fréchet distance too.

# %% [markdown]
# ## 09.fooled · Full marks for standing still
#
# *Repair · medium · 15 minutes · 2 points.* Why it matters: a measure of motion that likes frozen clips will pick you
# frozen models.
#
# The referee follows a thing through a clip: a place (x, y) in each frame. `directness` should say how directly it gets
# on: the distance from its first place to its last, divided by the length of the way that it took. Straight on is 1,
# shuffled frames are far below, and what stands still gets 0. The version below gives 1 for nearly everything, and for
# a frozen clip no number at all. Mend it.

# %%
def directness(tracks: Tensor) -> Tensor:
    """How directly each thing gets on, 0 to 1. tracks: (N, F, 2) places; returns (N,)."""
    ### BEGIN SOLUTION
    way = tracks.diff(dim=1).norm(dim=-1).sum(dim=1)                     # (N,): the lengths of all steps
    distance = (tracks[:, -1] - tracks[:, 0]).norm(dim=-1)
    return torch.where(way > 0, distance / way, torch.zeros_like(way))
    ### END SOLUTION
    way = tracks.diff(dim=1).sum(dim=1).norm(dim=-1)                     # broken: mend what follows
    distance = (tracks[:, -1] - tracks[:, 0]).norm(dim=-1)
    return distance / way


line = torch.linspace(0, 1, 5)[:, None] * torch.tensor([0.6, 0.2])       # (5, 2)
directness(torch.stack([line, line[[2, 0, 4, 1, 3]], 0 * line]))         # 1, then 0.1, then 0

# %% tags=["nbval-check-output"]
check("09.fooled", directness)

# %% [markdown] tags=["solution"]
# Arrows that are added end to end always lead from the first place to the last, in whatever order: so the two numbers
# were the same one. Lengths have to be taken first and added after. And where there is no way at all, the mark is said,
# not computed.

# %% [markdown]
# ## 09.chance · What guessing gets
#
# *Explore · medium · 10 minutes · 1 point.* Why it matters: 2 % sounds poor, until you hear what chance would get.
#
# Clips of two objects in a world with so many `colours`, `shapes` and `motions` as `task` says. The two objects never
# have the same colour, and the referee finds out by colour which one is meant: the order in which a guesser names them
# does not matter. How often does a guess get everything right, both colours, both shapes and both motions? Give it as a
# number from 0 to 1.

# %%
task("09.chance")

# %%
### BEGIN SOLUTION
asked = task("09.chance")
answer_chance = 1 / (math.comb(asked["colours"], 2) * (asked["shapes"] * asked["motions"]) ** 2)
### END SOLUTION
check("09.chance", answer_chance)

# %% [markdown] tags=["solution"]
# A pair of colours out of all pairs, and for each of the two a shape and a motion. It is so little that a model with
# 1 % of its clips right has learnt a great deal, and that a hundred clips cannot tell it from zero.

# %% [markdown]
# ## What you have now

# %%
progress()
