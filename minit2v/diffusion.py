"""The noising process: how a clip dissolves into noise, and what the network learns from it.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, 1),    alpha(t)^2 + sigma(t)^2 = 1

A clean clip x_0 is mixed with noise: a little at t = 1, almost only noise at t = 1000. The network
sees x_t and t and says which noise eps was mixed in (or something as good, see `Process`). Knowing
x_t and eps we know x_0 (solve the line above for it), so a network that finds the noise is a network that
finds the clip. How to walk from noise to clip with it is the next module, `samplers.py`.

Sources: Ho et al. 2020 (DDPM, arXiv:2006.11239), section 2, for the process and the loss; Rombach et
al. 2022 for betas that are linear in their square root; Wang et al. 2023 (ModelScope), section 3,
which uses both unchanged on the latents of a video.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .config import DiffusionConfig

Time = int | Tensor                                      # one for all, (B,) one a sample, or (B, F) one a frame


def broadcast(values: Tensor, x: Tensor) -> Tensor:
    """One number a sample, or a frame, shaped so that it multiplies x; in the dtype and device of x.

    values: () for all, (B,) one a sample, or (B, F) one a frame, if x is a clip (B, C, F, h, w).
    Raises ValueError if the sizes do not fit.
    """
    if values.ndim == 0:
        shape = ()
    elif values.ndim == 1 and len(values) == x.shape[0]:
        shape = (-1,) + (1,) * (x.ndim - 1)                            # (B,) -> (B, 1, 1, 1, 1)
    elif values.ndim == 2 and x.ndim == 5 and values.shape == (x.shape[0], x.shape[2]):
        shape = (values.shape[0], 1, values.shape[1], 1, 1)            # (B, F) -> (B, 1, F, 1, 1)
    else:
        raise ValueError(f"times of shape {tuple(values.shape)} do not fit x of shape {tuple(x.shape)}; give one "
                         "number, (B,), or for clips (B, C, F, h, w) also (B, F)")
    return values.reshape(shape).to(x.dtype).to(x.device)


def draw_noise(shape: Sequence[int], generator: Generator | list[Generator]) -> Tensor:
    """Standard normal noise, float32 on the CPU, so that a seed means the same on every device.

    generator: a CPU torch.Generator, or a list of them, one a sample. With a list, each sample gets the
    noise that it would get alone, whatever else is in its batch.
    Raises ValueError if there is no generator, or a list of another length than the batch.
    """
    if generator is None:
        raise ValueError("noise is to be drawn but generator is None; pass torch.Generator().manual_seed(seed)")
    if isinstance(generator, Generator):
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}; give one, or one a sample")
    return torch.stack([torch.randn(shape[1:], generator=g, dtype=torch.float32) for g in generator])


class Process:
    """The variance-preserving process of DDPM with ModelScope's schedule; no parameters, no network.

    Counting time. Here t = 0 is clean and t = 1 .. 1000 are noisy, as in the DDPM paper. The released
    network counts its 1000 noise levels from 0, as arrays do: what we call t, it calls t - 1. This
    off-by-one is a classic bug; it is made in one place, `network_times`, and nowhere else.

    A time t is a whole number, or an integer tensor: (B,) one a sample, (B, F) one a frame. Everything is
    elementwise, so a frame at t = 0 (alpha 1, sigma 0) stays as it is, bit for bit.

    What the network answers is `config.prediction`. "noise" is eps, as in DDPM and in the released model.
    "velocity" is v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512), as in our mini model. Both
    say the same, but not equally well everywhere: at t = 1000 the noise is x_t but for 7 % of the clip, so to
    say anything about the clip a network must first copy its input to within a few per cent. A small one takes
    long to learn that; measured after 25,000 frames, its clip at t = 1000 was further off than a guess of zero.
    The velocity is there just minus the clip itself.

    The schedule is kept in float64 on the CPU (as the original computes it) and is cast to the dtype of
    the latents only when it multiplies them.
    """

    def __init__(self, config: DiffusionConfig):
        """Raises ValueError for a schedule that is no schedule: betas outside (0, 1), or no time steps."""
        if config.timesteps < 1 or not (0 < config.beta_start < 1 and 0 < config.beta_end < 1):
            raise ValueError(f"{config}: timesteps must be at least 1, beta_start and beta_end between 0 and 1")
        if config.prediction not in ("noise", "velocity"):
            raise ValueError(f'prediction is {config.prediction!r}; it must be "noise" or "velocity"')
        self.timesteps, self.prediction = config.timesteps, config.prediction
        betas = torch.linspace(config.beta_start ** 0.5, config.beta_end ** 0.5, self.timesteps,
                               dtype=torch.float64) ** 2               # share of noise added by each step
        clean = torch.ones(1, dtype=torch.float64)                     # alpha-bar at t = 0: nothing added yet
        self.alphas_cumprod = torch.cat([clean, (1 - betas).cumprod(0)])   # (1001,): index t, 0 .. 1000

    def _alpha_bar(self, t: Time) -> Tensor:
        t = torch.as_tensor(t).cpu()
        if t.is_floating_point() or t.min() < 0 or t.max() > self.timesteps:
            raise ValueError(f"t = {t.tolist()}: a time is a whole number from 0 (clean) to {self.timesteps} (noise)")
        return self.alphas_cumprod[t.long()]

    def alpha(self, t: Time) -> Tensor:
        """How much of the clip is left at t: sqrt(alpha-bar), from 1 down to 0.068. float64, shape of t."""
        return self._alpha_bar(t).sqrt()

    def sigma(self, t: Time) -> Tensor:
        """How much noise there is at t: sqrt(1 - alpha-bar), from 0 up to 0.998. float64, shape of t."""
        return (1 - self._alpha_bar(t)).sqrt()

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2: infinite at t = 0, 0.0047 at t = 1000. float64, shape of t."""
        return self._alpha_bar(t) / (1 - self._alpha_bar(t))

    def noise(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x0 as it looks at time t (DDPM eq. 4). x0, eps: (B, C, F, h, w) or (B, C, h, w); returns the same."""
        return broadcast(self.alpha(t), x0) * x0 + broadcast(self.sigma(t), x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """What the network should answer at time t, shaped as x0: the noise, or the velocity."""
        if self.prediction == "noise":
            return eps
        return broadcast(self.alpha(t), x0) * eps - broadcast(self.sigma(t), x0) * x0

    def split(self, output: Tensor, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The network's answer about x at time t, as the two parts of x: (x0, eps), both shaped as x.

        The parts add up again: noise(x0, t, eps) = x (up to rounding). For noise this is DDPM eq. 15, solved for
        x0; for the velocity it is the rotation that undoes the one of `noise` and `target`.
        """
        alpha, sigma = broadcast(self.alpha(t), x), broadcast(self.sigma(t), x)
        if self.prediction == "noise":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, sigma * x + alpha * output

    def network_times(self, t: Time, x: Tensor) -> Tensor:
        """t as the network counts: t - 1, (B,) or (B, F), on the device of x.

        A clean frame (t = 0) is shown as the least noisy level that the network knows, 0.
        """
        t = torch.as_tensor(t).to(x.device)
        return (t.expand(x.shape[0]) if t.ndim == 0 else t).clamp(min=1) - 1

    def times(self, steps: int, spacing: str = "modelscope") -> Tensor:
        """The times that a sampler visits, falling, the end included: integers, one more than there are steps.

        spacing, with the times for 25 steps as the network counts (ours are one higher):
        "modelscope" -- 961, 921, .. 41, 1, and the end at 0: the original's own list. From steps = 1000 // n
            it goes on until 1000 is full, so an n that does not divide 1000 costs more steps (31 for n = 30).
        "leading" -- what the released scheduler_config.json means in diffusers (steps_offset 1,
            set_alpha_to_one false): the same stride and end, but exactly n steps, so for n = 30 it starts
            at 958 and the noisiest levels are never visited. For n that divide 1000 the two are equal.
        "linspace" -- 999, 959, .. 80, 40, and the end at *clean*: DPMSolverMultistepScheduler in diffusers
            as in the model card. Starts from pure noise and goes all the way.
        A time that a list names twice is visited once: 1000 steps then are 999. (The original clamps its
        first time to 999 when 1000 // n divides 999, as for n = 27, and then lands that one step one lower.)

        Raises ValueError if steps is not a whole number from 1 to 1000, or for an unknown spacing.
        """
        total = self.timesteps
        if steps != int(steps) or not 1 <= steps <= total:
            raise ValueError(f"steps = {steps}: the number of steps must be a whole number from 1 to {total}")
        steps = int(steps)
        stride = total // steps
        if spacing == "modelscope":
            end, shown = 1, 1 + torch.arange(0, total, stride)
        elif spacing == "leading":
            end, shown = 1, 1 + torch.arange(steps) * stride
        elif spacing == "linspace":
            grid = torch.arange(1, steps + 1, dtype=torch.float64) * ((total - 1) / steps)
            end, shown = 0, grid.round().long()
        else:
            raise ValueError(f"spacing {spacing!r} is unknown; choose modelscope, leading or linspace")
        visited = shown.clamp(max=total - 1).unique() + 1              # rising, in our counting
        return torch.cat([torch.tensor([end]), visited]).flip(0)


def guided_denoiser(unet, process: Process, context: Tensor, uncond: Tensor | None = None,
                    guidance_scale: float = 1.0) -> Callable[[Tensor, Time], tuple[Tensor, Tensor]]:
    """The network with classifier-free guidance, as the function `denoise(x, t) -> (x0, eps)` samplers want.

    unet: unet(latents (B, 4, F, h, w), timesteps (B,) or (B, F), context) -> noise, shaped as the latents,
        and unet.prepare(context): the text's keys and values, which depend on no step: computed here, once.
    context: (B, L, D), the captions; uncond: (B, L, D) or (1, L, D), the empty or negative ones.
    guidance_scale: g in  eps = eps_uncond + g (eps_cond - eps_uncond), Ho & Salimans 2022 in the form of the
        original. 1 is no guidance and runs the network once per step; else both halves go as one batch of 2B.
    The latents are cast to the dtype of the context and the answer back, so the sampler's own state may stay
    in float32 around a half-precision network. Call the sampler under torch.inference_mode().
    Raises ValueError if guidance is asked for without uncond.
    """
    guided = guidance_scale != 1
    if guided and uncond is None:
        raise ValueError(f"guidance_scale = {guidance_scale} compares two captions, but uncond is None; "
                         "pass the empty caption's context, or guidance_scale 1")
    prepared = unet.prepare(torch.cat([uncond.expand_as(context), context]) if guided else context)

    def denoise(x, t):
        latents, timesteps = x.to(context.dtype), process.network_times(t, x)
        if guided:
            # (B, 4, F, h, w) -> (2B, 4, F, h, w)
            output = unet(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), prepared)
            eps_uncond, eps_cond = output.to(x.dtype).chunk(2)         # (2B, ..) -> (B, ..) twice
            output = eps_uncond + guidance_scale * (eps_cond - eps_uncond)
        else:
            output = unet(latents, timesteps, prepared).to(x.dtype)
        return process.split(output, x, t)

    return denoise


