"""The levels of the UNet: the blocks of one resolution, and the way to the next.

The maps change their size between two levels only, each frame by itself: on the way down a convolution takes steps of
two pixels; on the way up every pixel becomes four, and a convolution smooths the stairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .upsample import doubled_conv
from .winograd import Conv3x3


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2. (B, C, F, H, W) -> (B, C, F, H/2, W/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        images = x.transpose(1, 2).flatten(0, 1)                      # (B*F, C, H, W)
        return self.conv(images).unflatten(0, (len(x), -1)).transpose(1, 2)


class Upsample(nn.Module):
    """Twice the height and width: every pixel four times, then a convolution. (B, C, F, H, W) -> (B, C, F, 2H, 2W).

    Where no gradient is wanted, the two are one, for less than half of the work (see upsample.py).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        images = x.transpose(1, 2).flatten(0, 1)                      # (B*F, C, H, W)
        if torch.is_grad_enabled():
            images = self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))
        else:
            images = doubled_conv(images, self.conv)
        return images.unflatten(0, (len(x), -1)).transpose(1, 2)      # (B, C, F, 2H, 2W)


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next: Downsample, Upsample, or None at the end."""

    def __init__(self, blocks: list[nn.Module], resample: Downsample | Upsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample
