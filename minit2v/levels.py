"""The levels of the UNet: the blocks of one resolution, and the way to the next.

The maps change their size between two levels only, each frame by itself: on the way down a convolution takes steps of
two pixels; on the way up every pixel becomes four, and a convolution smooths the stairs.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .upsample import doubled_conv
from .winograd import Conv3x3


def as_images(x: Tensor) -> Tensor:
    """A clip as a batch of single frames: (B, C, F, H, W) -> (B*F, C, H, W), a view of the same memory."""
    return rearrange(x, "b c f h w -> (b f) c h w")


def as_clip(x: Tensor, frames: int) -> Tensor:
    """The way back: (B*F, C, H, W) -> (B, C, F, H, W), a view of the same memory."""
    return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2. (B, C, F, H, W) -> (B, C, F, H/2, W/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return as_clip(self.conv(as_images(x)), x.shape[2])


class Upsample(nn.Module):
    """Twice the height and width: every pixel four times, then a convolution. (B, C, F, H, W) -> (B, C, F, 2H, 2W).

    Where no gradient is wanted, the two are one, for less than half of the work (see upsample.py).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        images = as_images(x)                                         # (B*F, C, H, W)
        if not torch.is_grad_enabled():
            return as_clip(doubled_conv(images, self.conv), x.shape[2])
        return as_clip(self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest")), x.shape[2])


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next: Downsample, Upsample, or None at the end."""

    def __init__(self, blocks: list[nn.Module], resample: Downsample | Upsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample
