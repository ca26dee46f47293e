"""Doubling a picture and convolving it, without ever making the doubled picture.

Both networks grow their pictures in the same way: every pixel becomes four equal ones, and a 3 x 3 convolution
smooths the stairs. Written so it is wasteful. A window of 3 x 3 pixels of the doubled picture holds only 2 x 2
different ones; equal ones are multiplied by different weights, and the products added. Adding the weights first
takes four ninths of the multiplications. In one dimension, a row of pixels a b c ..:

    doubled          a   a   b   b   c   c
    an even place            w0 on a, w1 and w2 on b        ->  a * w0 + b * (w1 + w2)
    an odd place                 w0 and w1 on b, w2 on c    ->  b * (w0 + w1) + c * w2

The sums are the same, in another order. A third of the autoencoder's decoder is such convolutions. But the weights
must be looked at and added: where pixels are few, the wasteful way is the shorter one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minit2v.few import PIXELS


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x with every pixel four times): (N, C, H, W) -> (N, D, 2H, 2W). conv: 3 x 3, padding 1, stride 1.

    Four convolutions of 2 x 2, for the even and odd rows and columns; each makes every second pixel both ways.
    """
    height, width = x.shape[2:]
    if 4 * len(x) * height * width <= PIXELS:
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    out = x.new_empty(len(x), 2 * height, 2 * width, conv.out_channels).movedim(3, 1)         # channels last in memory
    for row in (0, 1):
        for column in (0, 1):
            weight = merged(merged(conv.weight, row, dim=2), column, dim=3)                   # (D, C, 2, 2)
            part = F.conv2d(x, weight, conv.bias, padding=1)                                  # (N, D, H + 1, W + 1)
            out[:, :, row::2, column::2] = part[:, :, row:row + height, column:column + width]
    return out


def merged(weight: Tensor, odd: int, dim: int) -> Tensor:
    """Three weights along a dimension become the two that an even place, or an odd one, sees."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first + second, third] if odd else [first, second + third], dim)
