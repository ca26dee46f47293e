"""Models that do not fit on one card: every process holds a piece of each weight (FSDP2).

Weights, gradients, optimizer and average are cut along their first axis into as many pieces as there are processes
(torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, "ZeRO" stage 3). A
block's weights are put together just before it computes, forward and backward, and let go after; its gradients are
averaged and cut again at once. So a card holds one block, and its share of everything else.

Checkpoints are written by all processes, each its own pieces, through torch.distributed.checkpoint, which puts the
pieces together anew for any other number of processes. They are safetensors: nothing in them is unpickled. They stand
in folders `checkpoint-STEP`, which get their names when all of it is written, and before the one before them goes.

Muon levels whole matrices, and no process has one. Sharded runs therefore learn by AdamW alone.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import distributed
from .unet import Block

START = "torchrun --standalone --nproc-per-node N -m minit2v ..."


class Pieces:
    """A UNet whose weights are shared out. `Pieces(model, learns, autocast)` cuts the model, in place.

    learns: which parameters are trained, by name. autocast: the number type that weights travel in and are multiplied
    in, None for their own; the pieces themselves and the sums of gradients keep theirs.
    .parameters: this process's pieces of what is trained, {name: plain tensor}, in the memory that the model computes
    with. All that optimizer and average do goes number by number, so they work on the pieces and know of nothing.
    Raises ValueError without processes to share among, or for a model without a UNet's blocks.
    """

    def __init__(self, model: nn.Module, learns: Callable[[str], bool] = lambda name: True,
                 autocast: torch.dtype | None = None):
        check_started()
        if not any(isinstance(module, Block) for module in model.modules()):
            raise ValueError(f"{type(model).__name__} has no blocks of a UNet; only the UNet is cut into pieces. The "
                             "other networks fit on any card: train them without shards.")
        self.used: set[str] = set()                      # names of parameters; every forward pass adds its own
        for name, module in model.named_modules():
            own = [f"{name}.{p}".lstrip(".") for p, _ in module.named_parameters(recurse=False)]
            if own:
                module.register_forward_pre_hook(lambda module, args, own=own: self.used.update(own))
        _cut(model, autocast)
        self.cut = {name: p for name, p in model.named_parameters() if learns(name)}
        self.parameters = {name: nn.Parameter(p.detach().to_local()) for name, p in self.cut.items()}

    def clip_gradients(self, most: float) -> Tensor:
        """Moves the gradients from the model to the pieces, scales them to a norm of at most `most`; returns the norm.

        A parameter that no process used in this step gets None, as without shards, where the model has zeros.
        """
        device = next(iter(self.parameters.values())).device
        flags = torch.tensor([name in self.used for name in self.parameters], dtype=torch.int32, device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.used.clear()
        squares = torch.zeros((), device=device, dtype=torch.float64)
        for (name, piece), flag in zip(self.parameters.items(), flags.tolist()):
            gradient, self.cut[name].grad = self.cut[name].grad, None
            piece.grad = gradient.to_local() if flag and gradient is not None else None
            if piece.grad is not None:
                squares += piece.grad.double().square().sum()
        dist.all_reduce(squares)
        norm = squares.sqrt().to(piece.dtype)
        nn.utils.clip_grads_with_norm_(self.parameters.values(), most, norm)
        return norm

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pieces put together, on the processor of every process. All processes have to call it."""
        return {name: self._joined(name, piece).full_tensor().cpu() for name, piece in tensors.items()}

    def _joined(self, name: str, piece: Tensor):
        """A piece as torch's DTensor, which knows of the others; same memory."""
        from torch.distributed.tensor import DTensor

        like = self.cut[name]
        return DTensor.from_local(piece.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape,
                                  stride=like.stride())

    def save(self, folder: Path, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, run: dict) -> None:
        """Writes folder/checkpoint-STEP, and removes earlier ones. run: what else to keep, as JSON; has "step".

        All processes have to call it. Raises OSError on each if one cannot write; the last checkpoint stays.
        """
        import torch.distributed.checkpoint as dcp

        path = folder / f"checkpoint-{run['step']}"
        part = path.with_name(f".{path.name}.part")
        tensors, updates = self._state(average, optimizer)
        try:
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(part), save_distributed=True))
        except dcp.api.CheckpointException as error:
            reasons = "; ".join(f"process {number}: {reason[0]}" for number, reason in error.failures.items())
            raise OSError(f"{path}: {reasons}") from error
        problem = None
        if distributed.first():
            try:
                (part / "run.json").write_text(json.dumps({**run, "updates": updates}), encoding="utf-8")
                part.rename(path)
                for old in _checkpoints(folder):
                    if old != path:
                        shutil.rmtree(old)
            except OSError as error:
                problem = str(error)
        problem = distributed.everyones(problem)[0]
        if problem:
            raise OSError(problem)

    def resume(self, folder: Path, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict | None:
        """Loads the newest checkpoint of `folder` in place and returns its `run`; None if there is none.

        It may have been written by another number of processes. Raises ValueError if it is of another model or stage,
        or if not all processes see the same one.
        """
        import torch.distributed.checkpoint as dcp

        if distributed.first():
            for left in folder.glob(".checkpoint-*.part"):             # what a kill during saving has left behind
                shutil.rmtree(left)
        found = distributed.everyones([str(path) for path in _checkpoints(folder)[-1:]])
        if any(each != found[0] for each in found):
            raise ValueError(f"the processes see different checkpoints in {folder}: {found}. It must be one folder "
                             "that all of them can read and write.")
        if not found[0]:
            return None
        path = Path(found[0][0])
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if set(run["updates"]) != set(self.parameters):
            raise ValueError(f"{path} was written by another model or stage: it holds {len(run['updates'])} tensors, "
                             f"{len(self.parameters)} are trained here. Choose another folder, or remove this one.")
        dcp.load(self._state(average, optimizer)[0], storage_reader=dcp.HuggingFaceStorageReader(str(path)))
        for name, piece in self.parameters.items():
            optimizer.state[piece]["step"].fill_(run["updates"][name])
        return run

    def _state(self, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[dict, dict[str, int]]:
        """All tensors of a checkpoint by name, and how often AdamW has moved each parameter (it starts with 0)."""
        tensors, updates = {}, {}
        for name, piece in self.parameters.items():
            state = optimizer.state[piece]
            if not state:                                # as AdamW makes it at a parameter's first gradient
                state |= {"step": torch.zeros((), device=piece.device), "exp_avg": torch.zeros_like(piece.detach()),
                          "exp_avg_sq": torch.zeros_like(piece.detach())}
            for kind, tensor in (("parameters", piece), ("average", average[name]), ("exp_avg", state["exp_avg"]),
                                 ("exp_avg_sq", state["exp_avg_sq"])):
                tensors[f"{kind}.{name}"] = self._joined(name, tensor)
            updates[name] = int(state["step"])
        return tensors, updates


def check_started() -> None:
    """Raises ValueError where weights cannot be shared out: without processes to share them, or with an old torch."""
    from torch.distributed.fsdp import FSDPModule

    if not dist.is_initialized():
        raise ValueError("with shards the weights are cut into pieces, one for each of several processes, and torchrun "
                         f"did not start this one. Start it by {START}, or leave the shards out")
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(f"this is torch {torch.__version__}, whose FSDP2 waits for ever when one process draws images "
                         "and another one clips. Install a newer one: pip install -U torch")


def units(model: nn.Module) -> list[list[nn.Module]]:
    """What of a UNet is put together at a time: the text's keys and values of all blocks; each block; all the rest."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    texts = [block.spatial_transformer.block.attn2 for block in blocks if block.attention]
    return [[layer for attention in texts for layer in (attention.to_k, attention.to_v)],
            *([block] for block in blocks), [model]]


def _cut(model: nn.Module, autocast: torch.dtype | None) -> None:
    """Tells FSDP2 so, and what to do where processes use different parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {"mesh": init_device_mesh(next(model.parameters()).device.type, (distributed.world(),)),
               "mp_policy": MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=autocast and torch.float32,
                                                 cast_forward_inputs=False)}
    for unit in units(model):
        fully_shard(unit if len(unit) > 1 else unit[0], **options)
    # Blocks return views; torch warns of changing those in place, which nothing here does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    model.set_reduce_scatter_unused_params(True)         # all processes exchange all gradients, zeros among them


def _checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
