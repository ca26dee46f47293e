"""The UNet: exactly the released network, exactly diffusers' numbers, and the promises of its docstrings."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minit2v import attention, winograd
from minit2v import unet as unet_module
from minit2v.attention import PLAIN_KEYS, ROWS, FeedForward, attend
from minit2v.checkpoints import (
    unet_from_diffusers,
    unet_from_modelscope,
    unet_names,
    unet_to_diffusers,
    unet_to_modelscope,
)
from minit2v.config import UNetConfig, mini, modelscope_1_7b
from minit2v.unet import TemporalConv, UNet, timestep_embedding
from minit2v.upsample import doubled_conv

# Small relatives of the two models. 32 groups and 8 input heads, because diffusers allows nothing else.
LIKE_MINI = UNetConfig(channels=32, multipliers=(1, 2, 3), res_blocks=1, attention=(True, True, False), head_dim=8,
                       input_heads=8, context_dim=24, norm_groups=32, dropout=0.0)
LIKE_RELEASED = UNetConfig(channels=32, multipliers=(1, 2, 4, 4), res_blocks=2, head_dim=16, context_dim=40)
WIDE = UNetConfig(channels=256, multipliers=(1, 1), res_blocks=1, attention=(True, True), context_dim=40)
ZERO_AT_BIRTH = ("temporal_conv.conv4.", "temporal_transformer.proj_out.", "transformer_in.proj_out.")


def random_unet(config: UNetConfig, keep_zero: tuple[str, ...] = (), seed: int = 0) -> UNet:
    """A UNet in eval mode with random numbers in *every* parameter (zero-initialised ones too, but `keep_zero`)."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet(config).eval()
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if not any(part in name for part in keep_zero):
                spread = 0.2 if p.ndim == 1 else (p[0].numel()) ** -0.5
                p.copy_(torch.randn(p.shape, generator=generator) * spread + (1.0 if _is_norm_weight(name) else 0.0))
    return unet


def _is_norm_weight(name: str) -> bool:
    return name.endswith(".weight") and ("norm" in name or name.split(".")[-2] == "0" and "temporal_conv" in name)


def inputs(config: UNetConfig, batch: int, frames: int, height: int, width: int, dtype=torch.float32, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, config.latent_channels, frames, height, width, generator=generator, dtype=dtype)
    timesteps = torch.tensor([981, 41, 500][:batch])
    context = torch.randn(batch, 7, config.context_dim, generator=generator, dtype=dtype)
    return latents, timesteps, context


@pytest.fixture(scope="module")
def small() -> UNet:
    return random_unet(LIKE_MINI)


# ----------------------------------------------------------------------------------- the released network


def test_released_size():
    with torch.device("meta"):
        unet = UNet(modelscope_1_7b().unet)
    sizes = {name: p.numel() for name, p in unet.named_parameters()}
    assert sum(sizes.values()) == 1_411_233_860
    assert len(unet.state_dict()) == len(sizes) == 1480
    temporal = sum(n for name, n in sizes.items() if "temporal" in name or "transformer_in" in name)
    assert temporal == 545_323_136


def test_every_tensor_of_the_released_files_has_its_counterpart():
    rows = json.loads(gzip.decompress((Path(__file__).parent / "data" / "unet_names.json.gz").read_bytes()))
    released = {ms: (tuple(ms_shape), df, tuple(df_shape)) for ms, ms_shape, df, df_shape in rows}
    config = modelscope_1_7b().unet
    modelscope, diffusers = unet_names(config, "modelscope"), unet_names(config, "diffusers")
    ours = {modelscope[name][0]: (modelscope[name][2], diffusers[name][0], diffusers[name][2]) for name in modelscope}
    assert len(ours) == 1480
    assert ours == released


NARROW = dict(channels=8, norm_groups=4, head_dim=4, input_heads=3, context_dim=6)


@pytest.mark.parametrize("config", [replace(mini().unet, **NARROW), replace(modelscope_1_7b().unet, **NARROW),
                                    replace(mini().unet, **NARROW, res_blocks=3)],
                         ids=["mini", "released", "three_blocks"])
@pytest.mark.parametrize("there, back", [(unet_to_diffusers, unet_from_diffusers),
                                         (unet_to_modelscope, unet_from_modelscope)])
