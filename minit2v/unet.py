"""The spatial-temporal UNet: noisy latents, a time and a text in; the predicted noise out.

ModelScope text-to-video (Wang et al. 2023, arXiv:2308.06571) is an image model that
learned to move. Its unit is a row of four parts, the first and third of which see single frames, the
second and fourth of which see time:

    residual block -> temporal convolution -> spatial transformer -> temporal transformer
    (3x3 pixels)      (3 frames)              (pixels, words)        (all frames of one pixel)

These blocks stand in the shape of a U: down over ever smaller and wider maps, through the middle, and
up again, each block of the way up receiving also what its counterpart of the way down had made (the
skip connections). Every temporal part is x + f(x) with an f that starts at zero: before it has learned
anything about time, the video model *is* the image model, frame by frame.

Memory layout: a clip's activations are held as (batch, frames, height, width, channels), "channels
last". Both views of a clip, (B, C, F, H, W) for the temporal parts and (B*F, C, H, W) for the spatial
ones, and the token rows (B*F, H*W, C) of the spatial transformer, are then views of the same memory.
Only the temporal transformer, for which all frames of one pixel must be neighbours, has to copy.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import TransformerBlock
from .config import UNetConfig
from .few import Projection, is_few, over_frames
from .levels import Downsample, Level, Upsample, as_clip, as_images
from .winograd import Conv3x3

Text = tuple[Tensor, Tensor]                             # keys and values of a prompt, (B, heads, L, d) each


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """A time as `width` numbers: cosines, then sines, of t * 10000^(-i / half), i = 0 .. half - 1.

    timesteps: (N,), 0 to 999, whole or not. Returns (N, width), float32. Slow waves tell early from
    late, fast waves tell neighbours apart (Ho et al. 2020, after Vaswani et al. 2017, section 3.5).
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10000) * steps / half)          # (half,) from 1 down to about 1/10000
    angles = timesteps.float()[:, None] * frequencies                 # (N, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)            # (N, width)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32 at least: half precision only stores the result.

    Torch's own does that, too, but learns slowly in half precision on a processor: training widens the input first.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and x.dtype == self.weight.dtype:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.group_norm(x.to(wide), self.num_groups, self.weight.to(wide), self.bias.to(wide), self.eps).to(x.dtype)


