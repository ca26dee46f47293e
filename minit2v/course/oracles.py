"""What the oracles of several exercises are made of: tensors to judge with, and group normalisation by its formula."""

import torch
from torch import Tensor


def random_tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """A normal tensor in float64 for each shape, always the same ones for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalisation over everything but the batch (Wu & He 2018, eq. 1). x: (B, C, ...)."""
    parts = x.unflatten(1, (groups, -1)).flatten(2)                                      # (B, groups, the rest)
    parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + eps).sqrt()
    return torch.einsum("bc...,c->bc...", parts.reshape(x.shape), weight) + bias.view(-1, *[1] * (x.ndim - 2))
