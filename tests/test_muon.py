"""Muon against the singular value decomposition, and against torch's own, which only takes plain matrices."""

import pytest
import torch
from torch import nn

from minit2v.muon import Muon, level, split


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(24, 24), (20, 60), (60, 20)])
def test_levelling_keeps_directions_and_evens_out_their_sizes(shape):
    u, s, vt = torch.linalg.svd(randn(*shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1.5, len(s), dtype=s.dtype)) @ vt           # sizes from 1 down to 0.03
    sizes = u.T @ level(matrix, torch.float64) @ vt.T                                # diagonal, if directions stay
    assert torch.allclose(sizes, torch.diag(sizes.diag()), rtol=0, atol=1e-10)
    assert sizes.diag().min() > 0.6 and sizes.diag().max() < 1.3
    assert level(1e-6 * matrix, torch.float64).allclose(level(matrix, torch.float64))      # the gradient's size is lost


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_steps_are_those_of_torch(shape):
    """Both in bfloat16, so equal to its three digits (0.01 of a step)."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon of its own")
    mine, other = (nn.Parameter(randn(*shape, dtype=torch.float32)) for _ in range(2))
    first = mine.detach().clone()
    ours = Muon([mine], lr=0.1, weight_decay=0.3, momentum=0.9, dtype=torch.bfloat16)
    theirs = torch.optim.Muon([other], lr=0.1, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        mine.grad = randn(*shape, seed=step + 1, dtype=torch.float32)
        other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    assert (mine - first).abs().mean() > 0.03
    assert (mine - other).abs().max() < 0.01 * (mine - first).abs().max()


def test_a_convolution_counts_as_a_matrix_of_its_outputs():
    weight, flat = nn.Parameter(randn(16, 4, 3, 3)), nn.Parameter(randn(16, 4, 3, 3).flatten(1))
    weight.grad, flat.grad = randn(16, 4, 3, 3, seed=1), randn(16, 4, 3, 3, seed=1).flatten(1)
    for p in (weight, flat):
        Muon([p], lr=0.1, dtype=torch.float64).step()
    assert torch.equal(weight.flatten(1), flat) and not torch.equal(weight, randn(16, 4, 3, 3))


def test_a_step_is_as_large_as_asked_whatever_the_gradient():
    for scale in (1e-8, 1.0, 1e4):
        p = nn.Parameter(torch.zeros(32, 64))
        p.grad = scale * randn(32, 64, dtype=torch.float32)
        Muon([p], lr=0.1).step()
        assert p.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)


def test_what_had_no_part_in_a_step_does_not_move():
    p, q = nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16, 16))
    p.grad = randn(16, 16, dtype=torch.float32)
    Muon([p, q], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(q, torch.ones(16, 16)) and not torch.equal(p, q)


def test_who_takes_what():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 32, 3), "narrow": nn.Linear(64, 8), "norm": nn.LayerNorm(64),
                           "table": nn.Embedding(100, 32), "linear": nn.Linear(16, 16)})
    matrices, rest = split(model, list(model.parameters()))
    assert {id(p) for p in matrices} == {id(model["conv"].weight), id(model["linear"].weight)}
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    with pytest.raises(ValueError, match=r"\(64,\) is no matrix"):
        Muon([model["norm"].weight], lr=0.1)