class FrameConv(nn.Conv3d):
    """A convolution over three neighbouring frames: Conv3d with kernel (3, 1, 1), the frames padded by zeros.

    Height and width play no part in it, so they can be one axis, and the 3-D convolution is a 2-D one over
    (frames, pixels). That is the same sum, and on a processor a far faster one.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H*W) -> (B, C, F, H*W)."""
        if is_few(x, self, x.numel() // x.shape[1]):
            return over_frames(x, self.weight, self.bias)
        return F.conv2d(x, self.weight.squeeze(-1), self.bias, padding=(1, 0))


def zero_init(layer: nn.Module) -> nn.Module:
    """Sets all parameters of a layer to zero: the residual branch that it ends starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """Two 3x3 convolutions on each frame, the time added between them (Ho et al. 2020, appendix B).

    x: (N, in_channels, H, W), emb: (N, emb_channels), N = B * F frames -> (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.time_proj = Projection(emb_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(Conv3x3(out_channels, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))                         # (N, out_channels, H, W)
        h = h + self.time_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class TemporalConv(nn.Module):
    """Four convolutions along time, each over 3 frames: together a frame sees 4 frames to either side.

    x: (B, C, F, H, W) -> (B, C, F, H, W). The norms take their statistics over all frames of a clip
    together, so that a frame may stay brighter than its neighbours. The last convolution starts at zero.
    """

    def __init__(self, channels: int, groups: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Sequential(GroupNorm(groups, channels), nn.SiLU(), FrameConv(channels))
        self.conv2 = nn.Sequential(GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout), FrameConv(channels))
        self.conv3 = nn.Sequential(GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout), FrameConv(channels))
        self.conv4 = nn.Sequential(GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout),
                                   zero_init(FrameConv(channels)))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(3)                                              # (B, C, F, H*W)
        h = self.conv4(self.conv3(self.conv2(self.conv1(h))))
        return x + h.view_as(x)


class SpatialTransformer(nn.Module):
    """The pixels of a frame attend to one another, then to the words.

    x: (N, C, H, W), N = B * F -> the same. `text`: keys and values of the B prompts, from `prepare`.
    """

    def __init__(self, channels: int, head_dim: int, context_width: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.block = TransformerBlock(channels, channels // head_dim, context_width)
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def prepare(self, context: Tensor) -> Text:
        """(B, L, context_width) -> the keys and values that `forward` takes as `text`."""
        return self.block.attn2.keys_values(context)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        h = rearrange(self.norm(x), "n c h w -> n (h w) c")
        h = self.proj_out(self.block(self.proj_in(h), text))          # (N, H*W, C)
        return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])


class TemporalTransformer(nn.Module):
    """The frames of a clip attend to one another, at each pixel by itself; all heads together `width` wide.

    x: (B, C, F, H, W) -> (B, C, F, H, W). No mask: a frame sees the past and the future. No positions: by
    itself it does not know which frame is which (the temporal convolutions do, from the zeros beyond the
    clip's ends), which is why the model runs on any number of frames.
    """

    def __init__(self, channels: int, width: int, head_dim: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width)
        self.block = TransformerBlock(width, width // head_dim)
        self.proj_out = zero_init(nn.Linear(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, height, width = x.shape
        h = rearrange(self.norm(x.flatten(3)), "b c f p -> (b p) f c")            # all frames of a pixel in a row
        h = self.proj_out(self.block(self.proj_in(h)))                            # (B*H*W, F, C)
        return x + rearrange(h, "(b h w) f c -> b c f h w", b=b, h=height)


class Block(nn.Module):
    """The unit of the model: residual block, temporal convolution, and both transformers if `attention`.

    x: (B, in_channels, F, H, W), emb: (B*F, emb_channels) -> (B, out_channels, F, H, W). With `temporal`
    false the parts that see time are left out, and what remains treats each frame as a picture of its own.
    """

    def __init__(self, in_channels: int, out_channels: int, attention: bool, config: UNetConfig):
        super().__init__()
        groups, head_dim = config.norm_groups, config.head_dim
        self.attention = attention
        self.res = ResBlock(in_channels, out_channels, 4 * config.channels, groups, config.dropout)
        self.temporal_conv = TemporalConv(out_channels, groups, config.dropout)
        if attention:
            self.spatial_transformer = SpatialTransformer(out_channels, head_dim, config.context_dim, groups)
            self.temporal_transformer = TemporalTransformer(out_channels, out_channels, head_dim, groups)

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None, temporal: bool = True) -> Tensor:
        frames = x.shape[2]
        x = as_clip(self.res(as_images(x), emb), frames)
        if temporal:
            x = self.temporal_conv(x)
        if self.attention:
            x = as_clip(self.spatial_transformer(as_images(x), text), frames)
            if temporal:
                x = self.temporal_transformer(x)
        return x


class UNet(nn.Module):
    """The whole network. `config` decides its size; see `forward` for what goes in and comes out.

    Set `gradient_checkpointing = True` to keep only the blocks' inputs for the backward pass and compute
    the rest a second time: the same gradients with far less memory, for about a third more time.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        emb_channels = 4 * config.channels

        self.time_embedding = nn.Sequential(nn.Linear(config.channels, emb_channels), nn.SiLU(),
                                            nn.Linear(emb_channels, emb_channels))
        self.conv_in = nn.Conv2d(config.latent_channels, config.channels, 3, padding=1)
        self.transformer_in = TemporalTransformer(config.channels, config.input_heads * config.head_dim,
                                                  config.head_dim, config.norm_groups)

        self.down = nn.ModuleList()
        channels = config.channels
        skips = [channels]                               # widths of the tensors that cross over to the way up
        for level, (width, attention) in enumerate(zip(widths, config.attention, strict=True)):
            blocks = []
            for _ in range(config.res_blocks):
                blocks.append(Block(channels, width, attention, config))
                channels = width
                skips.append(channels)
            if level < last:
                skips.append(channels)
            self.down.append(Level(blocks, Downsample(channels) if level < last else None))

        self.mid = nn.ModuleList([Block(channels, channels, True, config), Block(channels, channels, False, config)])

        self.up = nn.ModuleList()                        # from the coarsest level to the finest
        for level, (width, attention) in reversed(list(enumerate(zip(widths, config.attention, strict=True)))):
            blocks = []
            for _ in range(config.res_blocks + 1):
                blocks.append(Block(channels + skips.pop(), width, attention, config))
                channels = width
            self.up.append(Level(blocks, Upsample(channels) if level > 0 else None))

        self.norm_out = GroupNorm(config.norm_groups, channels)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)             # a fresh network predicts (next to) nothing

    def prepare(self, context: Tensor) -> list[Text]:
        """The text as every cross-attention wants it: its keys and values, projected once.

        context: (B, L, context_dim). Returns a list of (keys, values), (B, heads, L, d) each, in the order
        of the blocks. `forward` takes it in the place of `context`. Text does not change while a clip is
        being denoised, so a sampler prepares it once and all steps and frames share it.
        """
        if context.ndim != 3 or context.shape[-1] != self.config.context_dim:
            raise ValueError(f"context has shape {tuple(context.shape)}; it must be (B, L, {self.config.context_dim}): "
                             "prompts, tokens, width. Use the text encoder of the same model.")
        blocks = [*(b for level in self.down for b in level.blocks), *self.mid,
                  *(b for level in self.up for b in level.blocks)]
        return [block.spatial_transformer.prepare(context) for block in blocks if block.attention]

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor | list[Text],
                temporal: bool = True) -> Tensor:
        """Predicts the noise in `latents`.

        latents: (B, 4, F, h, w), a noisy clip; h and w multiples of 2^(levels - 1). Any number of frames.
        timesteps: (B,), or (B, F) with a time for each frame; 0 (almost clean) to 999 (almost noise).
        context: (B, L, context_dim), the encoded text, or what `prepare` made of it.
        temporal: False leaves out every part that sees time; frames are then pictures of their own.
        Returns (B, 4, F, h, w) in the type of `latents`. Raises ValueError for shapes that do not fit.
        """
        self._check(latents, timesteps)
        batch, _, frames, _, _ = latents.shape
        texts = self.prepare(context) if isinstance(context, Tensor) else context
        if len(texts[0][0]) != batch:
            raise ValueError(f"context holds {len(texts[0][0])} prompts but latents hold {batch} clips; "
                             "give one prompt for each clip.")
        texts = iter(texts)

        def run(block: Block, x: Tensor) -> Tensor:
            text = next(texts) if block.attention else None
            return self._run(block, x, emb, text, temporal)

        # One time for each frame, always: so (B,) and a (B, F) of equal columns are the same computation.
        timesteps = timesteps.reshape(batch, -1).expand(batch, frames).flatten()                  # (B*F,)
        emb = self.time_embedding(timestep_embedding(timesteps, self.config.channels).to(latents.dtype))

        x = as_images(latents).contiguous(memory_format=torch.channels_last)
        x = as_clip(self.conv_in(x), frames)                                                      # (B, C, F, h, w)
        if temporal:
            x = self._run(self.transformer_in, x)

        skips = [x]
        for level in self.down:
            for block in level.blocks:
                x = run(block, x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        for block in self.mid:
            x = run(block, x)
        for level in self.up:
            for block in level.blocks:
                x = run(block, torch.cat([x, skips.pop()], dim=1))
            if level.resample is not None:
                x = level.resample(x)

        x = self.conv_out(F.silu(self.norm_out(as_images(x))))                                    # (B*F, 4, h, w)
        return as_clip(x, frames).to(latents.dtype)

    def _run(self, module: nn.Module, *args) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)

    def _check(self, latents: Tensor, timesteps: Tensor) -> None:
        channels, factor = self.config.latent_channels, 2 ** (len(self.config.multipliers) - 1)
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[2] < 1:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; they must be (B, {channels}, F, h, w): "
                             "clips, channels, frames, height, width. A single image has F = 1.")
        for name, size in (("height", latents.shape[3]), ("width", latents.shape[4])):
            if size < factor or size % factor:
                raise ValueError(f"latent {name} is {size}; it must be a multiple of {factor}, because the network "
                                 f"halves it {len(self.config.multipliers) - 1} times. "
                                 f"The nearest is {max(1, round(size / factor)) * factor}.")
        if tuple(timesteps.shape) not in {(latents.shape[0],), (latents.shape[0], latents.shape[2])}:
            raise ValueError(f"timesteps have shape {tuple(timesteps.shape)}; for these latents they must be "
                             f"({latents.shape[0]},), a time for each clip, or "
                             f"({latents.shape[0]}, {latents.shape[2]}), a time for each frame.")
