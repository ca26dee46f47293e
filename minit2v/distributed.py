"""More than one process, each with a device of its own: they share out the micro-batches of a step.

A step of training is the mean over `Plan.accumulate` micro-batches, and what micro-batch m draws follows from
(seed, step, m) alone. So it does not matter who makes it: of W processes, process r takes r, r + W, r + 2 W, ...,
the gradients are averaged, and all processes make the same step, the one that a single process would have made.
Data parallelism is accumulation, shared out; a run may be resumed with another number of processes.

Processes are started by torchrun, which tells each its number in environment variables:

    torchrun --standalone --nproc-per-node 8 -m minit2v finetune ...

Process 0 is the *first*: it alone writes files, prints and draws progress bars. If a process dies, torchrun ends
the others; without torchrun they end, too, when the connection to it breaks.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .offload import present

PATIENCE = timedelta(minutes=30)         # for processes that are alive but busy, as the first one is while it saves
BUCKET = 2 ** 24                         # numbers that are sent together: 64 MB in float32
_waits = itertools.count()               # of `wait_for_first`, alike in all processes


@contextlib.contextmanager
def processes(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did, and gives this one's device: `with processes(d) as d:`

    device: "cpu", or a kind of card of which process r of a machine takes number r. Cards talk by torch's backend
    for them (nccl for those of NVIDIA), processors by gloo. The other processes than the first print nothing.
    Without torchrun nothing happens, and `device` comes back as it was. Raises ValueError for one that is not there.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield present(device)
        return
    shared = str(device) != "cpu" and ":" not in str(device)             # a kind: each process takes its own
    device = present(f"{device}:{os.environ.get('LOCAL_RANK', 0)}" if shared else device)
    if shared:
        torch.get_device_module(device).set_device(device)
    dist.init_process_group(dist.Backend.default_device_backend_map[device.type], timeout=PATIENCE)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if first() else nowhere):
        yield device                     # after an error nobody waits for the others: the process ends, and so do they
    wait_for_first()                     # it may have much to look at and to write when the others are done
    dist.barrier()
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 to world() - 1; 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return rank() == 0


def wait_for_first() -> None:
    """Returns when the first process has come here, too, however long that takes: PATIENCE is for all other waiting.

    It leaves word in the store, where the processes have met. If it dies instead, torchrun ends those who wait; without
    torchrun the store is a part of it, and they end for want of that.
    """
    if world() > 1:
        store, word = dist.distributed_c10d._get_default_store(), f"first came {next(_waits)}"
        if first():
            store.set(word, "")
        while not store.check([word]):
            time.sleep(0.1)


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """`with first_ahead():` the first process does what is inside alone; then the others do it, and find it done."""
    if not first():
        wait_for_first()
    yield
    if first():
        wait_for_first()


def share_out(accumulate: int) -> range:
    """The micro-batches of a step that fall to this process. Raises ValueError if they cannot be shared evenly."""
    if accumulate % world():
        fits = -(-accumulate // world()) * world()
        raise ValueError(f"a step has {accumulate} micro-batches, which {world()} processes cannot share evenly. Set "
                         f"accumulate to {fits}, or another multiple of {world()}; `batch` is what one micro-batch "
                         "holds, so divide it to keep a step's size.")
    return range(rank(), accumulate, world())


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the same on each."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


def everyones(thing) -> list:
    """What `thing` is in each process, in order: small, picklable things, such as measurements."""
    if world() == 1:
        return [thing]
    found = [None] * world()
    dist.all_gather_object(found, thing)
    return found


def same_start(tensors: list[Tensor]) -> None:
    """Gives every process the first one's numbers, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def average_gradients(parameters: list[Tensor]) -> None:
    """Replaces each gradient by its mean over all processes.

    A parameter that had no part in some processes' loss (a temporal layer, where they drew images) counts as zero
    there; one that had none anywhere keeps None, so that its optimizer leaves it alone, as in a single process.

    Why not torch's DistributedDataParallel, which does the same: it wraps the model, and an objective may call more
    of it than forward (`loss`, `prepare`). What it would gain, sending during the backward pass, is little where a
    process makes several micro-batches a step. The tests hold this against it.
    """
    if world() == 1:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    used = [p for p, flag in zip(parameters, used.tolist()) if flag]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    while used:
        count = size = 0
        while count < len(used) and (count == 0 or size + used[count].numel() <= BUCKET):
            size += used[count].numel()
            count += 1
        bucket = torch.cat([p.grad.flatten() for p in used[:count]])
        dist.all_reduce(bucket)
        bucket /= world()
        for p, part in zip(used[:count], bucket.split([p.numel() for p in used[:count]])):
            p.grad.copy_(part.view_as(p))
        used = used[count:]
