"""Muon: an optimizer that takes a step of the same size in every direction of a matrix.

The gradient of a weight matrix is mostly a few strong directions; a step along it, even with Adam's scaling of
single entries, hardly moves the weak ones, in which rare things are learnt. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon) keeps the directions and levels their sizes: of the gradient's
singular value decomposition U S V^T it steps along U V^T. In our image stage it reached in 220 steps the loss that
AdamW reached in 420.

Vectors (biases, norms), embeddings, and matrices with a side below 16 have no directions worth levelling; they
stay with AdamW.
"""

import math

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 16


def level(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T of the matrix U S V^T, roughly: singular values between about 0.7 and 1.2 in the place of S.

    matrix: (m, n), returns the same. Five rounds of x <- a x + b (x x^T) x + c (x x^T)^2 x, which push
    every singular value s along s <- a s + b s^3 + c s^5: fast up from 0, then around 1. Only products of
    matrices, so far cheaper than the decomposition itself, and good enough in bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315                      # Jordan's: the steepest start that still settles near 1
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x                                                          # (short side, long side)
    x = x / x.norm().clamp(min=1e-7)                                                # no singular value above 1
    for _ in range(5):
        square = x @ x.T                                                            # (short, short)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix)


class Muon(torch.optim.Optimizer):
    """Steps of levelled momentum. Parameters of any shape (out, ...); a convolution counts as (out, all the rest).

    params: tensors or groups of them, each with at least two axes. lr: as large as AdamW's would be: the step's
    root mean square is 0.2 lr, which is about AdamW's (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    weight_decay: what a weight loses at each step, in units of lr times itself. momentum: share of the old
    direction kept at each step, with Nesterov's look ahead. dtype: of the matrix products.
    Raises ValueError for a parameter with fewer than two axes.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95,
                 dtype: torch.dtype = torch.float32):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is no matrix; give it to AdamW")

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:                                                  # had no part in this step
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"])
                direction = level(ahead.flatten(1), self.dtype)                     # (out, all the rest)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction.view_as(p), alpha=-group["lr"] * 0.2 * math.sqrt(max(direction.shape)))


def takes(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix worth levelling: both of its sides at least `SMALLEST_SIDE`."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST_SIDE


def split(model: nn.Module, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters for Muon, and the others for AdamW. Embeddings are tables of vectors, so AdamW has them."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in parameters if takes(p) and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in parameters if id(p) not in chosen]
