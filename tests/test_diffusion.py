"""The noising process, the training loss and guidance, against the original, diffusers and plain formulas."""

import math

import numpy as np
import pytest
import torch

from minit2v.config import DiffusionConfig, UNetConfig
from minit2v.diffusion import Process, broadcast, denoising_loss, draw_noise, guided_denoiser, loss_weight
from minit2v.unet import UNet

TINY = UNetConfig(channels=32, multipliers=(1, 2), res_blocks=1, attention=(True, False), head_dim=16, input_heads=2,
                  context_dim=8, norm_groups=8, dropout=0.0)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture
def process():
    return Process(DiffusionConfig())


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def tiny_unet(seed=0):
    """A real, small network with no zeros in it, so that time, text and every weight matter."""
    unet, generator = UNet(TINY).eval(), torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return unet


def raises_nothing_global(function):
    """Runs the function and asserts that the global random state did not move."""
    before = torch.get_rng_state()
    result = function()
    assert torch.equal(before, torch.get_rng_state())
    return result


# --- schedule ---

def test_alpha_bar_from_a_plain_loop(process):
    product, expected = 1.0, [1.0]
    for i in range(1000):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999
        product *= 1 - root * root
        expected.append(product)
    assert process.alphas_cumprod.dtype == torch.float64
    np.testing.assert_allclose(process.alphas_cumprod.numpy(), expected, rtol=1e-12)
    assert round(process.alphas_cumprod[1].item(), 5) == 0.99915            # the original's alpha-bar[0]
    assert round(process.alphas_cumprod[1000].item(), 7) == 0.0046601       # and [999]


def test_alpha_bar_is_that_of_diffusers(process):
    peer = pytest.importorskip("diffusers").DDIMScheduler(**SCHEDULE)
    np.testing.assert_allclose(process.alphas_cumprod[1:].numpy(), peer.alphas_cumprod.numpy(), rtol=1e-6)


def test_alpha_sigma_snr(process):
    t = torch.arange(1001)
    assert (process.alpha(t) ** 2 + process.sigma(t) ** 2 - 1).abs().max() < 1e-15
    assert process.alpha(0) == 1 and process.sigma(0) == 0 and process.snr(0) == math.inf
    assert torch.allclose(process.snr(t[1:]), (process.alpha(t[1:]) / process.sigma(t[1:])) ** 2, rtol=1e-9)
    assert round(process.snr(1000).item(), 4) == 0.0047
    assert process.alpha(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3)


@pytest.mark.parametrize("t", [-1, 1001, 0.5, torch.tensor([3, 1001])])
def test_times_outside_the_schedule_are_refused(process, t):
    with pytest.raises(ValueError, match="whole number from 0"):
        process.alpha(t)