def loss_weight(process: Process, t: Time, clip: float = 1.0, min_snr: float | None = None) -> Tensor:
    """min(1 / alpha-bar(t), clip): how much the squared error at time t counts. float64, shape of t.

    clip = 1 is the plain DDPM loss (eq. 14), equal weight for all times. Unclipped, weighting by
    1 / alpha-bar turns the noise-prediction loss into the v-prediction loss of Salimans & Ho 2022
    (arXiv:2202.00512): an error of the noise by d is an error of v = alpha eps - sigma x0 by d / alpha.
    The weight grows up to 215 at t = 1000: attention shifts to high noise, where the motion of a clip is
    decided, while low noise, where its texture is, matters as before. (For a network that predicts the noise;
    one that predicts the velocity wants no weight.)

    min_snr = gamma weighs by SNR instead (Hang et al. 2023, arXiv:2303.09556, section 3.4; gamma 5 is theirs): an
    error of the clip x0 counts min(SNR, gamma), which for a predicted noise is min(SNR, gamma) / SNR, and for a
    velocity min(SNR, gamma) / (SNR + 1). Times with little noise, where all is seen already, then count less.
    """
    if min_snr is not None:
        snr = process.snr(t)
        return snr.clamp(max=min_snr) / (snr if process.prediction == "noise" else snr + 1)
    return (1 / process.alpha(t) ** 2).clamp(max=clip)


