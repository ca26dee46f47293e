"""Layers for a few pixels: there, nearly all the work is to look at the weights, and it is done once.

The released UNet has 1.4 billion weights. Asked for many pixels it multiplies each of them many times, and the
multiplications take the time. Asked for one frame of 8 x 8, it waits for 5.6 GB to come out of memory. torch's
convolutions put the weights into another order first, and so look at them several times; written as a product of
matrices, once. And of the two libraries with which torch multiplies on a processor, one (oneDNN, to whose tensors
`to_mkldnn` leads) brings weights twice as fast as the other (MKL) when they meet a handful of rows: 25 and 12 GB/s.

The numbers are the same up to rounding. No gradient goes this way, and no small network: weights that fit into the
processor's cache are not waited for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 256                                           # narrower layers gain nothing by the short ways
PIXELS = 128                                             # up to so many answers it is the weights that take the time
ROWS, WEIGHTS = 32, 2 ** 20                              # `product` takes oneDNN for so few rows of so many weights


class Projection(nn.Linear):
    """nn.Linear, (..., C) -> (..., D), that brings its weights faster for a handful of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear(x, weight, bias): x (..., C), weight (D, C), bias (D,) -> (..., D)."""
    few = x.numel() <= ROWS * x.shape[-1] and weight.numel() >= WEIGHTS and x.dtype == weight.dtype == torch.float32
    if not few or x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or (
            not torch.backends.mkldnn.is_available()):
        return F.linear(x, weight, bias)
    return F.linear(x.contiguous().to_mkldnn(), weight, bias).to_dense()


def is_wide(x: Tensor, layer: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution of x (N, C, ...) may go a short way: wide, on a processor, no gradient wanted."""
    return (not torch.is_grad_enabled() and x.device.type == "cpu"
            and min(layer.in_channels, layer.out_channels) >= CHANNELS)


def is_few(x: Tensor, layer: nn.Conv2d | nn.Conv3d, answers: int) -> bool:
    """Whether it may, and makes so few answers that bringing its weights is all the work."""
    return answers <= PIXELS and is_wide(x, layer)


def by_windows(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """F.conv2d(x, weight, bias, stride, padding=1) as a linear layer: each window of 3 x 3 pixels is a row of numbers.

    x (N, C, H, W), weight (D, C, 3, 3), bias (D,) -> (N, D, H, W), or half as high and wide, channels last in memory.
    """
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    windows = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2)                    # (N, H W, 9 C)
    out = product(windows.flatten(0, 1).contiguous(), weight.flatten(1), bias)            # (N H W, D)
    return out.view(len(x), height, width, -1).movedim(3, 1)                              # (N, D, H, W)


def over_frames(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution over three neighbouring frames as a linear layer: each pixel in three frames is a row of numbers.

    x (B, C, F, P), weight (D, C, 3, 1, 1), bias (D,) -> (B, D, F, P), channels last in memory.
    """
    windows = F.pad(x, (0, 0, 1, 1)).unfold(2, 3, 1)                                      # (B, C, F, P, 3)
    rows = windows.permute(0, 2, 3, 1, 4).flatten(3)                                      # (B, F, P, 3 C)
    return product(rows.contiguous(), weight.flatten(1), bias).movedim(3, 1)              # (B, D, F, P)
