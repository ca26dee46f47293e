"""The short way of a 3 x 3 convolution against torch's own, and where it and that for few pixels are taken."""

import pytest
import torch
import torch.nn.functional as F

from minit2v import winograd
from minit2v.few import by_windows
from minit2v.winograd import Conv3x3, conv3x3, kernels


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("n, channels, out, height, width", [(1, 3, 5, 2, 2), (2, 4, 4, 6, 8), (5, 1, 2, 10, 4)])
@pytest.mark.parametrize("chunk", [1, 100, 4096])
def test_it_is_the_convolution(n, channels, out, height, width, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)                     # one picture at a time, some, or all
    x, weight, bias = random(n, channels, height, width), random(out, channels, 3, 3), random(out)
    torch.testing.assert_close(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-13)


def test_any_layout_in_channels_last_out():
    x, weight, bias = random(2, 4, 6, 8), random(5, 4, 3, 3), random(5)
    for same in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        y = conv3x3(same, weight, bias)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-13)


def test_sixteen_matrices_of_a_kernel_by_its_formula():
    """G g G^T of Lavin and Gray, section 4.1, written as it stands there."""
    g = random(5, 4, 3, 3)
    by_formula = winograd.KERNEL.double() @ g @ winograd.KERNEL.double().T                        # (5, 4, 4, 4)
    torch.testing.assert_close(kernels(g), by_formula.flatten(2).permute(2, 1, 0), rtol=0, atol=1e-15)


def test_rounding_is_no_worse_than_the_plain_sum():
    x, weight, bias = (random(*shape, dtype=torch.float32) for shape in ((4, 256, 16, 16), (256, 256, 3, 3), (256,)))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    short, plain = conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert (short - exact).abs().max() < 2 * (plain - exact).abs().max() < 1e-3 * exact.abs().max()


def taken(layer, x, monkeypatch):
    """The short way that the layer takes, or None."""
    calls = []
    with monkeypatch.context() as patch:
        for way in (conv3x3, by_windows):
            patch.setattr(winograd, way.__name__, lambda *args, way=way: calls.append(way) or way(*args))
        y = layer(x)
    weight = layer.weight.double(), layer.bias.double()
    largest = 0.1 if x.dtype == torch.bfloat16 or y.dtype == torch.bfloat16 else 1e-4
    expected = F.conv2d(x.double(), *weight, stride=layer.stride, padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=largest)
    return calls[0] if calls else None


def test_where_they_are_taken(monkeypatch):
    wide, narrow, half = Conv3x3(256, 256), Conv3x3(256, 128), Conv3x3(256, 256, stride=2)
    x, few = random(8, 256, 8, 8, dtype=torch.float32), random(2, 256, 8, 8, dtype=torch.float32)
    for pixels in (x, few):
        assert taken(wide, pixels, monkeypatch) is None               # a gradient may be wanted
    with torch.no_grad():
        assert taken(wide, x, monkeypatch) == conv3x3
        assert taken(wide, few, monkeypatch) == by_windows
        for pixels in (x, few):
            assert taken(narrow, pixels, monkeypatch) is None         # too few channels
        assert taken(wide, x[:7], monkeypatch) is None                # neither many pixels nor few
        assert taken(wide, x[:3], monkeypatch) is None
        assert taken(half, x, monkeypatch) == by_windows              # 128 answers
        assert taken(half, torch.cat([x, x]), monkeypatch) is None    # steps of two: never
        assert taken(wide, random(10, 256, 8, 7, dtype=torch.float32), monkeypatch) is None        # odd sizes
        assert taken(wide, random(10, 256, 7, 8, dtype=torch.float32), monkeypatch) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert taken(wide, x, monkeypatch) is None
            assert taken(wide, few, monkeypatch) == by_windows
        assert taken(wide.bfloat16(), x.bfloat16(), monkeypatch) is None
        assert taken(wide, few.bfloat16(), monkeypatch) == by_windows


def test_same_parameters_and_start_as_torchs_own():
    torch.manual_seed(0)
    ours = Conv3x3(6, 7)
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(6, 7, 3, padding=1)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)
