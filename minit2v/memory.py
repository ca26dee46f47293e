"""How much memory a clip takes, computed: nothing is loaded and nothing runs.

The networks are built without numbers (on torch's "meta" device), sent through their work, and every tensor that
comes to be is written into a ledger until it is gone. The largest sum at any one time, and the weights, are what has
to be there. The ledger follows the code itself, so it knows no formula that could be out of date. It does not know
what the libraries underneath take for themselves: working space of a convolution, gaps between blocks, the driver.
Fused attention is taken as fused: no table of scores is counted for it. And the ways are those of a graphics card.
On a processor group normalisation copies nothing, which makes the mini model need a fifth less; but wide convolutions
go by winograd.py there, and that takes room: the released UNet needs 1.2 GB for its work instead of 0.7, and a whole
clip in float32 8.7 GB instead of 7.6 (measured; tests/README.md).
"""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minit2v.config import ModelConfig
from minit2v.layouts import networks
from minit2v.offload import WAYS, stops

GB = 2 ** 30
CLIPS = ((16, 256, 256), (24, 320, 576))                 # frames, height, width: ModelScope's clip, and ZeroScope's
CARDS = (8, 12, 16)                                      # GB, as they are sold
RESERVE = 1.0                                            # GB of a card that driver, libraries and gaps take


class Ledger(TorchDispatchMode):
    """Inside `with Ledger(network) as ledger`: ledger.peak is the most bytes of tensors that were there at once.

    Weights of `network` do not count. A tensor counts once, however many views of it there are.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Without numbers torch takes attention apart, table of scores and all; where it counts, it is one operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


def working_memory(network: nn.Module, work) -> int:
    """The most bytes that `work()` has in tensors at once, the network's weights aside."""
    with torch.no_grad(), Ledger(network) as ledger, FusedAttention():
        work()
    return ledger.peak


def needs(config: ModelConfig, dtype: torch.dtype, frames: int, height: int, width: int,
          decode_chunk: int | None = None) -> dict[str, tuple[int, int]]:
    """Bytes of weights and of everything else, by network, for one clip with guidance.

    Also "block", the UNet when it comes in pieces: its largest piece in the place of all its weights.
    """
    with torch.device("meta"):
        parts = {name: network.to(dtype).eval() for name, network in networks(config).items()}
        unet, autoencoder = parts["unet"], parts["autoencoder"]
        channels, cell = config.unet.latent_channels, config.autoencoder.downscale
        tokens = torch.zeros(2, config.text.context_length, dtype=torch.long)
        texts = torch.empty(2, config.text.context_length, config.unet.context_dim, dtype=dtype)
        latents = torch.empty(2, channels, frames, height // cell, width // cell, dtype=dtype)
        work = {"text_encoder": lambda: parts["text_encoder"](tokens),
                "unet": lambda: unet(latents, torch.zeros(2), texts),
                "autoencoder": lambda: autoencoder.decode(latents[:1], decode_chunk)}
        found = {name: (weights(network), working_memory(network, work[name])) for name, network in parts.items()}
    return {**found, "block": (max(map(weights, stops(unet))), found["unet"][1])}


def weights(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def on_device(needed: dict[str, tuple[int, int]], offload: str | None = None) -> int:
    """The most bytes on the device at once: all weights and the hungriest network's work, or one at a time."""
    parts = [needed[name] for name in ("text_encoder", "unet", "autoencoder")]
    if offload is None:
        return sum(weights for weights, _ in parts) + max(work for _, work in parts)
    if offload == "blocks":
        parts[1] = needed["block"]
    return max(weights + work for weights, work in parts)


def table(config: ModelConfig, decode_chunk: int | None = None) -> list[dict]:
    """What every number type and way of offloading takes for the two usual clips. Takes some seconds."""
    rows = []
    for dtype in (torch.float32, torch.float16):                     # bfloat16 is as large as float16
        needed = [needs(config, dtype, *clip, decode_chunk) for clip in CLIPS]
        for offload in (None, *WAYS):
            sizes = [on_device(each, offload) / GB for each in needed]
            rows.append({"dtype": str(dtype).removeprefix("torch."), "offload": offload, "clips": [
                {"frames": frames, "height": height, "width": width, "gb": round(size, 2),
                 "runs_in": [card for card in CARDS if size + RESERVE <= card]}
                for (frames, height, width), size in zip(CLIPS, sizes)]})
    return rows


def report(rows: list[dict]) -> str:
    """The table as lines of text."""
    clips = [f"{c['frames']} frames of {c['width']} x {c['height']}" for c in rows[0]["clips"]]
    lines = ["memory on the device, in GB (2^30 bytes), for one prompt with guidance: computed, and the cards that",
             f"have it with {RESERVE:g} GB to spare for driver and libraries (bfloat16 is as float16)",
             f"{'':28}" + "".join(f"{clip:>30}" for clip in clips)]
    for row in rows:
        name = row["dtype"] + (f" --offload {row['offload']}" if row["offload"] else "")
        cells = [f"{c['gb']:.1f}  (" + (", ".join(f"{card} GB" for card in c["runs_in"]) or "more") + ")"
                 for c in row["clips"]]
        lines.append(f"{name:28}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)
