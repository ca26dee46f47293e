"""The ways for few pixels against torch's own layers, and where they are taken."""

import pytest
import torch
import torch.nn.functional as F
from test_winograd import random

from minit2v import few
from minit2v.few import Projection, by_windows, over_frames, product
from minit2v.unet import FrameConv


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("n, channels, out, height, width", [(1, 3, 5, 1, 1), (2, 4, 4, 6, 8), (3, 2, 1, 5, 4)])
def test_windows_are_the_convolution(n, channels, out, height, width, stride):
    x, weight, bias = random(n, channels, height, width), random(out, channels, 3, 3), random(out)
    expected = F.conv2d(x, weight, bias, stride, padding=1)
    for same in (x, x.contiguous(memory_format=torch.channels_last)):
        y = by_windows(same, weight, bias, stride)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n, channels, out, frames, pixels", [(1, 3, 5, 1, 1), (2, 4, 3, 6, 8), (3, 2, 1, 2, 5)])
def test_pixels_in_three_frames_are_the_convolution(n, channels, out, frames, pixels):
    x, weight, bias = random(n, channels, frames, pixels), random(out, channels, 3, 1, 1), random(out)
    expected = F.conv3d(x[..., None], weight, bias, padding=(1, 0, 0))[..., 0]
    for same in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(over_frames(same, weight, bias), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [(1,), (32,), (2, 16), (2, 3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_other_library_multiplies_as_well(rows, bias, monkeypatch):
    """In float32, against float64; that is 17 roundings of the largest answer."""
    x, weight = random(*rows, 1500, dtype=torch.float32), random(1000, 1500, dtype=torch.float32)
    bias = random(1000, dtype=torch.float32) if bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        assert went_round(monkeypatch, x, weight, bias) == torch.backends.mkldnn.is_available()
        for same in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
            y = product(same, weight, bias)
            assert y.shape == (*rows, 1000) and y.is_contiguous() and not y.is_mkldnn
            assert (y - exact).abs().max() < 2e-6 * exact.abs().max()


def went_round(monkeypatch, x, weight, bias=None) -> bool:
    """Whether `product` goes by way of `to_mkldnn`."""
    calls, real = [], torch.Tensor.to_mkldnn
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to_mkldnn", lambda x: calls.append(x) or real(x))
        product(x, weight, bias)
    return bool(calls)


def test_where_it_is_taken(monkeypatch):
    x, weight = random(32, 1024, dtype=torch.float32), random(1024, 1024, dtype=torch.float32)
    more = random(33, 1024, dtype=torch.float32)
    assert not went_round(monkeypatch, x, weight)                     # a gradient may be wanted
    with torch.no_grad():
        assert went_round(monkeypatch, x, weight) == torch.backends.mkldnn.is_available()
        assert not went_round(monkeypatch, more, weight)
        assert not went_round(monkeypatch, x, weight[:1023])          # these stay in the cache
        assert not went_round(monkeypatch, x.double(), weight.double())
        assert not went_round(monkeypatch, x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not went_round(monkeypatch, x, weight) and product(x, weight).dtype == torch.bfloat16
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not went_round(monkeypatch, x, weight)


def test_a_convolution_over_frames_takes_it_for_few_pixels(monkeypatch):
    calls = []
    monkeypatch.setattr("minit2v.unet.over_frames", lambda *args: calls.append(args) or over_frames(*args))
    wide, narrow = FrameConv(few.CHANNELS), FrameConv(few.CHANNELS - 1)
    x = random(2, few.CHANNELS, 8, 8, dtype=torch.float32)                                   # 128 pixels
    more = random(3, few.CHANNELS, 1, 43, dtype=torch.float32)                               # 129
    wide(x)
    assert not calls                                                  # a gradient may be wanted
    with torch.no_grad():
        narrow(x[:, 1:])
        expected = F.conv3d(more[..., None].double(), wide.weight.double(), wide.bias.double(), padding=(1, 0, 0))
        torch.testing.assert_close(wide(more).double(), expected[..., 0], rtol=0, atol=1e-4)
        assert not calls
        expected = F.conv3d(x[..., None].double(), wide.weight.double(), wide.bias.double(), padding=(1, 0, 0))
        torch.testing.assert_close(wide(x).double(), expected[..., 0], rtol=0, atol=1e-4)
        assert len(calls) == 1


def test_a_projection_is_torchs_own():
    torch.manual_seed(0)
    ours = Projection(6, 7)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(6, 7)
    assert isinstance(ours, torch.nn.Linear) and torch.equal(ours.weight, theirs.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = random(3, 6, dtype=torch.float32)
    assert torch.equal(ours(x), theirs(x)) and ours(x).requires_grad
