"""The original's own code, from the files of the `modelscope` package: for tests, and for a comparison by hand.

The package is found, not imported: its own `__init__` asks for much that a comparison does not need. The three files
used here import nothing but torch, numpy and einops, and are run as they are.
"""

import importlib.util
from pathlib import Path

from torch import nn

from minit2v.config import UNetConfig


def modules() -> dict | None:
    """The modules by name: unet_sd, diffusion, autoencoder. None if the package is not installed."""
    package = importlib.util.find_spec("modelscope")
    if package is None:
        return None
    folder, found = Path(package.origin).parent / "models" / "multi_modal" / "video_synthesis", {}
    for name in ("unet_sd", "diffusion", "autoencoder"):
        spec = importlib.util.spec_from_file_location(f"modelscope_{name}", folder / f"{name}.py")
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def unet_sd(code: dict, config: UNetConfig) -> nn.Module:
    """The original's UNet of this size, as its own pipeline makes it of configuration.json; its weights are random."""
    scales = [1 / 2 ** level for level, has in enumerate(config.attention) if has]
    return code["unet_sd"].UNetSD(
        in_dim=config.latent_channels, dim=config.channels, y_dim=768, context_dim=config.context_dim,
        out_dim=config.latent_channels, dim_mult=list(config.multipliers), num_heads=config.input_heads,
        head_dim=config.head_dim, num_res_blocks=config.res_blocks, attn_scales=scales, dropout=config.dropout,
        temporal_attention=True)