@pytest.mark.parametrize("wrong", [{"timesteps": 0}, {"beta_end": 1.2}, {"beta_start": 0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match="beta_end between 0 and 1"):
        Process(DiffusionConfig(**wrong))


# --- forward process ---

def test_noise_is_diffusers_add_noise_with_the_time_one_higher(process, generator):
    peer = pytest.importorskip("diffusers").DDIMScheduler(**SCHEDULE)
    x0, eps = torch.randn(4, 4, 3, 2, 2, generator=generator), torch.randn(4, 4, 3, 2, 2, generator=generator)
    t = torch.tensor([1, 2, 500, 1000])
    torch.testing.assert_close(process.noise(x0, t, eps), peer.add_noise(x0, eps, t - 1), rtol=0, atol=1e-6)
    image = process.noise(x0[:, :, 0], t, eps[:, :, 0])                                  # (B, C, h, w)
    assert torch.equal(image, process.noise(x0, t, eps)[:, :, 0])
    assert torch.equal(process.network_times(t, x0), t - 1)


def test_split_undoes_noise(process, generator):
    x0, eps = (torch.randn(5, 4, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0, 1, 250, 700, 1000])
    found, same_eps = process.split(process.target(x0, eps, t), process.noise(x0, t, eps), t)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-12)
    assert torch.equal(same_eps, eps)


def test_velocity_is_that_of_diffusers_and_splits_back(generator):
    schedulers = pytest.importorskip("diffusers")
    peer = schedulers.DDIMScheduler(**{**SCHEDULE, "prediction_type": "v_prediction", "clip_sample": False})
    process = Process(DiffusionConfig(prediction="velocity"))
    x0, eps = (torch.randn(4, 4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1, 250, 700, 1000])
    velocity = process.target(x0, eps, t)
    torch.testing.assert_close(velocity, peer.get_velocity(x0, eps, t - 1), rtol=0, atol=1e-6)      # its abar: float32
    noisy = process.noise(x0, t, eps)
    found_x0, found_eps = process.split(velocity, noisy, t)
    torch.testing.assert_close(found_x0, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_eps, eps, rtol=0, atol=1e-12)
    peer.set_timesteps(1000)
    peers = peer.step(velocity[1], 249, noisy[1]).pred_original_sample
    torch.testing.assert_close(process.split(velocity, noisy, t)[0][1], peers, rtol=0, atol=1e-5)
    clean = torch.zeros(4, dtype=torch.long)
    assert torch.equal(process.split(velocity, x0, clean)[0], x0)                                   # t = 0: untouched
    with pytest.raises(ValueError, match="clip.*noise.*velocity"):
        Process(DiffusionConfig(prediction="clip"))


def test_a_time_for_each_frame(process, generator):
    x0, eps = torch.randn(2, 4, 3, 2, 2, generator=generator), torch.randn(2, 4, 3, 2, 2, generator=generator)
    t = torch.tensor([300, 800])
    columns = t[:, None].expand(2, 3)
    assert torch.equal(process.noise(x0, t, eps), process.noise(x0, columns, eps))
    assert torch.equal(process.split(eps, x0, t)[0], process.split(eps, x0, columns)[0])
    assert torch.equal(process.noise(x0, 300, eps)[0], process.noise(x0, t, eps)[0])
    mixed = torch.tensor([[0, 10, 1000], [700, 0, 1]])
    noisy = process.noise(x0, mixed, eps)
    for b in range(2):
        for f in range(3):
            alone = process.noise(x0[b:b + 1, :, f], mixed[b, f].view(1), eps[b:b + 1, :, f])
            assert torch.equal(noisy[b, :, f], alone[0])
    assert torch.equal(noisy[0, :, 0], x0[0, :, 0]) and torch.equal(noisy[1, :, 1], x0[1, :, 1])      # t = 0
    assert torch.equal(process.split(eps, noisy, mixed)[0][0, :, 0], x0[0, :, 0])
    assert process.network_times(mixed, x0).tolist() == [[0, 9, 999], [699, 0, 0]]
    assert process.network_times(7, x0).tolist() == [6, 6]


def test_broadcast_keeps_the_type_of_x_and_refuses_what_does_not_fit():
    clip, image = torch.zeros(2, 4, 3, 5, 5, dtype=torch.bfloat16), torch.zeros(2, 4, 5, 5)
    assert broadcast(torch.ones(2, dtype=torch.float64), clip).shape == (2, 1, 1, 1, 1)
    assert broadcast(torch.ones(2, 3, dtype=torch.float64), clip).shape == (2, 1, 3, 1, 1)
    assert broadcast(torch.ones(2, 3, dtype=torch.float64), clip).dtype == torch.bfloat16
    for shape, x in (((3,), clip), ((3, 2), clip), ((2, 4), image), ((1, 1, 1), clip)):
        with pytest.raises(ValueError, match="do not fit"):
            broadcast(torch.ones(shape), x)


def test_noise_belongs_to_its_generator():
    def seeds():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = raises_nothing_global(lambda: draw_noise((2, 4, 3), seeds()))
    assert torch.equal(both[1:], draw_noise((1, 4, 3), seeds()[1])) and not torch.equal(both[0], both[1])
    assert torch.equal(draw_noise((1, 4, 3), seeds()[0]), torch.randn(1, 4, 3, generator=seeds()[0]))
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        draw_noise((3, 4), seeds())
    with pytest.raises(ValueError, match="generator is None"):
        draw_noise((3, 4), None)


# --- times ---

def test_times_word_for_word(process):
    fifty = list(range(981, 0, -20))                                                   # 981, 961, .. 21, 1
    assert (process.times(50) - 1).tolist() == [*fifty, 0]
    assert (process.times(25) - 1).tolist() == [*range(961, 0, -40), 0]
    assert (process.times(50, "leading") - 1).tolist() == [*fifty, 0]
    thirty = [958, 925, 892, 859, 826, 793, 760, 727, 694, 661, 628, 595, 562, 529, 496, 463, 430, 397, 364, 331, 298,
              265, 232, 199, 166, 133, 100, 67, 34, 1]
    assert (process.times(30, "leading") - 1).tolist() == [*thirty, 0]
    assert (process.times(30, "modelscope") - 1).tolist() == [991, *thirty, 0]         # one step more
    linspace = process.times(25, "linspace")
    assert (linspace[:-1] - 1).tolist() == [999, 959, 919, 879, 839, 799, 759, 719, 679, 639, 599, 559, 519, 480, 440,
                                            400, 360, 320, 280, 240, 200, 160, 120, 80, 40]
    assert linspace[-1] == 0


def test_times_of_the_original_for_every_number_of_steps(process):
    for n in range(1, 1001):
        visited = (1 + torch.arange(0, 1000, 1000 // n)).clamp(0, 999).flip(0).tolist()     # the original's own line
        distinct = [t for i, t in enumerate(visited) if i == 0 or t != visited[i - 1]]
        assert (process.times(n) - 1).tolist() == [*distinct, 0], n
        assert (len(distinct) < len(visited)) == (n > 500)
    assert [len(process.times(1000, s)) for s in ("modelscope", "leading", "linspace")] == [1000, 1000, 1000]
    assert (process.times(27)[:2] - 1).tolist() == [999, 963]                           # the original goes to 999 - 37


def test_times_of_diffusers_for_every_number_of_steps(process):
    diffusers = pytest.importorskip("diffusers")
    ddim = diffusers.DDIMScheduler(**SCHEDULE, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    dpm = diffusers.DPMSolverMultistepScheduler.from_config(ddim.config)
    for n in range(1, 1000):
        ddim.set_timesteps(n)
        assert torch.equal(process.times(n, "leading"), torch.cat([ddim.timesteps + 1, torch.tensor([1])])), n
        dpm.set_timesteps(n)
        assert torch.equal(process.times(n, "linspace"), torch.cat([dpm.timesteps + 1, torch.tensor([0])])), n


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5])
def test_a_number_of_steps_that_is_none(process, steps):
    with pytest.raises(ValueError, match=f"steps = {steps}: .* from 1 to 1000"):
        process.times(steps)


def test_unknown_spacing(process):
    with pytest.raises(ValueError, match="'trailing' is unknown; choose modelscope, leading or linspace"):
        process.times(10, "trailing")


# --- training ---

def test_loss_is_the_mean_squared_error_of_the_noise(process):
    unet = tiny_unet()
    generator = torch.Generator().manual_seed(1)
    latents, context = torch.randn(3, 4, 2, 4, 4, generator=generator), torch.randn(3, 5, 8, generator=generator)
    generator = torch.Generator().manual_seed(2)
    loss, losses, t = raises_nothing_global(lambda: denoising_loss(unet, process, latents, context, generator))

    generator = torch.Generator().manual_seed(2)
    expected_t = torch.randint(1, 1001, (3,), generator=generator)
    eps = torch.randn(latents.shape, generator=generator)
    abar = process.alphas_cumprod[expected_t].float().view(3, 1, 1, 1, 1)
    answer = unet(abar.sqrt() * latents + (1 - abar).sqrt() * eps, expected_t - 1, context)
    expected = torch.stack([((a - e) ** 2).mean() for a, e in zip(answer, eps)])
    assert torch.equal(t, expected_t)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-5, atol=0)
    assert loss.requires_grad and not losses.requires_grad
    loss.backward()
    assert unet.conv_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize("clip", [1.0, 30.0, math.inf])
def test_weight_one_over_alpha_bar_is_the_v_prediction_loss(process, clip):
    """The loss of v = alpha eps - sigma x0, written out, for a network that predicts the noise (in float64)."""
    unet = tiny_unet().double()
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 4, 2, 4, 4, generator=generator, dtype=torch.float64)
    context = torch.randn(4, 5, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 300, 820, 1000])
    generator = torch.Generator().manual_seed(4)
    loss, losses, _ = denoising_loss(unet, process, latents, context, generator, t=t, clip=clip)

    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4)).double()
    alpha, sigma = (f(t).view(4, 1, 1, 1, 1) for f in (process.alpha, process.sigma))
    x = alpha * latents + sigma * eps
    found_eps = unet(x, t - 1, context)
    found_x0 = (x - sigma * found_eps) / alpha
    v_loss = (((alpha * found_eps - sigma * found_x0) - (alpha * eps - sigma * latents)) ** 2).flatten(1).mean(1)
    plain = ((found_eps - eps) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(losses.double(), plain, rtol=1e-5, atol=0)
    expected = torch.where(1 / alpha.flatten() ** 2 <= clip, v_loss, clip * plain)
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=0)
    assert 214 < loss_weight(process, 1000, math.inf) < 215 and loss_weight(process, t).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_min_snr_is_a_weighted_loss_of_the_clip_itself(prediction):
    """Hang et al. 2023: the squared error of x0 counts min(SNR, gamma), whatever the network predicts (in float64)."""
    process, gamma, unet = Process(DiffusionConfig(prediction=prediction)), 5.0, tiny_unet().double()
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 4, 2, 4, 4, generator=generator, dtype=torch.float64)
    context = torch.randn(4, 5, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 100, 500, 1000])                             # SNR 1,176, 8.6, 0.38, 0.0047
    loss, _, _ = denoising_loss(unet, process, latents, context, torch.Generator().manual_seed(4), t=t, min_snr=gamma)

    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4)).double()
    x = process.noise(latents, t, eps)
    found_x0, _ = process.split(unet(x, t - 1, context), x, t)
    abar = process.alphas_cumprod[t]
    weight = torch.minimum(abar / (1 - abar), torch.tensor(gamma))
    expected = weight * ((found_x0 - latents) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-4, atol=0)
    assert (weight == gamma).tolist() == [True, True, False, False]


