"""The autoencoder: a frame becomes a small stack of feature maps, the latents, and comes back.

A diffusion model that worked on pixels would spend most of its effort on detail nobody looks at.
Latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1) first trains an autoencoder
whose latents are 8 times smaller along each side, and then learns to
denoise the latents alone. ModelScope takes the image autoencoder of Stable Diffusion as it is: it
sees one frame at a time and knows nothing of motion.

It is a variational one (Kingma & Welling 2014, arXiv:1312.6114). The encoder does not name a point
but a small Gaussian cloud, a mean and a log-variance for each latent number. In training a point is
drawn from the cloud, so the decoder learns that nearby latents mean the same picture, and a gentle
pull towards N(0, 1), the KL term, keeps the clouds close together.

    frame 3 x H x W ─ Encoder ─ (mean, logvar) ─ sample ─ x scaling_factor ─ latents 4 x h x w
    latents ─ / scaling_factor ─ Decoder ─ frame

Everything outside this file sees latents of unit size: the scaling factor lives here alone.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minit2v.config import AutoencoderConfig
from minit2v.upsample import doubled_conv
from minit2v.winograd import Conv3x3

EPS = 1e-6                                                # of every GroupNorm in this network


class GroupNorm(nn.GroupNorm):
    """Group normalisation between convolutions that keep channels last in memory: the same numbers, sooner.

    On processors convolutions are up to twice as fast channels last, but this normalisation's backward pass is up
    to thirty times slower there (torch 2.14, bfloat16). So in training it works in the usual order, at the price of
    two copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(super().forward(x.contiguous())) if torch.is_grad_enabled() else super().forward(x)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), in the memory of x where no gradient is wanted: these maps are the largest of all."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions, each after GroupNorm and SiLU, added to the input.

    (N, C_in, H, W) -> (N, C_out, H, W). When the widths differ a 1 x 1 convolution brings the input
    to the new width. It has no time embedding: the autoencoder knows no noise level.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=EPS)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=EPS)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))               # (N, C_out, H, W)
        h = self.conv2(silu(self.norm2(h)))
        return self.skip(x) + h


class PixelAttention(nn.Module):
    """Every pixel of the smallest feature map looks at every other one, with a single head.

    (N, C, H, W) -> the same. Convolutions see a neighbourhood; this one layer sees the whole frame.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)             # (N, HW, C)
        tokens = self.to_out(F.scaled_dot_product_attention(q, k, v))                 # softmax(q k^T / sqrt(C)) v
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])


class Downsample(nn.Module):
    """(N, C, H, W) -> (N, C, H/2, W/2): a 3 x 3 convolution with stride 2.

    The original pads one row below and one column to the right, and nothing above or to the left.
    Padding on all sides has the same shape but looks half a pixel elsewhere: released weights would blur.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))          # pad: left, right, top, bottom


class Upsample(nn.Module):
    """(N, C, H, W) -> (N, C, 2H, 2W): each pixel becomes four, a 3 x 3 convolution smooths the stairs.

    Where no gradient is wanted, the two are one, for less than half of the work (see upsample.py).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return doubled_conv(x, self.conv)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Some residual blocks at one resolution, then the step to the next (`resample`, or nothing)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, resample: nn.Module):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.blocks = nn.Sequential(*(ResBlock(a, b, groups) for a, b in zip(widths, widths[1:])))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


def middle(channels: int, groups: int) -> nn.Sequential:
    """The bottom of encoder and decoder: residual block, attention, residual block."""
    return nn.Sequential(ResBlock(channels, channels, groups), PixelAttention(channels, groups),
                         ResBlock(channels, channels, groups))


class Encoder(nn.Module):
    """Frames (N, 3, H, W) -> moments (N, 2 * latent_channels, h, w): mean and log-variance, stacked."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        groups = config.norm_groups
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(narrow, wide, config.res_blocks, groups, Downsample(wide) if i < last else nn.Identity())
            for i, (narrow, wide) in enumerate(zip([config.channels] + widths, widths)))
        self.middle = middle(widths[-1], groups)
        self.norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)                               # (N, channels, H, W)
        for level in self.levels:
            x = level(x)                                  # half the height and width, all levels but the last
        x = self.middle(x)                                # (N, C_last, h, w)
        return self.conv_out(silu(self.norm_out(x)))      # (N, 2 * latent_channels, h, w)


