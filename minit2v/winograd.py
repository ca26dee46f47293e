"""The 3 x 3 convolution with four ninths of the multiplications (Winograd; Lavin and Gray 2016, arXiv:1509.09308).

Neighbouring windows share pixels, and what they share can be multiplied once. In one dimension, two neighbouring
answers of a kernel g = (g0 g1 g2) see four pixels a b c d, and six products become four:

    m0 = (a - c) g0                 m2 = (c - b) (g0 - g1 + g2) / 2           first answer   m0 + m1 + m2
    m1 = (b + c) (g0 + g1 + g2)/2   m3 = (b - d) g2                           second         m1 - m2 - m3

The sums of g are made once for a whole picture, so per answer two multiplications are left of three. The same along
rows and then along columns: 4 x 4 pixels, 16 products, 2 x 2 answers that would have taken 36. With many channels each
of the 16 is a product of matrices, (places, C) times (C, D), and what is saved there is more than what the sums cost.

It is the same convolution: in float32 its rounding is no worse than the plain sum's. Graphics cards' libraries do this
by themselves; torch on a processor does not. In half precision the sums would round too coarsely.

With few pixels the multiplications are nothing, and another way is the short one: see few.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minit2v.few import PIXELS, by_windows, is_wide

PLACES = 512                                             # below, the sums cost more than they save
CHUNK = 4096                                             # pixels at a time, so that they stay in the processor's cache
KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])                  # g -> its four sums


class Conv3x3(nn.Conv2d):
    """nn.Conv2d with a kernel of 3 x 3 and a padding of 1. (N, C, H, W) -> (N, D, H, W), or half as high and wide.

    The same numbers up to rounding in any way; the two short ways are for wide layers on a processor where no gradient
    is wanted, the one for many pixels in float32 alone. stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        if not is_wide(x, self):
            return super().forward(x)
        (n, _, height, width), stride = x.shape, self.stride[0]
        if n * height * width <= PIXELS * stride ** 2:
            return by_windows(x, self.weight, self.bias, stride)
        even, many = height % 2 == width % 2 == 0, n * height * width >= PLACES
        full = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if stride == 1 and even and many and full:
            return conv3x3(x, self.weight, self.bias)
        return super().forward(x)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1): x (N, C, H, W), weight (D, C, 3, 3), bias (D,) -> (N, D, H, W).

    Height and width must be even. The answer lies in memory channels last.
    """
    n, _, height, width = x.shape
    matrices = kernels(weight)                                                            # (16, C, D)
    out = x.new_empty(n, height, width, len(weight))
    pictures = x.movedim(1, 3)                                                            # (N, H, W, C)
    some = max(1, CHUNK // (height * width))
    for part, answer in zip(pictures.split(some), out.split(some)):
        padded = F.pad(part, (0, 0, 1, 1, 1, 1))                                          # (n, H + 2, W + 2, C)
        tiles = torch.stack([tile for rows in sums(padded, 1) for tile in sums(rows, 2)])         # (16, n, H/2, W/2, C)
        products = torch.bmm(tiles.flatten(1, 3), matrices).view(4, 4, *tiles.shape[1:4], -1)      # rows, columns, ..
        for i, row in enumerate(answers(products)):                                       # (4, n, H/2, W/2, D) each
            for j, pixels in enumerate(answers(row)):                                     # (n, H/2, W/2, D)
                torch.add(pixels, bias, out=answer[:, i::2, j::2])
    return out.movedim(3, 1)                                                              # (N, D, H, W)


def kernels(weight: Tensor) -> Tensor:
    """The 16 sums of each 3 x 3 kernel, as matrices: (D, C, 3, 3) -> (16, C, D)."""
    both = torch.kron(KERNEL, KERNEL).to(weight)                                          # (16, 9)
    return (both @ weight.reshape(-1, 9).t()).view(16, *weight.shape[:2]).transpose(1, 2)


def sums(x: Tensor, dim: int) -> list[Tensor]:
    """What the four products of two answers see of the pixels along an axis: n + 2 places -> four tensors of n/2."""
    a, b, c, d = x.unfold(dim, 4, 2).unbind(-1)
    return [a - c, b + c, c - b, b - d]


def answers(products: Tensor) -> tuple[Tensor, Tensor]:
    """Both answers from the four products, which lie along the first axis."""
    m0, m1, m2, m3 = products
    return m0 + (m1 + m2), (m1 - m2) - m3