def test_loss_with_a_time_for_each_frame(process):
    unet = tiny_unet()
    latents, context = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.ones(2, 5, 8)
    t = torch.tensor([40, 900])
    def run(t):
        return denoising_loss(unet, process, latents, context, torch.Generator().manual_seed(2), t=t, clip=30.0)
    columns = run(t[:, None].expand(2, 3))
    for one, other in zip(run(t)[:2], columns[:2]):
        assert torch.equal(one, other)
    assert not torch.equal(run(torch.tensor([[40, 40, 900], [900, 900, 40]]))[0], columns[0])
    with pytest.raises(ValueError, match="start at 1"):
        run(torch.tensor([0, 5]))


def test_training_times_are_uniform_from_1_to_1000(process):
    def answer(x, timesteps, context):
        assert 0 <= timesteps.min() and timesteps.max() <= 999
        return x
    latents = torch.zeros(100_000, 1, 1, 1, 1)
    _, _, t = denoising_loss(answer, process, latents, None, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=1001)
    assert len(counts) == 1001 and counts[0] == 0
    assert 50 < counts[1:].min() and counts[1:].max() < 160                      # 100 each, standard deviation 10


# --- guidance ---

class CountingUNet(UNet):
    """The real network, keeping a list of what it was asked."""

    def __init__(self, config):
        super().__init__(config)
        self.batches, self.prepared = [], 0

    def prepare(self, context):
        self.prepared += 1
        return super().prepare(context)

    def forward(self, latents, timesteps, context):
        self.batches.append((len(latents), timesteps.tolist()))
        return super().forward(latents, timesteps, context)


