# %% [markdown]
# # 06 · Exercises: sampling
#
# Five exercises on chapter 06, about 80 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("06.ddim")` helps, a little more each time.
#
# In all of them `bar_t` is alpha-bar at the time you come from and `bar_s` at the time you go to, which is less noisy.

# %%
import math

import torch
from torch import Tensor

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task

one = torch.ones(1)

# %% [markdown]
# ## 06.ddim · A step of DDIM
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: it is the original's sampler.
#
# Mix x_s from the guess of the clip `x0`, the noise `eps` that goes with it, and fresh `noise`. `eta` from 0 to 1 says
# how much of the old noise is exchanged for fresh; at 1 the fresh noise has the spread of DDPM's posterior.

# %%
def ddim_step(x0: Tensor, eps: Tensor, noise: Tensor, bar_t: float, bar_s: float, eta: float) -> Tensor:
    """DDIM, eq. 12 and 16 (Song et al. 2021). All tensors and the result have one shape."""
    ### BEGIN SOLUTION
    fresh = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    return math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s - fresh ** 2) * eps + fresh * noise
    ### END SOLUTION


ddim_step(0 * one, one, 0 * one, 0.3, 0.6, eta=0.0)          # the root of 0.4: 0.6325

# %% tags=["nbval-check-output"]
check("06.ddim", ddim_step)

# %% [markdown] tags=["solution"]
# At time s the noise must have the variance 1 - alpha-bar_s. What comes fresh is taken from what was found, so the
# squares of the two factors always add up to that.

# %% [markdown]
# ## 06.ddpm · A step of DDPM
#
# *Build · hard · 20 minutes · 3 points.* Why it matters: this is the only one of our samplers that follows from
# probability alone, without an approximation between two times.
#
# Draw x_s from the posterior q(x_s | x_t, x_0), of which you know the mean and the variance. `x` is x_t, `noise` has
# unit size.

# %%
def ddpm_step(x: Tensor, x0: Tensor, noise: Tensor, bar_t: float, bar_s: float) -> Tensor:
    """DDPM, eq. 6 and 7 (Ho et al. 2020), for a jump from t to s. All tensors and the result have one shape."""
    ### BEGIN SOLUTION
    kept = bar_t / bar_s
    mean = (math.sqrt(bar_s) * (1 - kept) * x0 + math.sqrt(kept) * (1 - bar_s) * x) / (1 - bar_t)
    variance = (1 - kept) * (1 - bar_s) / (1 - bar_t)
    return mean + math.sqrt(variance) * noise
    ### END SOLUTION


ddpm_step(one, one, 0 * one, 0.3, 0.6)                       # 0.9573

# %% tags=["nbval-check-output"]
check("06.ddpm", ddpm_step)

# %% [markdown] tags=["solution"]
# The paper's equation with alpha-bar_t / alpha-bar_s in the place of alpha_t. It is Bayes' rule for two Gaussians: what
# x_0 says of x_s, and what x_t says of it, weighted by how sure each is.

# %% [markdown]
# ## 06.dpm · A step of DPM-Solver++(2M)
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: fifteen of these do the work of fifty of DDIM.
#
# `x0` is the guess at the time t, `before` the guess at the time before it, where alpha-bar was `bar_before`. The
# guess changed by `x0 - before` over the last step. Follow this line half of the *coming* step on; measure both steps
# in lambda = log(alpha / sigma), for they differ in length. Then make the step, as one of first order is made with `x0`
# (section 6 of the chapter). `bar_s` is below 1.

# %%
def dpm_step(x: Tensor, x0: Tensor, before: Tensor, bar_before: float, bar_t: float, bar_s: float) -> Tensor:
    """DPM-Solver++, algorithm 2 (Lu et al. 2022). All tensors and the result have one shape."""
    ### BEGIN SOLUTION
    lambdas = [math.log(bar / (1 - bar)) / 2 for bar in (bar_before, bar_t, bar_s)]
    last, h = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
    guess = x0 + h / (2 * last) * (x0 - before)
    return math.sqrt((1 - bar_s) / (1 - bar_t)) * x - math.sqrt(bar_s) * (math.exp(-h) - 1) * guess
    ### END SOLUTION


