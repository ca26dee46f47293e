"""Samplers against diffusers' schedulers, the original's own loop, and distributions whose answer is known."""

import math

import pytest
import torch

from minit2v.config import DiffusionConfig
from minit2v.diffusion import Process
from minit2v.samplers import ddim, ddim_step, ddpm, ddpm_step, dpm_solver_pp, dpm_solver_pp_step

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# as in the released scheduler_config.json
CARD = {**SCHEDULE, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
SHAPE = (2, 4, 3, 4, 4)
PROCESS = Process(DiffusionConfig())


def noise(seed, shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


MIX = noise(99, (4, 4), torch.float64)


def network(x, timesteps):
    """A fixed stand-in for a network: mixes the channels, bends them, depends on the time (as the network counts)."""
    time = torch.as_tensor(timesteps, dtype=x.dtype) / 1000
    if time.ndim > 0:
        time = time.reshape(len(x), 1, -1, 1, 1)                       # (B,) or (B, F) -> (B, 1, 1 or F, 1, 1)
    return 0.7 * x + 0.6 * torch.tanh(torch.einsum("oc,bcfhw->bofhw", MIX.to(x.dtype), x) * (0.3 + time) - time)


def denoise(x, t):
    return PROCESS.split(network(x, torch.as_tensor(t) - 1), x, t)


def close(ours, peer, tolerance=1e-5):
    """Equal up to `tolerance` of the largest magnitude."""
    difference, size = (ours - peer).abs().max().item(), peer.abs().max().item()
    assert difference <= tolerance * max(1.0, size), f"differs by {difference:.2e} where values reach {size:.2f}"


# --- against diffusers, step by step and as a whole ---

@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [50, 25, 30])
def test_ddim_is_that_of_diffusers(n, eta):
    peer = pytest.importorskip("diffusers").DDIMScheduler(**CARD)
    peer.set_timesteps(n)
    times, x, generator = PROCESS.times(n, "leading"), noise(0), torch.Generator().manual_seed(1)
    for i, step in enumerate(peer.timesteps):
        z = torch.randn(SHAPE, generator=generator)
        expected = peer.step(network(x, step), step, x, eta=eta, variance_noise=z if eta else None).prev_sample
        close(ddim_step(PROCESS, x, denoise(x, times[i])[0], times[i], times[i + 1], eta, z), expected)
        x = expected
    close(ddim(denoise, PROCESS, noise(0), times, eta, torch.Generator().manual_seed(1)), x)


@pytest.mark.parametrize("n", [50, 25, 30])
def test_ddpm_is_that_of_diffusers(n):
    peer = pytest.importorskip("diffusers").DDPMScheduler(**SCHEDULE, steps_offset=1, clip_sample=False,
                                                          variance_type="fixed_small")
    peer.set_timesteps(n)
    times, x = torch.cat([peer.timesteps + 1, torch.tensor([0])]), noise(0)       # this scheduler ends at clean
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for i, step in enumerate(peer.timesteps):
        expected = peer.step(network(x, step), step, x, generator=theirs).prev_sample
        z = torch.randn(SHAPE, generator=ours)
        close(ddpm_step(PROCESS, x, denoise(x, times[i])[0], times[i], times[i + 1], z), expected)
        x = expected
    close(ddpm(denoise, PROCESS, noise(0), times, torch.Generator().manual_seed(1)), x)


def test_ddpm_is_that_of_diffusers_on_every_time():
    peer = pytest.importorskip("diffusers").DDPMScheduler(**SCHEDULE, clip_sample=False)
    peer.set_timesteps(1000)
    x, generator = noise(0), torch.Generator().manual_seed(1)
    for step in peer.timesteps:
        x = peer.step(network(x, step), step, x, generator=generator).prev_sample
    close(ddpm(denoise, PROCESS, noise(0), torch.arange(1000, -1, -1), torch.Generator().manual_seed(1)), x, 1e-4)


def dpm_against_diffusers(peer, times, timesteps):
    x, x0_last, t_last = noise(0), None, None
    for i, step in enumerate(timesteps):
        expected = peer.step(network(x, step), step, x).prev_sample
        x0, _ = denoise(x, times[i])
        last_of_few = i == len(timesteps) - 1 and len(timesteps) < 15
        before = (None, None) if last_of_few else (x0_last, t_last)
        close(dpm_solver_pp_step(PROCESS, x, x0, times[i], times[i + 1], *before), expected)
        x, x0_last, t_last = expected, x0, times[i]
    close(dpm_solver_pp(denoise, PROCESS, noise(0), times), x)


@pytest.mark.parametrize("n", [1, 2, 5, 14, 15, 25, 50])
def test_dpm_solver_is_that_of_the_model_card(n):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DPMSolverMultistepScheduler.from_config(diffusers.DDIMScheduler(**CARD).config)
    peer.set_timesteps(n)
    dpm_against_diffusers(peer, PROCESS.times(n, "linspace"), peer.timesteps)


@pytest.mark.parametrize("n", [10, 13, 14, 20])                           # 10, 14, 15 and 20 steps
def test_dpm_solver_that_ends_before_clean(n):
    """On the original's times, which end at t = 1, the last of 15 or more steps is second order, of fewer first."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DPMSolverMultistepScheduler(**SCHEDULE, final_sigmas_type="sigma_min")
    times = PROCESS.times(n)
    peer.set_timesteps(timesteps=(times[:-1] - 1).tolist())
    dpm_against_diffusers(peer, times, peer.timesteps)


# --- against the original's own loop, written out from its formulas ---

def original_ddim(x, n, eta, generator):
    """ModelScope's DDIM loop in float64: its betas, its list of steps, its formulas, its way of counting from 0."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    abar, stride = torch.cumprod(1 - betas, 0), 1000 // n
    for t in (1 + torch.arange(0, 1000, stride)).clamp(0, 999).flip(0).tolist():
        out = network(x, t)
        x0 = math.sqrt(1 / abar[t]) * x - math.sqrt(1 / abar[t] - 1) * out
        eps = (math.sqrt(1 / abar[t]) * x - x0) / math.sqrt(1 / abar[t] - 1)
        a, a_prev = abar[t], abar[max(t - stride, 0)]
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        z = torch.randn(x.shape, generator=generator).double()
        x = math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev - sigma ** 2) * eps + (t != 0) * sigma * z
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("n", [50, 25, 30])
def test_ddim_is_the_loop_of_the_original(n, eta):
    expected = original_ddim(noise(0, dtype=torch.float64), n, eta, torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        x = ddim(denoise, PROCESS, noise(0, dtype=dtype), PROCESS.times(n), eta, torch.Generator().manual_seed(1))
        assert x.dtype == dtype
        close(x.double(), expected, tolerance)


def test_ddim_with_eta_1_is_ddpm():
    times = PROCESS.times(20, "linspace")
    runs = [f(denoise, PROCESS, noise(0, dtype=torch.float64), times, generator=torch.Generator().manual_seed(1), **kw)
            for f, kw in ((ddim, {"eta": 1.0}), (ddpm, {}))]
    close(runs[0], runs[1], 1e-11)


# --- against a distribution whose perfect denoiser is a formula ---

MEAN, STD = 1.5, 0.6


def gaussian_denoise(x, t):
    """The best guess of x0 if the data are N(MEAN, STD^2): its mean, given x."""
    alpha, sigma = PROCESS.alpha(t).item(), PROCESS.sigma(t).item()
    x0 = MEAN + alpha * STD ** 2 / (alpha ** 2 * STD ** 2 + sigma ** 2) * (x - alpha * MEAN)
    return x0, (x - alpha * x0) / sigma


SAMPLERS = {
    "ddpm": lambda d, x, times, **kw: ddpm(d, PROCESS, x, times, torch.Generator().manual_seed(1), **kw),
    "ddim": lambda d, x, times, **kw: ddim(d, PROCESS, x, times, **kw),
    "ddim eta 1": lambda d, x, times, **kw: ddim(d, PROCESS, x, times, 1.0, torch.Generator().manual_seed(1), **kw),
    "dpm++": lambda d, x, times, **kw: dpm_solver_pp(d, PROCESS, x, times, **kw),
}


@pytest.mark.parametrize("name, steps, tolerance", [("ddpm", 500, 0.02), ("ddim", 500, 0.01),
                                                    ("ddim eta 1", 500, 0.02), ("dpm++", 100, 0.015)])
def test_every_sampler_draws_from_the_right_distribution(name, steps, tolerance):
    """Mean and width of 100,000 samples. Few steps come out a little narrow, more steps less so."""
    z = noise(2, (100_000,))
    z = (z - z.mean()) / z.std()                                                  # no luck in the start
    start = PROCESS.alpha(1000).item() * MEAN + math.sqrt(1 + PROCESS.alpha(1000).item() ** 2 * (STD ** 2 - 1)) * z
    x = SAMPLERS[name](gaussian_denoise, start, PROCESS.times(steps, "linspace"))
    assert abs(x.mean().item() - MEAN) < 0.01                                     # standard error 0.002
    assert abs(x.std().item() / STD - 1) < tolerance
    assert abs(((x - x.mean()) ** 4).mean().item() / x.var().item() ** 2 - 3) < 0.1      # still a bell


@pytest.mark.parametrize("end", [300, 500])
def test_dpm_solver_is_of_second_order(end):
    """Half-way the exact path is known: doubling the steps halves ddim's error and quarters that of 2M."""
    def spread(t):
        return math.sqrt(PROCESS.alpha(t).item() ** 2 * STD ** 2 + PROCESS.sigma(t).item() ** 2)
    z = noise(2, (100,), torch.float64)
    start, exact = (PROCESS.alpha(t).item() * MEAN + spread(t) * z for t in (1000, end))
    errors = {}
    for name in ("ddim", "dpm++"):
        for steps in (25, 50, 100):
            times = torch.linspace(1000, end, steps + 1, dtype=torch.float64).round().long()
            errors[name, steps] = (SAMPLERS[name](gaussian_denoise, start, times) - exact).abs().max().item()
    for few in (25, 50):
        assert 1.8 < errors["ddim", few] / errors["ddim", 2 * few] < 2.2
        assert 3.6 < errors["dpm++", few] / errors["dpm++", 2 * few] < 4.4
    assert errors["dpm++", 25] < errors["ddim", 100]


# --- seams ---

@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_columns_change_no_bit(name):
    times = PROCESS.times(20, "linspace")
    one = SAMPLERS[name](denoise, noise(0), times)
    assert torch.equal(one, SAMPLERS[name](denoise, noise(0), times[:, None].expand(21, 2)))
    assert torch.equal(one, SAMPLERS[name](denoise, noise(0), times[:, None, None].expand(21, 2, 3)))


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_clean_frame_stays_untouched_at_every_step(name, end):
    times = PROCESS.times(20, "linspace" if end == 0 else "modelscope")
    assert times[-1] == end
    framed = times[:, None, None].repeat(1, 2, 3)                                 # (N + 1, B, F)
    framed[:, 0, 1] = 0
    framed[:, 1] = 0
    seen = []

    def watching(x, t):
        seen.append(x[:, :, 1].clone())
        assert torch.isfinite(x).all()
        return denoise(x, t)

    x = SAMPLERS[name](watching, noise(0), framed)
    clean = noise(0)
    for state in [*(s[0] for s in seen), x[0, :, 1]]:
        assert torch.equal(state.view(torch.int32), clean[0, :, 1].view(torch.int32))       # the very bits
    assert torch.equal(x[1].view(torch.int32), clean[1].view(torch.int32))
    plain = SAMPLERS[name](denoise, noise(0), times)
    assert torch.equal(x[0, :, [0, 2]], plain[0, :, [0, 2]])                      # the others do not notice


def test_a_clean_frame_survives_a_denoiser_that_fails_there():
    times = PROCESS.times(5, "linspace")[:, None, None].repeat(1, 2, 3)
    times[:, :, 0] = 0

    def failing(x, t):
        x0, eps = denoise(x, t)
        x0[:, :, 0] = math.nan
        return x0, eps

    for name in SAMPLERS:
        x = SAMPLERS[name](failing, noise(0), times)
        assert torch.equal(x[:, :, 0], noise(0)[:, :, 0]) and torch.isfinite(x).all(), name


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_frames_may_arrive_one_after_another(name):
    """Frame f starts f steps late and waits at t = 1000: it comes out as if it had been sampled alone."""
    own, delay = PROCESS.times(16, "linspace"), 3
    rows = [torch.cat([own[:1].expand(delay * f), own, own[-1:].expand(delay * (2 - f))]) for f in range(3)]
    times = torch.stack(rows, dim=1)[:, None].expand(-1, 2, 3)                    # (N + 1, B, F)
    x = SAMPLERS[name](denoise, noise(0), times)
    close(x, SAMPLERS[name](denoise, noise(0), own), 1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_step_sees_each_guess_and_no_global_state_moves(name):
    calls, before = [], torch.get_rng_state()
    x = SAMPLERS[name](denoise, noise(0), PROCESS.times(6, "linspace"), on_step=lambda i, x0: calls.append((i, x0)))
    assert [i for i, _ in calls] == list(range(6))
    assert torch.equal(calls[0][1], denoise(noise(0), 1000)[0])
    close(x, calls[-1][1], 1e-6)                                                  # the last guess is the result
    assert torch.equal(before, torch.get_rng_state())


def test_ddim_without_eta_draws_nothing():
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    ddim(denoise, PROCESS, noise(0), PROCESS.times(5), 0.0, generator)
    assert torch.equal(state, generator.get_state())


def test_a_sample_gets_its_own_noise_alone_or_in_a_batch():
    times = PROCESS.times(10)
    both = ddpm(denoise, PROCESS, noise(0), times, [torch.Generator().manual_seed(seed) for seed in (8, 9)])
    alone = ddpm(denoise, PROCESS, noise(0)[1:], times, [torch.Generator().manual_seed(9)])
    close(both[1:], alone, 1e-6)


def test_bad_input():
    x, times = noise(0), PROCESS.times(5)
    with pytest.raises(ValueError, match="never rise"):
        ddim(denoise, PROCESS, x, times.flip(0))
    with pytest.raises(ValueError, match="at least two"):
        dpm_solver_pp(denoise, PROCESS, x, times[:1])
    with pytest.raises(ValueError, match="eta = 1.5"):
        ddim(denoise, PROCESS, x, times, eta=1.5)
    with pytest.raises(ValueError, match="generator is None"):
        ddim(denoise, PROCESS, x, times, eta=0.5)
    with pytest.raises(ValueError, match="generator is None"):
        ddpm(denoise, PROCESS, x, times, None)
    with pytest.raises(ValueError, match="do not fit"):
        ddim_step(PROCESS, x, x, torch.tensor([5, 5, 5]), torch.tensor([4, 4, 4]))