def guidance_case():
    unet = CountingUNet(TINY).eval()
    unet.load_state_dict(tiny_unet().state_dict())
    generator = torch.Generator().manual_seed(7)
    x, context = torch.randn(2, 4, 3, 4, 4, generator=generator), torch.randn(2, 5, 8, generator=generator)
    return unet, x, context, torch.randn(1, 5, 8, generator=generator)


@torch.no_grad()
def test_guidance_1_runs_the_network_once(process):
    unet, x, context, uncond = guidance_case()
    denoise = guided_denoiser(unet, process, context, uncond, guidance_scale=1)
    for t in (900, 500):
        x0, eps = denoise(x, torch.tensor(t))
    assert unet.batches == [(2, [899, 899]), (2, [499, 499])] and unet.prepared == 1
    expected = tiny_unet()(x, torch.tensor([499, 499]), context)
    assert torch.equal(eps, expected)
    abar = process.alphas_cumprod[500].item()
    torch.testing.assert_close(x0, (x - (1 - abar) ** 0.5 * expected) / abar ** 0.5, rtol=1e-5, atol=1e-5)
    assert torch.equal(guided_denoiser(unet, process, context)(x, 500)[1], eps)      # without uncond: the same


@torch.no_grad()
def test_guidance_7_is_the_formula(process):
    unet, x, context, uncond = guidance_case()
    denoise = guided_denoiser(unet, process, context, uncond, guidance_scale=7.0)
    t = torch.tensor([[3, 900, 0], [1000, 20, 400]])
    _, eps = denoise(x, t)
    denoise(x, t)
    assert unet.batches == [(4, [[2, 899, 0], [999, 19, 399]] * 2)] * 2 and unet.prepared == 1
    plain, timesteps = tiny_unet(), (t - 1).clamp(min=0)
    conditional, unconditional = plain(x, timesteps, context), plain(x, timesteps, uncond.expand(2, 5, 8))
    assert (conditional - unconditional).abs().max() > 1e-2                          # the text does matter
    expected = unconditional + 7 * (conditional - unconditional)
    torch.testing.assert_close(eps, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@torch.no_grad()
def test_the_state_stays_float32_around_a_bfloat16_network(process):
    unet, x, context, uncond = guidance_case()
    denoise = guided_denoiser(unet.bfloat16(), process, context.bfloat16(), uncond.bfloat16(), guidance_scale=2.0)
    x0, eps = denoise(x, 500)
    assert x0.dtype == eps.dtype == torch.float32
    assert torch.equal(x0, process.split(eps, x, 500)[0])


def test_guidance_needs_something_to_compare(process):
    unet, _, context, _ = guidance_case()
    with pytest.raises(ValueError, match="guidance_scale = 9.0 compares two captions, but uncond is None"):
        guided_denoiser(unet, process, context, guidance_scale=9.0)