def test_layouts_there_and_back(config, there, back):
    state = UNet(config).state_dict()
    released = there(state, config)
    again = back(released, config)
    assert len(released) == len(state) and again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    name = next(iter(released))
    with pytest.raises(ValueError, match="lacks.*" + name.replace(".", r"\.")):
        back({k: v for k, v in released.items() if k != name}, config)
    with pytest.raises(ValueError, match="unknown.*stowaway"):
        back({**released, "stowaway": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="another shape"):
        back({**released, name: torch.zeros(3, 5)}, config)


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout is 'keras'"):
        unet_names(LIKE_MINI, "keras")


# -------------------------------------------------------------------------------- parity with diffusers


def peer(config: UNetConfig, unet: UNet):
    diffusers = pytest.importorskip("diffusers")
    last = len(config.multipliers) - 1
    model = diffusers.UNet3DConditionModel(
        block_out_channels=tuple(config.channels * m for m in config.multipliers),
        down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if config.attention[last - i] else "UpBlock3D"
                             for i in range(last + 1)),
        layers_per_block=config.res_blocks, attention_head_dim=config.head_dim,
        cross_attention_dim=config.context_dim, norm_num_groups=config.norm_groups)
    model.load_state_dict(unet_to_diffusers(unet.state_dict(), config), strict=True)
    return model.eval()


@pytest.mark.parametrize("config, batch, frames, height, width", [
    (LIKE_MINI, 2, 5, 8, 4), (LIKE_MINI, 3, 1, 4, 8), (LIKE_MINI, 1, 11, 16, 12),
    (LIKE_RELEASED, 2, 3, 8, 16),
])
def test_equals_diffusers(config, batch, frames, height, width):
    """In float64 nothing needs an excuse: both compute the sinusoid by the same formula in float32."""
    unet = random_unet(config)
    other = peer(config, unet)
    latents, timesteps, context = inputs(config, batch, frames, height, width)
    with torch.no_grad():
        out, expected = unet(latents, timesteps, context), other(latents, timesteps, context).sample
        assert expected.std() > 0.1
        assert (out - expected).abs().max() <= 1e-4
        args = latents.double(), timesteps, context.double()
        out, expected = unet.double()(*args), other.double()(*args).sample
    assert out.dtype == torch.float64
    assert (out - expected).abs().max() <= 1e-9


def test_the_short_ways_of_wide_layers_equal_diffusers(monkeypatch):
    """Fewer multiplications on the upper level, 512 pixels; windows, and one look at the weights, on the lower, 128."""
    taken = {}
    for module, names in ((winograd, ("conv3x3", "by_windows")), (unet_module, ("over_frames",))):
        for name in names:
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *args, name=name, real=real: (
                taken.update({name: taken.get(name, 0) + 1}), real(*args))[1])
    unet = random_unet(WIDE)
    other = peer(WIDE, unet)
    args = inputs(WIDE, 1, 8, 8, 8)
    with torch.no_grad():
        expected = other(*args).sample
        largest = expected.abs().max()
        assert (unet(*args) - expected).abs().max() <= 1e-4 * largest
    assert taken.keys() == {"conv3x3", "by_windows", "over_frames"} and min(taken.values()) > 1


def test_gradients_equal_diffusers():
    unet = random_unet(LIKE_MINI).double()
    other = peer(LIKE_MINI, unet).double()
    args = inputs(LIKE_MINI, 2, 3, 4, 4, torch.float64)
    unet(*args).square().mean().backward()
    other(*args).sample.square().mean().backward()
    ours = unet_to_diffusers({name: p.grad for name, p in unet.named_parameters()}, LIKE_MINI)
    for name, p in other.named_parameters():
        assert (ours[name] - p.grad).abs().max() <= 1e-9 * (1 + p.grad.abs().max()), name


# ---------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("keys", [5, PLAIN_KEYS + 1])
@pytest.mark.parametrize("training", [False, True])
def test_attend_is_the_formula(keys, training):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64) for n in (6, keys, keys))
    q.requires_grad_(training)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    assert (attend(q, k, v) - torch.einsum("bhqk,bhkd->bhqd", weights, v)).abs().max() < 1e-12


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_attend_takes_many_sequences_in_portions(sequences, monkeypatch):
    """torch's kernels for graphics cards fail at 65,536 sequences: the places of 12 clips of 576 x 320, guided."""
    q, k, v = torch.randn(3, 5, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    expected, most = attend(q, k, v), []
    monkeypatch.setattr(attention, "SEQUENCES", sequences)
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *part: most.append(len(part[0])) or plain(*part))
    assert torch.allclose(attend(q, k, v), expected, atol=1e-6) and max(most) == sequences and sum(most) == 5


