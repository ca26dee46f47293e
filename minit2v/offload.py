"""Making do with the memory there is: weights that come and go, and memory that is used again.

A graphics card of 8 GB computes fast but holds little; the processor's memory holds much. The networks of a
text-to-video model work one after the other, so only the one whose turn it is has to be on the device:

    parts     text encoder, UNet, autoencoder: each comes when its turn has come, and stays until it is over
    blocks    the UNet, by far the largest, comes block by block, anew at every step: slower, and the smallest of all

The originals stay where they are, on the processor, and nothing is ever copied back. So weights that are mapped from
a file stay mapped, and leaving the device is only letting go of a copy.

On the processor itself there is another waste: memory that is given back to the operating system after every layer,
and asked for anew, page by page, for the next. `recycled` keeps it for as long as a clip takes.
"""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

WAYS = ("parts", "blocks")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4           # of glibc's mallopt, see malloc.h


def present(device: str | torch.device | None) -> torch.device:
    """The device ("cpu" for None) after a look whether it is there. ValueError if not, before gigabytes are fetched."""
    try:
        device = torch.device("cpu" if device is None else device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = re.split(r"[.:]\s", str(error))[0]
        raise ValueError(f"there is no device {str(device)!r} for this torch, {torch.__version__} ({why}). `minit2v "
                         "doctor` names what there is; a graphics card needs the build of torch that pytorch.org names "
                         "for it") from error
    return device


@contextmanager
def recycled() -> Iterator[None]:
    """Inside, freed memory stays with this process, for the next tensor. Afterwards what is free is given back.

    By itself the C library (glibc) asks the system for every block above 32 MB and returns it when it is freed, and
    the system fills each new page with zeros first. On the released model's activations that was a fourth of
    the decoder's time. Elsewhere than on Linux with glibc, or in another thread than the main one, nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)                          # no block of its own from the system, however large
    libc.mallopt(M_TRIM_THRESHOLD, -1)                   # and nothing back
    try:
        yield
    finally:                                             # what glibc arrives at by itself, in a program like this
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the module's weights are copies on `device`; afterwards they are again what they were before."""
    tensors = [*module.parameters(), *module.buffers()]
    originals = [tensor.data for tensor in tensors]
    try:
        with torch.inference_mode(False):                # copies of the same kind as the originals
            for tensor in tensors:
                tensor.data = tensor.data.to(device, copy=True)
        yield
    finally:
        for tensor, original in zip(tensors, originals):
            tensor.data = original


@contextmanager
def streaming(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, each of the modules has its weights on `device` while it computes, and at no other time."""
    visits: dict[nn.Module, ExitStack] = {}

    def arrive(module, args):
        visits[module] = ExitStack()
        visits[module].enter_context(visiting(module, device))

    def leave(module, args, output):
        visits.pop(module).close()

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(arrive).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def stops(unet: nn.Module) -> list[nn.Module]:
    """What a UNet calls one after the other, its weights cut into the pieces that `streaming` can bring.

    The keys and values of the text are a piece of their own besides, because `UNet.prepare` asks for them alone.
    """
    levels = [*unet.down, *unet.up]
    blocks = [*(block for level in levels for block in level.blocks), *unet.mid]
    texts = [block.spatial_transformer.block.attn2 for block in blocks if block.attention]
    return [unet.time_embedding, unet.conv_in, unet.transformer_in, *blocks,
            *(level.resample for level in levels if level.resample is not None), unet.norm_out, unet.conv_out,
            *(layer for attention in texts for layer in (attention.to_k, attention.to_v))]
