"""Samplers: the walk from noise back to a clip.

All of them repeat one move. At time t a `denoise` function guesses the clean clip x_0 that is hidden in
x_t; the sampler then goes to an earlier, less noisy time s on the way to that guess, and asks again.
They differ in how they go:

    ddpm                 a random step: draws x_s from what it can be, given x_t and x_0    (Ho et al. 2020)
    ddim                 a straight step: same x_0, same noise, mixed anew for time s       (Song et al. 2021)
    dpm_solver_pp        as ddim, aimed at where x_0 is heading, seen from its last change  (Lu et al. 2022)

Nothing here knows a network or a beta. A sampler is given `denoise(x, t) -> (x0, eps)` (guidance, if any,
is inside: `diffusion.guided_denoiser`), a process with alpha(t) and sigma(t), the noise x and the times,
and works elementwise on any shape. In each, `x` is the start, (B, C, F, h, w) or another shape, and
`times` falls, end included (`Process.times`): (N + 1,) for all alike; (N + 1, B) or (N + 1, B, F), one
for each sample or frame. A frame whose time is 0 stays untouched, bit for bit. `on_step(i, x0)`, if given,
is called after step i with the guess of the clean clip: for a progress bar, or to watch it appear.
`generator` is a CPU torch.Generator, or a list with one a sample (`diffusion.draw_noise`).
"""

import torch
from torch import Tensor

from .diffusion import Process, Time, broadcast, draw_noise


def _steps(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(N + 1, ..) -> the N pairs (t, s) from one time to the next. Raises ValueError unless the times fall."""
    if len(times) < 2 or (times[1:] > times[:-1]).any():
        raise ValueError(f"times {times.tolist()} must be at least two and never rise; see Process.times")
    return list(zip(times[:-1], times[1:]))


def _unless_clean(x: Tensor, x_next: Tensor, t: Time) -> Tensor:
    """x_next, except where t = 0: there is nothing left to remove there, and x stays."""
    return torch.where(broadcast(torch.as_tensor(t), x) == 0, x, x_next)


def posterior(process: Process, t: Time, s: Time) -> tuple[Tensor, Tensor, Tensor]:
    """x_s once x_t and x_0 are known (DDPM eq. 6 and 7, for a stride of any length), s <= t.

    Returns three coefficients, float64 in the shape of t: of x_0 and of x_t in the mean of x_s, and the standard
    deviation. `added` is the share of noise that the way from s to t puts in: beta_t, for a stride of one.
    """
    kept = process.alpha(t) / process.alpha(s)
    added = process.sigma(t) ** 2 - (kept * process.sigma(s)) ** 2
    shrink = (process.sigma(s) / process.sigma(t)) ** 2
    return process.alpha(s) * added / process.sigma(t) ** 2, kept * shrink, (added * shrink).clamp(min=0).sqrt()


def ddpm_step(process: Process, x: Tensor, x0: Tensor, t: Time, s: Time, z: Tensor) -> Tensor:
    """One ancestral step from t to s: a draw from q(x_s | x_t, x_0), DDPM eq. 6 and 7. z: standard normal noise.

    The variance is the posterior's own ("fixed_small"). x0 and z are shaped as x.
    """
    toward_x0, keep_x, std = (broadcast(coefficient, x) for coefficient in posterior(process, t, s))
    return _unless_clean(x, toward_x0 * x0 + keep_x * x + std * z, t)


def ddpm(denoise, process: Process, x: Tensor, times: Tensor, generator, on_step=None) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on every time or on a few. Returns x at the last time.

    The paper's own chain is times = torch.arange(1000, -1, -1). Noise is drawn at every step, on the CPU; the
    step that ends at t = 0 multiplies it by 0.
    """
    for i, (t, s) in enumerate(_steps(times)):
        x0, _ = denoise(x, t)
        x = ddpm_step(process, x, x0, t, s, draw_noise(x.shape, generator).to(x))
        if on_step is not None:
            on_step(i, x0)
    return x


def ddim_step(process: Process, x: Tensor, x0: Tensor, t: Time, s: Time, eta: float = 0.0,
              z: Tensor | None = None) -> Tensor:
    """One step from t to s: x0 and the noise in x, mixed anew for time s (Song et al. 2021, eq. 12).

    eta: the share of ddpm's randomness, from 0 (none, z is not used) to 1 (ddpm itself). As the original
    does, the noise is read off from x and x0, so a caller who changes x0 (clips it, say) stays consistent.
    The original adds no noise at its time 0, our t = 1; from there the only way is to s = 0, and the formula
    gives 0 by itself.
    """
    eps = (x - broadcast(process.alpha(t), x) * x0) / broadcast(process.sigma(t), x)
    if eta == 0:
        x_next = broadcast(process.alpha(s), x) * x0 + broadcast(process.sigma(s), x) * eps
    else:
        std = eta * posterior(process, t, s)[2]
        old_noise = (process.sigma(s) ** 2 - std ** 2).clamp(min=0).sqrt()      # old and new noise: sigma(s) in all
        x_next = broadcast(process.alpha(s), x) * x0 + broadcast(old_noise, x) * eps + broadcast(std, x) * z
    return _unless_clean(x, x_next, t)


def ddim(denoise, process: Process, x: Tensor, times: Tensor, eta: float = 0.0, generator=None, on_step=None) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502), the sampler of the original. Returns x at the last time.

    eta = 0: the start noise alone decides the clip; no generator is needed and none is advanced (the
    original draws noise even then, and throws it away). eta > 0 draws noise at every step, on the CPU.
    Raises ValueError for an eta outside 0 .. 1, or eta > 0 without a generator.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}: must lie between 0 (DDIM) and 1 (as random as DDPM)")
    for i, (t, s) in enumerate(_steps(times)):
        x0, _ = denoise(x, t)
        z = draw_noise(x.shape, generator).to(x) if eta > 0 else None
        x = ddim_step(process, x, x0, t, s, eta, z)
        if on_step is not None:
            on_step(i, x0)
    return x


