"""The autoencoder against diffusers' AutoencoderKL, the released names, and closed formulas."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minit2v
from minit2v import checkpoints as rules
from minit2v import winograd
from minit2v.autoencoder import Autoencoder
from minit2v.config import AutoencoderConfig, mini

NAMES = json.loads(gzip.decompress((Path(__file__).parent / "data" / "vae_text_names.json.gz").read_bytes()))
SMALL = [
    AutoencoderConfig(channels=16, multipliers=(1, 2, 3), res_blocks=1, norm_groups=8, scaling_factor=0.7),
    AutoencoderConfig(channels=32, multipliers=(1, 2, 4, 4), res_blocks=2, norm_groups=32),
]


def random_weights(module, seed=0):
    """Every parameter random, norms and biases included, so that a swapped or unused one is seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        with torch.no_grad():
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else 0.2 * noise + ("norm" in name))
    return module.eval()


def small(index=0, dtype=torch.float32, **changes):
    return random_weights(Autoencoder(replace(SMALL[index], **changes))).to(dtype)


def uniform(*shape, seed=1, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


def peer_of(ours):
    """diffusers' model of the same size with the same weights, renamed by our rules, loaded strictly."""
    diffusers = pytest.importorskip("diffusers")
    config = ours.config
    levels = len(config.multipliers)
    peer = diffusers.AutoencoderKL(
        block_out_channels=[config.channels * m for m in config.multipliers], layers_per_block=config.res_blocks,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=config.latent_channels, norm_num_groups=config.norm_groups)
    weights = {}
    for name, tensor in ours.state_dict().items():
        [released] = rules.released_names(name, rules.AUTOENCODER_DIFFUSERS)
        weights[released] = tensor
    peer.load_state_dict(weights, strict=True)
    return peer.to(ours.quant_conv.weight.dtype).eval()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_equals_diffusers(index, dtype, tolerance):
    ours = small(index, dtype)
    peer = peer_of(ours)
    frames = uniform(2, 3, 32, 48, dtype=dtype)
    with torch.no_grad():
        expected = peer.encode(frames).latent_dist
        mean, logvar = ours.posterior(frames)
        latents = uniform(2, 4, 4, 6, seed=2, dtype=dtype)
        decoded, expected_frames = ours.decode(latents * ours.config.scaling_factor), peer.decode(latents).sample
    assert expected.mean.std() > 0.1 and expected_frames.std() > 0.1          # the comparison is of something
    assert (mean - expected.mean).abs().max() <= tolerance
    assert (logvar - expected.logvar).abs().max() <= tolerance
    assert (decoded - expected_frames).abs().max() <= tolerance


def test_the_short_ways_of_wide_layers_equal_diffusers(monkeypatch):
    """256 channels: fewer multiplications for 512 pixels and more, windows for 128 and fewer."""
    taken = set()
    for name in ("conv3x3", "by_windows"):
        real = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *args, name=name, real=real: (taken.add(name), real(*args))[1])
    config = AutoencoderConfig(channels=256, multipliers=(1, 1, 1), res_blocks=1)
    ours = random_weights(Autoencoder(config))
    peer, latents = peer_of(ours), uniform(1, 4, 8, 16, seed=2)       # 128 pixels, 512, 2048
    with torch.no_grad():
        expected, frames = peer.decode(latents).sample, uniform(1, 3, 32, 64)
        assert (ours.decode(latents * config.scaling_factor) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert taken == {"conv3x3", "by_windows"}
        expected = peer.encode(frames).latent_dist.mean
        assert (ours.posterior(frames)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_layout_for_training_gives_the_same_values():
    """With and without gradients the memory layout differs, the numbers do not."""
    vae, frames = small(dtype=torch.float64), uniform(2, 3, 16, 16, dtype=torch.float64)
    recorded, _ = vae.posterior(frames)
    with torch.no_grad():
        plain, _ = vae.posterior(frames)
    assert recorded.requires_grad and (recorded - plain).abs().max() <= 1e-12


def test_released_size():
    with torch.device("meta"):
        vae = Autoencoder(AutoencoderConfig())
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in vae.encoder.parameters()) == 34_163_592
    assert sum(p.numel() for p in vae.decoder.parameters()) == 49_490_179
    assert len(vae.state_dict()) == 248
    assert vae.config.downscale == 8


@pytest.mark.parametrize("layout, table", [("vae_modelscope", rules.autoencoder_modelscope_rules()),
                                           ("vae_diffusers", rules.AUTOENCODER_DIFFUSERS),
                                           ("vae_diffusers_2023", rules.AUTOENCODER_DIFFUSERS_2023)])
def test_released_names_and_shapes(layout, table):
    with torch.device("meta"):
        vae = Autoencoder(AutoencoderConfig())
    theirs = {}
    for name, tensor in vae.state_dict().items():
        [released] = rules.released_names(name, table)
        one_by_one = layout == "vae_modelscope" and ".middle.1.to_" in name and tensor.ndim == 2
        theirs[released] = list(tensor.shape) + [1, 1] * one_by_one           # there a 1 x 1 convolution
    assert theirs == NAMES[layout]


def test_the_two_layouts_name_the_same_tensor():
    """Our ModelScope name, translated by diffusers' own conversion, is our diffusers name."""
    with torch.device("meta"):
        names = list(Autoencoder(AutoencoderConfig()).state_dict())
    for name in names:
        [modelscope] = rules.released_names(name, rules.autoencoder_modelscope_rules())
        [diffusers] = rules.released_names(name, rules.AUTOENCODER_DIFFUSERS)
        assert NAMES["vae_modelscope_to_diffusers"][modelscope] == diffusers


def test_clip_is_its_frames():
    vae, clip = small(), uniform(2, 3, 5, 16, 24)
    with torch.no_grad():
        latents = vae.encode(clip)
        assert latents.shape == (2, 4, 5, 4, 6)
        frames = vae.decode(latents)
        assert frames.shape == clip.shape
        for f in range(5):
            assert (latents[:, :, f] - vae.encode(clip[:, :, f])).abs().max() <= 1e-5
            assert (frames[:, :, f] - vae.decode(latents[:, :, f])).abs().max() <= 1e-5


@pytest.mark.parametrize("chunk", [1, 3, 7, None])
def test_chunked_decode_equals_whole(chunk):
    vae, latents = small(), uniform(2, 4, 5, 4, 4)
    batches = []
    vae.decoder.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    with torch.no_grad():
        whole = vae.decode(latents, chunk=10)
        assert batches == [10]
        parts = vae.decode(latents, chunk=chunk)
    assert max(batches[1:]) == (chunk or 4) and sum(batches[1:]) == 10
    assert (parts - whole).abs().max() <= 1e-5


def test_scaling_factor_is_the_unit():
    """encode multiplies by it and decode divides: another factor changes the latents, not the frames."""
    frames, vae, other = uniform(2, 3, 16, 16), small(scaling_factor=1.0), small(scaling_factor=0.25)
    with torch.no_grad():
        latents = other.encode(frames)
        assert (latents - 0.25 * vae.posterior(frames)[0]).abs().max() <= 1e-6
        assert (other.decode(latents) - vae.decode(vae.encode(frames))).abs().max() <= 1e-5


def test_the_released_factor_stands_in_one_place():
    package = Path(minit2v.__file__).parent
    holders = [path.name for path in package.rglob("*.py") if "0.18215" in path.read_text(encoding="utf-8")]
    assert holders == ["config.py"]


def test_sampling_draws_from_the_posterior():
    vae, frames = small(), uniform(1, 3, 16, 16)
    with torch.no_grad():
        mean, logvar = vae.posterior(frames)
        first = vae.encode(frames, torch.Generator().manual_seed(3))
        again = vae.encode(frames, torch.Generator().manual_seed(3))
        many = vae.encode(frames.expand(400, -1, -1, -1), torch.Generator().manual_seed(4)) / vae.config.scaling_factor
    assert torch.equal(first, again) and not torch.equal(first, vae.encode(frames))
    mean, std = mean[0], logvar[0].exp().sqrt()
    assert ((many.mean(0) - mean) / std).abs().max() < 5 / 400**0.5           # five standard errors
    assert (many.std(0) / std - 1).abs().max() < 5 / 800**0.5


def test_logvar_is_clamped():
    vae = small()
    with torch.no_grad():
        vae.quant_conv.bias[4:] = torch.tensor([1e4, -1e4, 0.0, 0.0])
        _, logvar = vae.posterior(uniform(1, 3, 16, 16))
    assert (logvar[:, 0] == 20).all() and (logvar[:, 1] == -30).all() and logvar[:, 2:].std() > 0.01


def test_loss_is_its_formula():
    vae, frames = small(dtype=torch.float64), uniform(2, 3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        loss, parts = vae.loss(frames, torch.Generator().manual_seed(5), kl_weight=0.3)
        mean, logvar = vae.posterior(frames)
        latents = vae.encode(frames, torch.Generator().manual_seed(5))
        error = vae.decode(latents) - frames
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).sum() / frames.numel()
    assert parts["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert parts["l1"].item() == pytest.approx(error.abs().mean().item(), rel=1e-4)
    assert parts["l2"].item() == pytest.approx(error.square().mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx((parts["l1"] + parts["l2"] + 0.3 * parts["kl"]).item(), rel=1e-6)


def test_the_noise_of_the_loss_can_be_chosen():
    """With next to none the decoder sees the mean; with some it sees that much around the mean."""
    vae, frames = small(), uniform(2, 3, 16, 16)
    with torch.no_grad():
        mean, _ = vae.posterior(frames)
        for noise in (1e-6, 0.3):
            _, parts = vae.loss(frames, torch.Generator().manual_seed(5), noise=noise)
            z = mean + noise * torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
            error = vae.decode(z * vae.config.scaling_factor) - frames
            assert parts["l1"].item() == pytest.approx(error.abs().mean().item(), rel=1e-4)


def test_loss_reaches_every_parameter_and_falls():
    vae = Autoencoder(SMALL[0])
    generator, frames = torch.Generator().manual_seed(0), uniform(2, 3, 16, 16)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss, _ = vae.loss(frames, generator)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_noise_leaves_the_global_generator_alone():
    vae, before = small(), torch.random.get_rng_state()
    vae.loss(uniform(1, 3, 16, 16), torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("shape, words", [
    ((1, 3, 30, 16), ["30 x 16", "multiples of 4", "32 x 16"]),
    ((1, 3, 2, 16, 1), ["16 x 1 ", "multiples of 4", "16 x 4"]),
    ((1, 4, 16, 16), ["(1, 4, 16, 16)", "(batch, 3, height, width)"]),
    ((3, 16, 16), ["(3, 16, 16)", "add or permute"]),
])
def test_wrong_shapes_are_explained(shape, words):
    with pytest.raises(ValueError) as error:
        small().encode(torch.zeros(shape))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_explained(bad):
    vae, latents, frames = small(), torch.zeros(1, 4, 2, 4, 4), torch.zeros(1, 3, 16, 16)
    latents[0, 1, 1, 2, 3] = frames[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="latents hold 1 values"):
        vae.decode(latents)
    with pytest.raises(ValueError, match="frames hold 1 values"):
        vae.encode(frames)


@pytest.mark.parametrize("chunk", [0, -2])
def test_chunk_below_one_is_explained(chunk):
    with pytest.raises(ValueError, match=f"chunk is {chunk}"):
        small().decode(torch.zeros(1, 4, 4, 4), chunk=chunk)


def test_bfloat16_stays_close():
    """Under autocast the reconstruction moves by what eight bits of mantissa allow, and the KL stays exact enough."""
    vae = Autoencoder(mini().autoencoder)
    frames = uniform(1, 3, 2, 64, 64)
    exact, _ = vae.loss(frames, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough, parts = vae.loss(frames, torch.Generator().manual_seed(0))
    assert rough.dtype == torch.float32 and all(p.isfinite() for p in parts.values())
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