def test_feed_forward_is_geglu():
    ff = FeedForward(4).double()
    x = torch.randn(3, ROWS - 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = x @ ff.proj.weight.T + ff.proj.bias
    value, gate = wide[..., :16], wide[..., 16:]
    gated = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    expected, rows = gated @ ff.out.weight.T + ff.out.bias, []
    assert (ff(x) - expected).abs().max() < 1e-12
    ff.out.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    with torch.no_grad():                                             # some tokens at a time, across the samples
        assert (ff(x) - expected).abs().max() < 1e-12
    assert rows == [ROWS, ROWS, ROWS - 6]


@pytest.mark.parametrize("height, width", [(1, 17), (5, 4), (1, 1), (4, 4)])          # many pixels, or few
def test_doubled_convolution_is_a_doubling_and_a_convolution(height, width):
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    calls = []
    conv.register_forward_hook(lambda *args: calls.append(args))
    found = doubled_conv(x, conv)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-12
    assert bool(calls) == (height * width <= 16)
    assert calls or found.is_contiguous(memory_format=torch.channels_last)


def test_timestep_embedding():
    t = [0.0, 1.0, 41.5, 999.0]
    expected = [[f(x * 10000 ** (-i / 4)) for f in (math.cos, math.sin) for i in range(4)] for x in t]
    assert torch.allclose(timestep_embedding(torch.tensor(t), 8), torch.tensor(expected), atol=1e-4, rtol=0)


def test_temporal_conv_is_the_original_in_conv3d():
    """The textbook form, 3-D convolutions, takes the same weights, strictly, and gives the same clip."""

    class Textbook(nn.Module):
        def __init__(self, c, groups):
            super().__init__()
            conv = lambda: nn.Conv3d(c, c, (3, 1, 1), padding=(1, 0, 0))  # noqa: E731
            self.conv1 = nn.Sequential(nn.GroupNorm(groups, c), nn.SiLU(), conv())
            self.conv2, self.conv3, self.conv4 = (
                nn.Sequential(nn.GroupNorm(groups, c), nn.SiLU(), nn.Dropout(0.1), conv()) for _ in range(3))

        def forward(self, x):
            return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))

    textbook = Textbook(16, 4).double().eval()
    ours = TemporalConv(16, 4, 0.1).double().eval()
    assert ours.conv4[3].weight.abs().max() == ours.conv4[3].bias.abs().max() == 0
    x = torch.randn(2, 16, 9, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(ours(x), x)
    ours.load_state_dict(textbook.state_dict(), strict=True)
    assert (ours(x) - textbook(x)).abs().max() < 1e-12


# ---------------------------------------------------------------------------------------------- promises


@torch.no_grad()
def test_equal_times_for_all_frames_change_no_bit(small):
    latents, timesteps, context = inputs(LIKE_MINI, 2, 5, 8, 8)
    out = small(latents, timesteps, context)
    assert torch.equal(small(latents, timesteps[:, None].expand(2, 5), context), out)
    assert torch.equal(small(latents, timesteps.float(), context), out)
    assert not torch.equal(small(latents, timesteps - 1, context), out)


@torch.no_grad()
def test_each_frame_gets_its_own_time_and_its_own_prompt(small):
    latents, _, context = inputs(LIKE_MINI, 2, 3, 8, 4)
    timesteps = torch.tensor([[0, 500, 999], [7, 100, 300]])
    out = small(latents, timesteps, context, temporal=False)
    for b in range(2):
        for f in range(3):
            alone = small(latents[b:b + 1, :, f:f + 1], timesteps[b:b + 1, f], context[b:b + 1], temporal=False)
            assert (out[b, :, f] - alone[0, :, 0]).abs().max() < 1e-5
    assert (out - small(latents, timesteps.flip(1), context, temporal=False)).abs().max() > 1e-2
    assert (out - small(latents, timesteps, context.flip(0), temporal=False)).abs().max() > 1e-2


@torch.no_grad()
def test_prepared_context_changes_no_bit(small):
    latents, timesteps, context = inputs(LIKE_MINI, 2, 5, 8, 8)
    prepared = small.prepare(context)
    assert all(keys.shape[0] == 2 for keys, _ in prepared)            # not once per frame
    expected = small(latents, timesteps, context)
    for _ in range(2):                                                # it can be used again
        assert torch.equal(small(latents, timesteps, prepared), expected)
    assert not torch.equal(small(latents, timesteps, small.prepare(context * 2)), expected)


@torch.no_grad()
def test_a_new_video_model_is_the_image_model():
    """With every parameter random but the zero-initialised ends of the temporal parts: a difference of 0."""
    unet = random_unet(LIKE_MINI, keep_zero=ZERO_AT_BIRTH)
    fresh = UNet(LIKE_MINI)
    zero = {name for name, p in fresh.named_parameters() if p.abs().max() == 0}
    assert {name for name, p in unet.named_parameters() if p.abs().max() == 0} <= zero
    args = inputs(LIKE_MINI, 2, 5, 8, 8)
    video, images = unet(*args, temporal=True), unet(*args, temporal=False)
    assert torch.equal(video, images)
    assert images.std() > 0.1
    for part in ZERO_AT_BIRTH:                                        # each kind alone makes a difference
        others = tuple(p for p in ZERO_AT_BIRTH if p != part)
        assert (random_unet(LIKE_MINI, keep_zero=others)(*args) - images).abs().max() > 1e-3


@torch.no_grad()
def test_without_temporal_convolutions_frames_have_no_order():
    args = inputs(LIKE_MINI, 1, 6, 4, 4, torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    errors = []
    for keep_zero in (("temporal_conv.conv4.",), ()):
        unet = random_unet(LIKE_MINI, keep_zero).double()
        out, shuffled = unet(*args), unet(args[0][:, :, order], *args[1:])
        errors.append(float((shuffled - out[:, :, order]).norm() / out.norm()))
    assert errors[0] < 1e-12
    assert errors[1] > 1e-3                                           # the temporal convolutions do know it


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_changes_no_gradient(autocast):
    """Dropout at 0.3 in training: the second computation has to draw the same masks."""
    unet = random_unet(replace(LIKE_MINI, dropout=0.3)).train()
    args = inputs(LIKE_MINI, 2, 3, 8, 8)
    calls, gradients = [], []
    unet.mid[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for unet.gradient_checkpointing in (False, True):
        unet.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = unet(*args)
            out.float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in unet.named_parameters()})
    assert len(calls) == 1 + 2                                        # the block really ran twice
    for name, plain in gradients[0].items():
        assert torch.equal(gradients[1][name], plain), name
        assert plain.abs().max() > 0, name


@torch.no_grad()
def test_half_precision(small):
    args = inputs(LIKE_MINI, 2, 3, 8, 8)
    expected = small(*args)
    with torch.autocast("cpu", torch.bfloat16):
        out = small(*args)
    assert out.dtype == torch.float32
    assert 1e-5 < (out - expected).norm() / expected.norm() < 0.05
    latents, timesteps, context = args
    whole = random_unet(LIKE_MINI).bfloat16()(latents.bfloat16(), timesteps, context.bfloat16())
    assert whole.dtype == torch.bfloat16
    assert (whole.float() - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_temporal_convolutions_need_no_copy(small):
    """Channels-last all the way: what a temporal convolution receives is (B, F, H, W, C) in memory."""
    seen = []
    hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].permute(0, 2, 3, 4, 1).is_contiguous()))
             for m in small.modules() if isinstance(m, TemporalConv)]
    small(*inputs(LIKE_MINI, 2, 3, 8, 8))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) == 11 and all(seen)