def extrapolation(process: Process, t_last: Time, t: Time, s: Time) -> Tensor:
    """How far beyond x0 the 2M step from t to s aims, in units of x0's last change. float64, shape of t.

    In lambda = log(alpha / sigma), the solver's clock, x0 is taken to go on as it did from t_last to t, and
    the step uses its value half-way to s (the midpoint): h / (2 h_last), h being the length of a step.
    0, that is plain ddim, where there is nothing to extrapolate: no step before, or the goal is s = 0, where
    lambda is infinite.
    """
    clock = [torch.log(process.alpha(u) / process.sigma(u)) for u in (t_last, t, s)]
    h_last, h = clock[1] - clock[0], clock[2] - clock[1]
    usable = (h_last > 0) & torch.isfinite(h)
    return torch.where(usable, h / (2 * h_last), torch.zeros_like(h))


def dpm_solver_pp_step(process: Process, x: Tensor, x0: Tensor, t: Time, s: Time, x0_last: Tensor | None = None,
                       t_last: Time | None = None) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    Worked out, the paper's update is a ddim step with x0 replaced by a guess of what x0 is about to be.
    Without x0_last and t_last, the previous step's x0 and time, it is first order: ddim itself.
    """
    aim = x0
    if x0_last is not None:
        aim = x0 + broadcast(extrapolation(process, t_last, t, s), x) * (x0 - x0_last)
    return ddim_step(process, x, aim, t, s)


def dpm_solver_pp(denoise, process: Process, x: Tensor, times: Tensor, on_step=None) -> Tensor:
    """DPM-Solver++(2M): the same end as ddim in about half the steps. Returns x at the last time; no noise drawn.

    Equals diffusers' DPMSolverMultistepScheduler as in the model card (midpoint, final sigma zero, times of
    "linspace"). The first step is first order, so is any step that ends at t = 0 and, below 15 steps, the last
    one wherever it ends ("lower_order_final": few steps are long, and a long extrapolation overshoots).
    """
    x0_last = t_last = None
    steps = _steps(times)
    for i, (t, s) in enumerate(steps):
        x0, _ = denoise(x, t)
        if i == len(steps) - 1 and len(steps) < 15:
            x0_last = None
        x = dpm_solver_pp_step(process, x, x0, t, s, x0_last, t_last)
        x0_last, t_last = x0, t
        if on_step is not None:
            on_step(i, x0)
    return x
