"""Against the original itself: UNet, sampling loop and autoencoder, run from the files of the `modelscope` package."""

import original as theirs
import pytest
import torch
from test_samplers import PROCESS, denoise, network, noise
from test_unet import random_unet

from minit2v import samplers
from minit2v.autoencoder import Autoencoder
from minit2v.checkpoints import unet_names, unet_to_modelscope
from minit2v.config import AutoencoderConfig, DiffusionConfig, ModelConfig, UNetConfig
from minit2v.convert import released
from minit2v.diffusion import Process, guided_denoiser
from minit2v.unet import UNet
from minit2v.video import to_uint8

# The smallest that UNetSD can be: it has 32 groups in each norm, and its way up reads texts 1024 wide in any case.
SMALL = UNetConfig(channels=32, head_dim=16, context_dim=1024)


@pytest.fixture(scope="module")
def original():
    """The modules of the original by name: unet_sd, diffusion, autoencoder."""
    return theirs.modules() or pytest.skip("the original is not installed: pip install --no-deps modelscope")


def unet_sd(original, unet):
    """The original's UNet with the weights of ours."""
    model = theirs.unet_sd(original, unet.config)
    model.load_state_dict(unet_to_modelscope(unet.state_dict(), unet.config), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def pair(original):
    unet = random_unet(SMALL)
    return unet, unet_sd(original, unet)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@pytest.mark.parametrize("batch, frames, height, width", [(2, 5, 8, 16), (1, 1, 16, 8)])
def test_unet_equals_the_original(pair, batch, frames, height, width):
    unet, other = pair
    x, context = draw(batch, 4, frames, height, width), draw(batch, 77, 1024, seed=1)
    t = torch.tensor([981, 41])[:batch]
    expected = other(x, t, context)
    assert expected.std() > 0.1
    assert (unet(x, t, context) - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("steps, eta", [(4, 0.0), (7, 0.0), (4, 0.5)])
def test_loop_equals_the_original(original, pair, steps, eta):
    """Guidance 9, as the original always has it. 7 does not divide 1000: both then take 8 steps."""
    unet, other = pair
    x, text, empty = draw(1, 4, 3, 8, 8), draw(1, 77, 1024, seed=1), draw(1, 77, 1024, seed=2)
    diffusion = original["diffusion"]
    betas = diffusion.beta_schedule("linear_sd", 1000, init_beta=0.00085, last_beta=0.0120)
    loop = diffusion.GaussianDiffusion(betas, mean_type="eps", var_type="fixed_small", rescale_timesteps=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)                              # the original draws from the global generator
        expected = loop.ddim_sample_loop(x.clone(), other, [{"y": text}, {"y": empty}], guide_scale=9.0,
                                         ddim_timesteps=steps, eta=eta)

    process = Process(DiffusionConfig())
    times = process.times(steps, "modelscope")
    assert len(times) - 1 == {4: 4, 7: 8}[steps]
    found = samplers.ddim(guided_denoiser(unet, process, text, empty, 9.0), process, x, times, eta=eta,
                          generator=torch.Generator().manual_seed(5))
    assert expected.std() > 1
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [50, 25, 30])
def test_ddim_equals_the_originals_own_loop(original, steps, eta):
    """With a formula for a network, so that nothing but the loops can differ: to 1e-5."""
    diffusion = original["diffusion"]
    betas = diffusion.beta_schedule("linear_sd", 1000, init_beta=0.00085, last_beta=0.0120)
    loop = diffusion.GaussianDiffusion(betas, mean_type="eps", var_type="fixed_small", rescale_timesteps=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)                              # the original draws from the global generator
        expected = loop.ddim_sample_loop(noise(0), network, ddim_timesteps=steps, eta=eta)
    found = samplers.ddim(denoise, PROCESS, noise(0), PROCESS.times(steps), eta, torch.Generator().manual_seed(1))
    assert expected.std() > 0.5 and (found - expected).abs().max() <= 1e-5


def test_the_same_parameters_are_zero_at_birth(original):
    """Residual blocks, transformers and the last layer begin by adding nothing, in space as in time."""
    names = unet_names(SMALL, "modelscope")
    ours = {names[name][0] for name, p in UNet(SMALL).named_parameters() if not p.any()}
    expected = {name for name, p in theirs.unet_sd(original, SMALL).named_parameters() if not p.any()}
    assert "out.2.weight" in expected and ours == expected


@torch.inference_mode()
def test_frames_equal_the_original_colour_for_colour(original, tmp_path):
    """Latents to bytes: the decoder, and the truncation of the original's tensor2vid, written out."""
    config = AutoencoderConfig(channels=32, multipliers=(1, 2))
    ours = Autoencoder(config).eval()
    for seed, p in enumerate(ours.parameters()):
        p.copy_(draw(*p.shape, seed=seed) / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.2 * draw(*p.shape, seed=seed))
    weights = released(ours.state_dict(), "autoencoder", "modelscope", ModelConfig(autoencoder=config))
    torch.save({"state_dict": weights}, tmp_path / "VQGAN_autoencoder.pth")
    shape = {"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    other = original["autoencoder"].AutoencoderKL(shape, 4, str(tmp_path / "VQGAN_autoencoder.pth")).eval()

    z = draw(1, 4, 3, 8, 8)
    expected = other.decode((z / 0.18215).transpose(1, 2).flatten(0, 1))              # (F, 3, H, W)
    levels = (expected * 0.5 + 0.5).clamp(0, 1) * 255
    clip = to_uint8(ours.decode(z), rounding="truncate")[0]                           # (F, H, W, 3)
    whole = levels.movedim(1, -1)
    assert clip.float().std() > 20
    near = ((whole - whole.round()).abs() < 1e-2) & (whole > 0) & (whole < 255)       # float32 may fall to either side
    assert torch.equal(clip[~near], whole.byte()[~near]) and near.float().mean() < 0.1