class Decoder(nn.Module):
    """Latents (N, latent_channels, h, w) -> frames (N, 3, H, W): the encoder in a mirror.

    One residual block more a level than the encoder: inventing pixels is harder than discarding them.
    `levels` stand in the order in which data flows, the coarsest first.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        groups = config.norm_groups
        widths = [config.channels * m for m in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0], groups)
        self.levels = nn.ModuleList(
            Level(wide, narrow, config.res_blocks + 1, groups, Upsample(narrow) if i < last else nn.Identity())
            for i, (wide, narrow) in enumerate(zip([widths[0]] + widths, widths)))
        self.norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(x))                  # (N, C_last, h, w)
        for level in self.levels:
            x = level(x)                                  # twice the height and width, all levels but the last
        return self.conv_out(silu(self.norm_out(x)))      # (N, 3, H, W)


class Autoencoder(nn.Module):
    """KL-VAE of Stable Diffusion (KL-f8, 83,653,863 parameters at the released size).

    Pictures are (B, 3, H, W) and clips (B, 3, F, H, W), values in [-1, 1]; each method takes either.
    Frames of a clip are treated one by one. H and W are multiples of `config.downscale`.
    Source: Rombach et al. 2022, section 3.1 and appendix G; `first_stage_model` of the released files.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the Gaussian q(z | frame), before scaling.

        frames (B, 3, H, W) or (B, 3, F, H, W) in [-1, 1] -> two tensors (B, 4, h, w) or (B, 4, F, h, w).
        logvar is clamped to [-30, 20], as in the original, so that exp(logvar) neither vanishes nor overflows.
        Raises ValueError for a wrong number of dimensions or channels, or a size that `downscale` does not divide.
        """
        self._check(frames, "frames", channels=3)
        if frames.shape[-2] % self.config.downscale or frames.shape[-1] % self.config.downscale:
            height, width = frames.shape[-2:]
            fix = [max(1, round(size / self.config.downscale)) * self.config.downscale for size in (height, width)]
            raise ValueError(f"frames are {height} x {width} pixels (height x width), but both must be multiples of "
                             f"{self.config.downscale}; resize or crop them, for example to {fix[0]} x {fix[1]}")
        moments = self.quant_conv(self.encoder(channels_last(fold_frames(frames))))     # (B F, 8, h, w)
        mean, logvar = unfold_frames(moments, like=frames).chunk(2, dim=1)            # (B, 4, [F,] h, w) each
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Frames (B, 3, [F,] H, W) in [-1, 1] -> latents (B, 4, [F,] h, w) of about unit variance.

        Without a generator the mean of the posterior; with a CPU generator a sample of it.
        Raises ValueError as `posterior` does, and for frames that are not finite.
        """
        check_finite(frames, "frames")
        mean, logvar = self.posterior(frames)
        z = mean if generator is None else sample(mean, logvar, generator)
        return z * self.config.scaling_factor

    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Latents (B, 4, [F,] h, w) of unit size -> frames (B, 3, [F,] H, W), about [-1, 1], not clamped.

        `chunk` frames are decoded at a time (4 if None): the result is the same, the memory is bounded.
        Raises ValueError for a wrong shape, a chunk below 1, or latents that are not finite.
        """
        self._check(latents, "latents", channels=self.config.latent_channels)
        check_finite(latents, "latents")
        chunk = 4 if chunk is None else chunk
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, but at least one frame is decoded at a time; pass chunk=1 or more")
        z = channels_last(fold_frames(latents / self.config.scaling_factor))            # (B F, 4, h, w)
        frames = torch.cat([self.decoder(self.post_quant_conv(part)) for part in z.split(chunk)])
        return unfold_frames(frames, like=latents)                                    # (B, 3, [F,] H, W)

    def loss(self, frames: Tensor, generator: torch.Generator, kl_weight: float = 1e-6,
             noise: float | None = None) -> tuple[Tensor, dict]:
        """The training objective, -ELBO up to weights: reconstruction + kl_weight * KL.

        frames as in `posterior` -> (loss, parts); parts holds the detached scalars `l1`, `l2` and `kl`.
        noise: standard deviation of the noise that the decoder has to cope with; None is the encoder's own.

        The reconstruction error is L1 + L2 a pixel value: L1 keeps edges sharp, L2 punishes the rare big
        error. The original adds a perceptual loss (LPIPS) and a discriminator (GAN), because on photographs
        L1 and L2 alone average fine texture into blur. Moving Shapes are flat colours with clean edges: there
        is no texture to average away, so we spare ourselves a second network and its adversarial training.

        KL(N(mean, var) || N(0, 1)) = 1/2 sum(mean^2 + var - 1 - log var)      (Kingma & Welling 2014, appendix B)

        Both terms are divided by the number of pixel values. Their balance is thus the original's, whose
        kl_weight is 1e-6: the latents stay almost as sharp as those of a plain autoencoder. (Our mini model wants
        far more, see `recipe.train_autoencoder`.)
        """
        mean, logvar = self.posterior(frames)
        cloud = logvar if noise is None else torch.full_like(logvar, 2 * math.log(noise))
        z = fold_frames(sample(mean, cloud, generator))                               # (B F, 4, h, w)
        rebuilt = unfold_frames(self.decoder(self.post_quant_conv(z)), like=frames)   # (B, 3, [F,] H, W)
        wide = torch.promote_types(mean.dtype, torch.float32)                         # sums and exp want full precision
        mean, logvar, error = mean.to(wide), logvar.to(wide), rebuilt.to(wide) - frames.to(wide)
        l1, l2 = error.abs().mean(), error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum() / frames.numel()
        loss = l1 + l2 + kl_weight * kl
        return loss, {"l1": l1.detach(), "l2": l2.detach(), "kl": kl.detach()}

    def _check(self, x: Tensor, name: str, channels: int):
        if x.ndim not in (4, 5) or x.shape[1] != channels:
            raise ValueError(f"{name} have the shape {tuple(x.shape)}, but must be (batch, {channels}, height, width) "
                             f"or (batch, {channels}, frames, height, width); add or permute dimensions")


def sample(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """mean + std * noise, the reparametrisation trick: gradients reach mean and logvar past the dice.

    The noise is drawn on the CPU in float32, so one seed gives the same noise on every device.
    """
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + torch.exp(0.5 * logvar) * noise


def fold_frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B F, C, H, W): each frame a picture of its own. Pictures pass unchanged."""
    return rearrange(x, "b c f h w -> (b f) c h w") if x.ndim == 5 else x


def unfold_frames(x: Tensor, like: Tensor) -> Tensor:
    """Undoes `fold_frames` when `like`, the tensor that was folded, is a clip."""
    return rearrange(x, "(b f) c h w -> b c f h w", b=like.shape[0]) if like.ndim == 5 else x


def channels_last(x: Tensor) -> Tensor:
    """The same values and the same shape (N, C, H, W), a pixel's channels side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def check_finite(x: Tensor, name: str):
    """Raises ValueError when `x` holds NaN or infinity: they would spread over the whole frame unseen."""
    if not x.is_meta and not x.isfinite().all():
        bad = (~x.isfinite()).sum().item()
        raise ValueError(f"{name} hold {bad} values that are NaN or infinite (of {x.numel()}), but must be finite; "
                         f"look at where they were made (float16 overflow? try float32 or bfloat16)")