@pytest.mark.parametrize("change, message", [
    (lambda x, t, c: (x[..., :6, :], t, c), "height is 6; it must be a multiple of 4"),
    (lambda x, t, c: (x[..., :7], t, c), "width is 7; it must be a multiple of 4.*nearest is 8"),
    (lambda x, t, c: (x[..., :0], t, c), "width is 0"),
    (lambda x, t, c: (x[:, :3], t, c), r"latents have shape \(2, 3, 5, 8, 8\)"),
    (lambda x, t, c: (x[:, :, :0], t, c), r"latents have shape \(2, 4, 0, 8, 8\)"),
    (lambda x, t, c: (x[:, :, 0], t, c), r"latents have shape \(2, 4, 8, 8\)"),
    (lambda x, t, c: (x, t[0], c), r"timesteps have shape \(\)"),
    (lambda x, t, c: (x, t[:1], c), r"timesteps have shape \(1,\).*\(2, 5\)"),
    (lambda x, t, c: (x, t[:, None], c), r"timesteps have shape \(2, 1\)"),
    (lambda x, t, c: (x, t, c[..., :9]), r"context has shape \(2, 7, 9\).*24"),
    (lambda x, t, c: (x, t, c[0]), r"context has shape \(7, 24\)"),
    (lambda x, t, c: (x, t, c[:1]), "context holds 1 prompts but latents hold 2 clips"),
])
def test_wrong_sizes_are_named(small, change, message):
    with pytest.raises(ValueError, match=message):
        small(*change(*inputs(LIKE_MINI, 2, 5, 8, 8)))
