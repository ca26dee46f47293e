"""What training takes of several cards: the ledger against real tensors, sizes and bytes against hand-made sums."""

import json

import pytest
import torch
from torch import nn

from minit2v import budget, cli
from minit2v.config import UNetConfig, mini, modelscope_1_7b
from minit2v.unet import UNet

SMALL = UNetConfig(channels=32, multipliers=(1, 2), res_blocks=1, attention=(True, True), head_dim=16, input_heads=2,
                   context_dim=48, norm_groups=8, dropout=0.1)


@pytest.fixture(scope="module")
def released():
    return budget.plan(modelscope_1_7b())


def kept_for_backward(checkpointing: bool) -> int:
    """Bytes that a real forward pass keeps for its backward pass, the weights aside."""
    unet = UNet(SMALL).train()
    unet.gradient_checkpointing = checkpointing
    weights, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)                # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(torch.randn(1, 4, 8, 16, 16), torch.zeros(1), torch.randn(1, 77, 48)).square().mean()
    return sum(size for size, _ in kept.values())


def test_activations_are_what_a_real_pass_keeps():
    """Without checkpointing the peak is what is kept and what the backward pass adds for a while; with, far less."""
    with torch.device("meta"):
        unet = UNet(SMALL)
    plain, twice = (budget.activations(unet, 1, 8, 16, 16, checkpointing) for checkpointing in (False, True))
    kept = kept_for_backward(False)
    assert 0.95 * kept < plain < 1.35 * kept
    assert kept_for_backward(True) < twice < 0.6 * plain


def test_memory_is_counted_from_the_parameters(released):
    with torch.device("meta"):
        unet = UNet(modelscope_1_7b().unet)
    count = sum(p.numel() for p in unet.parameters())
    assert released["parameters"] == count == 1_411_233_860
    whole, sharded = released["whole"]["memory"], released["sharded"]["memory"]
    assert whole["weights"] == whole["gradients"] == whole["average"] == 4 * count
    assert 4 * count < whole["optimizer"] < 1.01 * 4 * count                     # nearly all are matrices, for Muon
    assert sharded["optimizer"] == pytest.approx(8 * count / 8) and sharded["weights"] == pytest.approx(count / 2)
    largest = max(sum(p.numel() for p in block.parameters()) for level in unet.up for block in level.blocks)
    assert 2 * 2 * largest + 4 * largest < sharded["put together at a time"] < 2 * 2 ** 30
    assert released["checkpoint"] == pytest.approx(12 * count, rel=0.01)
    sizes = released["activations"]
    assert sizes["with checkpointing"] < 0.3 * sizes["without checkpointing"]
    assert sum(whole.values()) + sizes["without checkpointing"] < 80 * 10 ** 9


def test_what_is_sent_is_a_rings():
    """Two rounds of a ring with float32 gradients; with shards, weights twice in two bytes, gradients once in four."""
    for processes, accumulate in ((2, 2), (8, 8), (8, 32)):
        found = budget.plan(mini(), processes, accumulate)
        count, share = found["parameters"], (processes - 1) / processes
        assert found["whole"]["sends"] == pytest.approx(2 * share * 4 * count, abs=1)
        assert found["sharded"]["sends"] == pytest.approx(share * 8 * count * accumulate / processes, abs=99)


def test_a_linear_layers_weights_are_counted():
    assert budget.weights([nn.Linear(3, 4), nn.Linear(2, 2, bias=False)]) == 3 * 4 + 4 + 4


def test_inspect_prints_the_plan(capsys):
    assert cli.main(["inspect", "--training"]) == 0
    text = capsys.readouterr().out
    assert "not measured on cards" in text and "activations with checkpointing" in text and "on 8 cards" in text
    assert cli.main(["inspect", "--training", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["processes"] == 8