def denoising_loss(unet, process: Process, latents: Tensor, context: Tensor, generator: Generator,
                   t: Tensor | None = None, clip: float = 1.0,
                   min_snr: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The training objective: noise the latents, ask the network for the target, compare (DDPM algorithm 1).

    latents: (B, 4, F, h, w) clean; context: (B, L, D), captions already dropped where they should be.
    generator: CPU, draws t and then the noise. t: times 1 .. 1000, (B,) or (B, F), drawn uniformly if None.
    clip, min_snr: weights of the times, see `loss_weight`.
    Returns (loss, losses, t): the weighted mean, which is what to minimise; the plain squared error of each
    sample (B,), detached, and its times, for the log.
    Raises ValueError for t = 0: a clean sample has no noise to find.
    """
    if t is None:
        t = torch.randint(1, process.timesteps + 1, (latents.shape[0],), generator=generator)      # (B,)
    elif (torch.as_tensor(t) < 1).any():
        raise ValueError(f"t = {t}: training times start at 1; at t = 0 there is no noise to find")
    eps = draw_noise(latents.shape, generator).to(latents)
    output = unet(process.noise(latents, t, eps), process.network_times(t, latents), context)
    errors = (output.float() - process.target(latents, eps, t).float()) ** 2                        # (B, 4, F, h, w)
    loss = (broadcast(loss_weight(process, t, clip, min_snr), errors) * errors).mean()
    return loss, errors.detach().flatten(1).mean(1), t                                              # (), (B,), (B,)
