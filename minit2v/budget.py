"""What training takes of several cards, computed: memory of each, and what they send one another in a step.

Counts of parameters are those of the network itself, and activations come from the ledger of memory.py: the UNet is
sent forward and backward on torch's "meta" device. Nothing is measured on a card. Weights, gradients, optimizer and
average are in float32, the computation in bfloat16 (the ledger takes all of it so, except group normalisation, which
stays in float32 as it does under autocast; layer norms under autocast do, too, so a little more is needed).
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minit2v.config import ModelConfig
from minit2v.memory import GB, Ledger
from minit2v.muon import split
from minit2v.sharding import units
from minit2v.unet import UNet

FULL, HALF = 4, 2                                        # bytes of a number in float32 and in bfloat16
LINKS = {"PCIe 4": 20e9, "NVLink": 300e9}                # bytes a second that a card sends to the next, roughly


class Fused(torch.autograd.Function):
    """Fused attention as far as memory goes: it keeps queries, keys, values and its answer, and no scores."""

    @staticmethod
    def forward(context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        context.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


@contextmanager
def fused_attention():
    """Inside, scaled_dot_product_attention is `Fused`; on the meta device torch would take it apart.

    Put in its place, as a mode of torch's (memory.FusedAttention) is not heard during the backward pass.
    """
    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = Fused.apply
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def activations(unet: UNet, clips: int, frames: int, height: int, width: int, checkpointing: bool) -> int:
    """The most bytes beside weights and gradients that a forward and a backward pass hold at once.

    unet: on the meta device, in the number type of the computation. height, width: of the latents.
    """
    config, dtype = unet.config, unet.conv_in.weight.dtype
    unet.train().gradient_checkpointing = checkpointing
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in unet.parameters()]
    latents = torch.empty(clips, config.latent_channels, frames, height, width, dtype=dtype, device="meta")
    texts = torch.empty(clips, 77, config.context_dim, dtype=dtype, device="meta")
    with Ledger(unet) as ledger, fused_attention():
        unet(latents, torch.zeros(clips, device="meta"), texts).float().square().mean().backward()
    for hook in hooks:
        hook.remove()
    return ledger.peak


def weights(modules: list[nn.Module]) -> int:
    """How many numbers the parameters of some modules are."""
    return sum(p.numel() for module in modules for p in module.parameters())


def plan(config: ModelConfig, processes: int = 8, accumulate: int = 8, clips: int = 1) -> dict:
    """What each of `processes` cards needs and sends, training all of the UNet on clips of the model's own size.

    accumulate: micro-batches in a step, of `clips` clips each. Returns plain data: "parameters"; for "whole" (every
    process has all weights) and "sharded" the "memory" by what it is for and the bytes it "sends" in a step; and
    "activations", by whether blocks are computed twice ("checkpointing"). Takes some seconds.
    """
    with torch.device("meta"):
        unet = UNet(config.unet)
    count, cell = weights([unet]), config.autoencoder.downscale
    matrices = sum(p.numel() for p in split(unet, list(unet.parameters()))[0])
    text, *blocks, _ = (weights(unit) for unit in units(unet))
    largest, inside = max(blocks), sum(blocks)
    rest = count - inside                                # of the text's layers, all are inside blocks
    # Together at a time: what is in no block, the text's layers, one block that computes and the one that comes next.
    together = rest + text + 2 * largest
    whole = {"weights": FULL * count, "their copies in bfloat16": HALF * count, "gradients": FULL * count,
             "optimizer": FULL * matrices + 2 * FULL * (count - matrices), "average": FULL * count}
    piece = FULL * count // processes
    sharded = {"the model as it was": FULL * count, "weights": piece, "gradients": piece, "optimizer": 2 * piece,
               "average": piece, "put together at a time": HALF * together + FULL * largest}
    share = (processes - 1) / processes                  # of a ring's data, what one process passes on in a round
    unet = unet.to(torch.bfloat16)
    return {"model": config.name, "parameters": count, "processes": processes, "accumulate": accumulate,
            "clips": clips, "frames": config.num_frames, "height": config.height, "width": config.width,
            "activations": {name: activations(unet, clips, config.num_frames, config.height // cell,
                                              config.width // cell, name == "with checkpointing")
                            for name in ("without checkpointing", "with checkpointing")},
            "whole": {"memory": whole, "sends": int(2 * share * FULL * count)},
            "sharded": {"memory": sharded,
                        "sends": int(share * (2 * HALF + FULL) * count) * (accumulate // processes)},
            "checkpoint": FULL * count * 2 + whole["optimizer"]}


def report(found: dict) -> str:
    """The plan as lines of text."""
    lines = [f"training all {found['parameters']:,} parameters of the UNet of {found['model']} on {found['processes']} "
             f"cards, computed, not measured on cards:",
             f"a step of {found['accumulate']} micro-batches of {found['clips']} x {found['frames']} frames of "
             f"{found['width']} x {found['height']}; GB (2^30 bytes) on each card"]
    names = dict.fromkeys([*found["whole"]["memory"], *found["sharded"]["memory"]])
    lines.append(f"{'':32}{'whole':>12}{'sharded':>12}")
    ways = [found["whole"], found["sharded"]]
    for name in names:
        lines.append(f"{name:32}" + "".join(f"{way['memory'].get(name, 0) / GB:12.1f}" for way in ways))
    for name, size in found["activations"].items():
        sums = [sum(way["memory"].values()) + size for way in ways]
        lines.append(f"{'activations ' + name:32}" + f"{size / GB:12.1f}" * 2)
        lines.append(f"{'  all':32}" + "".join(f"{each / GB:12.1f}" for each in sums))
    lines.append(f"{'sent by each card in a step':32}" + "".join(f"{way['sends'] / GB:12.1f}" for way in ways))
    for link, speed in LINKS.items():
        lines.append(f"{f'  seconds at {speed / 1e9:.0f} GB/s ({link})':32}"
                     + "".join(f"{way['sends'] / speed:12.2f}" for way in ways))
    lines.append(f"a checkpoint on disk takes {found['checkpoint'] / GB:.1f} GB")
    return "\n".join(lines)