dpm_step(one, one, 0 * one, 0.1, 0.3, 0.6)                   # 1.2838

# %% tags=["nbval-check-output"]
check("06.dpm", dpm_step)

# %% [markdown] tags=["solution"]
# In lambda the noise part can be solved exactly, and only the guess has to be approximated: by a straight line through
# the last two guesses, taken at the middle of the step.

# %% [markdown]
# ## 06.guide · The prompt turned round
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: this mistake makes clips that look fine and show anything but
# the prompt.
#
# `without` is the network's answer to the empty prompt, `within` the one to yours. Somebody's guidance leads away from
# the prompt. Find out why, and mend it: at scale 0 the prompt should not count, at scale 1 once.

# %%
def guide(without: Tensor, within: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), with the released model's scale: the paper's w + 1."""
    ### BEGIN SOLUTION
    return without + scale * (within - without)
    ### END SOLUTION
    return within + scale * (without - within)               # broken: mend this


[round(guide(torch.tensor(1.0), torch.tensor(3.0), scale).item(), 1) for scale in (0.0, 1.0, 4.0)]     # 1, 3, 9

# %% tags=["nbval-check-output"]
check("06.guide", guide)

# %% [markdown] tags=["solution"]
# The walk begins at the answer without the prompt and goes `scale` times the way to the one with it. In batches the two
# halves are easily confused: the empty prompt comes first, in ours as in the original.

# %% [markdown]
# ## 06.cost · What a clip costs
#
# *Explore · easy · 5 minutes · 1 point.* Why it matters: this number is nearly all of the time that you wait.
#
# `task` gives you settings. How many clips go through the network in all, counted one by one?

# %%
task("06.cost")

# %%
### BEGIN SOLUTION
answer_cost = 2 * task("06.cost")["steps"] * task("06.cost")["prompts"]
### END SOLUTION
check("06.cost", answer_cost)

# %% [markdown] tags=["solution"]
# One pass a step and a clip, and with guidance two: with the prompt and without. They go as one batch, which saves time
# but no work.

# %% [markdown]
# ## The model runs on your code
#
# No points, but the best moment. Write the loop around your step. `times` is a falling tensor of whole numbers (here
# 992, 926, and so on down to 2 and 1, the original's list): ask at each but the last, and go from `times[i]` to
# `times[i + 1]`. `denoise(x, t)` answers with (x0, eps), and `process.alphas_cumprod[t]` is alpha-bar at t. At eta = 0
# the fresh noise does not count: hand in zeros. Return the last x. `pipe.swap` then puts your loop in the place of the
# package's sampler, and the same clip must come out.

# %%
def my_ddim(denoise, process, x, times, eta=0.0, generator=None, on_step=None):
    """Walks x down `times` with your ddim_step, eta = 0; calls on_step(i, x0) after each step. Returns x."""
    ### BEGIN SOLUTION
    for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
        x0, eps = denoise(x, t)
        bar_t, bar_s = process.alphas_cumprod[t].item(), process.alphas_cumprod[s].item()
        x = ddim_step(x0, eps, torch.zeros_like(x), bar_t, bar_s, eta=0.0)
        on_step(i, x0)
    return x
    ### END SOLUTION


pipe = minit2v.load()
clip = pipe("a red circle moves right", num_inference_steps=15, progress=False)
mine = pipe.swap(ddim=my_ddim)("a red circle moves right", num_inference_steps=15, progress=False)
same = (clip.int() - mine.int()).abs().max() <= 1            # the last digit of a colour may be rounded otherwise
assert same, "not the same clip: look at the indices of alphas_cumprod, and at the last step"
figures.strip([clip, mine], titles=["with the package's sampler", "with yours"],
              alt="Two film strips of the same clip, one made with each sampler. They look alike.")

# %% [markdown]
# ## What you have now

# %%
progress()
