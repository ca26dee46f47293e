# %% [markdown]
# # 04 · Exercises: diffusion
#
# Five exercises on chapter 04, about 70 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("04.schedule")` helps, a little more each time.

# %%
import torch
from torch import Tensor

from minit2v.course import check, hint, progress, solution, task

# %% [markdown]
# ## 04.schedule · The schedule
#
# *Build · medium · 15 minutes · 2 points.* Why it matters: one list of numbers decides what the network ever sees.
#
# Build ModelScope's schedule: the *roots* of the betas rise in a straight line from the root of `beta_start` to the
# root of `beta_end`. Return alpha-bar for t = 0, 1, .. `steps`, in float64.

# %%
def schedule(beta_start: float, beta_end: float, steps: int) -> Tensor:
    """alpha-bar at the times 0 (clean) to `steps` (noise), (steps + 1,), float64."""
    ### BEGIN SOLUTION
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps, dtype=torch.float64) ** 2
    clean = torch.ones(1, dtype=torch.float64)
    return torch.cat([clean, (1 - betas).cumprod(0)])
    ### END SOLUTION


schedule(0.00085, 0.012, 1000)[[0, 1, 500, 1000]]            # 1, then 0.9991, 0.2777, 0.0047

# %% tags=["nbval-check-output"]
check("04.schedule", schedule)

# %% [markdown] tags=["solution"]
# Each step keeps a share 1 - beta of the variance, and shares of shares multiply: a running product. The 1 in front is
# the product of no factors at all, the clean clip.

# %% [markdown]
# ## 04.add_noise · Too little of everything
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: the network is trained on x_t of unit size; half-way the
# broken version hands it something smaller, and nothing complains.
#
# The code below noises a clip in one jump. At both ends of the schedule it is right. In the middle the result is too
# small. Find the cause, and mend it.

# %%
def add_noise(x0: Tensor, alpha_bar: float, eps: Tensor) -> Tensor:
    """x_t (DDPM eq. 4). x0, eps: any shape, both of unit size; returns the same shape."""
    ### BEGIN SOLUTION
    return alpha_bar ** 0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    ### END SOLUTION
    return alpha_bar * x0 + (1 - alpha_bar) * eps            # broken: mend this


generator = torch.Generator().manual_seed(0)
x0, eps = torch.randn(2, 10_000, generator=generator)
[round(add_noise(x0, bar, eps).std().item(), 2) for bar in (1.0, 0.5, 0.0)]      # should be about 1 all the way

# %% tags=["nbval-check-output"]
check("04.add_noise", add_noise)

# %% [markdown] tags=["solution"]
# alpha-bar is a share of variance. A number multiplied by a has a^2 times the variance, so the factors are the roots.

# %% [markdown]
# ## 04.split · Back from the velocity
#
# *Build · medium · 15 minutes · 2 points.* Why it matters: samplers want the clip and the noise; our mini network
# answers with v. This function stands between them.
#
# Given v = alpha eps - sigma x_0 and x = alpha x_0 + sigma eps, with alpha^2 + sigma^2 = 1, return x_0 and eps.

# %%
def split(v: Tensor, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The clip and the noise, (x0, eps), both shaped as x."""
    ### BEGIN SOLUTION
    return alpha * x - sigma * v, sigma * x + alpha * v
    ### END SOLUTION


split(torch.tensor([0.8 * 3 - 0.6 * 2]), torch.tensor([0.8 * 2 + 0.6 * 3]), 0.8, 0.6)      # x0 = 2 and eps = 3

# %% tags=["nbval-check-output"]
check("04.split", split)

# %% [markdown] tags=["solution"]
# (x, v) is (x_0, eps) turned by an angle; turning it back has the same factors with the other sign. In detail:
# alpha x - sigma v = (alpha^2 + sigma^2) x_0.

# %% [markdown]
# ## 04.loss · The loss
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: this is all that a diffusion model is trained with, and two
# off-by-ones hide in it.
#
# Noise each clip of the batch for its own time `t` (1 to T), ask the network, and return the mean squared error of its
# answer. It predicts the noise, and it counts its noise levels from 0. `alphas_cumprod` is as in 04.schedule.

# %%
def noise_loss(network, x0: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """DDPM algorithm 1. x0, eps: (B, C, N); t: (B,); network(x, timesteps) -> (B, C, N). Returns a scalar."""
    ### BEGIN SOLUTION
    share = alphas_cumprod[t][:, None, None]                                        # (B,) -> (B, 1, 1)
    x = share.sqrt() * x0 + (1 - share).sqrt() * eps                                # (B, C, N)
    return ((network(x, t - 1) - eps) ** 2).mean()
    ### END SOLUTION


made_up, t = lambda x, timesteps: x + timesteps[:, None, None], torch.tensor([1, 10])
noise_loss(made_up, torch.zeros(2, 4, 8), t, torch.ones(2, 4, 8), torch.linspace(1, 0.02, 11))      # 40.6455

# %% tags=["nbval-check-output"]
check("04.loss", noise_loss)

# %% [markdown] tags=["solution"]
# The schedule is indexed by t as it is, because its entry 0 is the clean clip; the network by t - 1, because it knows
# no clean clip. Two index origins in one function: that is where the off-by-one comes from.

# %% [markdown]
# ## 04.half · Where the noise wins
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: it tells which times draw edges and which decide the motion.
#
# `task` gives you a signal-to-noise ratio, alpha^2 / sigma^2. What is the first time t (1 to 1000, as we count) at
# which the released model's schedule (0.00085, 0.012, 1000) is *below* it? Guess before you compute.

# %%
task("04.half")

# %%
### BEGIN SOLUTION
bars = schedule(0.00085, 0.012, 1000)
answer_half = int((bars / (1 - bars) < task("04.half")["snr"]).nonzero()[0])
### END SOLUTION
check("04.half", answer_half)

# %% [markdown] tags=["solution"]
# The first index at which the ratio is below; index and time are the same, because entry 0 is t = 0.

# %% [markdown]
# ## What you have now

# %%
progress()
