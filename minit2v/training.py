"""Training: one loop for everything that learns here.

An objective says what a step is: it draws a batch and judges the model. The loop does the rest: learning rate,
gradient clipping, a moving average of the weights, a log, and checkpoints that survive a kill at any moment.

A step is the mean over `Plan.accumulate` micro-batches. Everything random in micro-batch m of step n is drawn from
generators seeded by (seed, n, m). So a run that was killed and resumed from its last checkpoint makes the same steps
as one that was not, and loses only the steps since that checkpoint. And several processes make the same steps as one,
by sharing out the micro-batches of each (see distributed.py).
"""

import copy
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import distributed
from .files import sweep, write_whole
from .muon import Muon, split
from .sharding import Pieces


@dataclass(frozen=True)
class Plan:
    """How long and how fast one stage learns."""

    steps: int
    batch: int                            # samples in a micro-batch; the objective draws them
    lr: float
    warmup: int = 100                     # steps until the learning rate has risen to `lr`
    final_lr: float = 0.02                # where the cosine ends, in units of `lr`
    weight_decay: float = 0.0
    ema: float = 0.999                    # how much of the average is kept at each step
    clip_grad: float = 1.0
    save_every: int = 500
    log_every: int = 20
    accumulate: int = 1                   # micro-batches in a step, whose gradients are averaged

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `final_lr` (Loshchilov & Hutter 2017)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Ema:
    """A moving average of the weights: smoother than the weights themselves, and what we sample from."""

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, parameters: dict[str, Tensor], step: int) -> None:
        """average <- decay * average + (1 - decay) * parameters; in the first steps the decay is smaller."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [parameters[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)


def generators(seed: int, step: int, micro: int = 0) -> tuple[torch.Generator, random.Random]:
    """The two sources of chance of one micro-batch: noise for tensors, choices for everything else.

    torch keeps 32 bits of a seed. The factor, 2^32 over the golden ratio, lays the micro-batches of a step so far
    apart that no step of theirs is another's within two million steps and 900 micro-batches.
    """
    number = seed * 10_000_019 + step + micro * 0x9E3779B1
    return torch.Generator().manual_seed(number), random.Random(f"{seed}, {step}" + (f", {micro}" if micro else ""))


def fit(model: nn.Module, objective: Callable, plan: Plan, folder: str | Path, seed: int = 0,
        learns: Callable[[str], bool] = lambda name: True, autocast: torch.dtype | None = None,
        on_save: Callable[[dict[str, Tensor], int], dict | None] | None = None,
        progress: bool = True, shard: bool = False, compiled: bool = False) -> dict[str, Tensor]:
    """Trains `model` for `plan.steps` steps and returns the averaged weights, {name: tensor}.

    objective(model, generator, rng) -> (loss, {name: number}): draws a micro-batch and its noise, and judges the
    model. It is called `plan.accumulate` times a step; chance of its own would undo what is said above, so it draws
    from the two generators only. (Dropout draws from torch's global generator, which is seeded for it here.)
    folder: gets checkpoint.pt, log.jsonl and loss.png. If there is a checkpoint in it, the run goes on from there.
    learns: which parameters are trained, by name. autocast: torch.bfloat16 for mixed precision, None for none.
    on_save: called with the averaged weights and the step at each save; what it returns is logged.
    Where there are several processes (distributed.processes), all call `fit` alike and get the same weights back;
    the first one alone writes, calls `on_save` and shows progress.
    shard: every process holds only a piece of each weight (see sharding.py). It is for the UNet; AdamW does all; the
    checkpoints are folders. A copy of `model` is trained, and what is returned is whole, on the processor.
    compiled: the objective is given torch.compile's version of the model: a minute or two to begin with (it needs a
    C++ compiler), then faster steps. Each shape of a batch is compiled by itself.
    Raises FloatingPointError when the loss is not a number; the last checkpoint stays. Raises ValueError if the
    micro-batches of a step cannot be shared out evenly among the processes.
    """
    folder, first_here, mine = Path(folder), distributed.first(), distributed.share_out(plan.accumulate)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    model = copy.deepcopy(model) if shard else model
    for name, p in model.named_parameters():
        p.requires_grad_(learns(name))
    distributed.same_start([*model.parameters(), *model.buffers()])
    pieces = Pieces(model, learns, autocast) if shard else None
    parameters = pieces.parameters if shard else {name: p for name, p in model.named_parameters() if learns(name)}
    ema = Ema(parameters, plan.ema)
    optimizers = _optimizers(model, list(parameters.values()), plan, autocast or torch.float32, whole=not shard)
    begin, spent, recent = _resume(folder, parameters, ema, optimizers, pieces)
    started = time.monotonic() - spent
    bar = tqdm(range(begin, plan.steps), desc=folder.name, initial=begin, total=plan.steps,
               disable=not (progress and first_here))
    model.train()
    network = torch.compile(model, dynamic=False) if compiled else model
    for step in bar:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = plan.learning_rate(step)
            optimizer.zero_grad(set_to_none=True)
        losses, parts = [], []
        for micro in mine:
            generator, rng = generators(seed, step, micro)
            with torch.autocast(device.type, autocast, enabled=autocast is not None), _seeded(generator):
                loss, found = objective(network, generator, rng)
            (loss / len(mine)).backward()
            losses.append(loss.detach())
            parts.append(found)
        loss = distributed.mean(torch.stack(losses).mean())
        _check_finite(loss, "loss", step, folder, plan)
        if shard:
            norm = pieces.clip_gradients(plan.clip_grad)
        else:
            distributed.average_gradients(list(parameters.values()))
            norm = nn.utils.clip_grad_norm_(parameters.values(), plan.clip_grad)
        _check_finite(norm, "gradient's norm", step, folder, plan)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(parameters, step)
        recent.append(loss.item())
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            line = {"step": done, "loss": sum(recent) / len(recent), "grad_norm": norm.item(),
                    "lr": plan.learning_rate(step), "seconds": round(time.monotonic() - started, 1), **_means(parts)}
            recent = []
            _write_log(folder, line)
            bar.set_postfix(loss=f"{line['loss']:.4f}")
        if done % plan.save_every == 0 or done == plan.steps:
            average = pieces.whole(ema.average) if shard and on_save else ema.average
            found = on_save(average, done) if on_save and first_here else None    # before saving: a kill repeats it
            if found:
                _write_log(folder, {"step": done, **found})
            _save(folder, parameters, ema, optimizers, done, time.monotonic() - started, recent, pieces)
            if first_here:
                plot_log(folder)
    return pieces.whole(ema.average) if shard else ema.average


@contextmanager
def _seeded(generator: torch.Generator):
    """Inside, torch's global generators are seeded by this one's seed and another; the processor's is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed() ^ 0x5BD1E995)
        yield


def _means(parts: list[dict]) -> dict[str, float]:
    """What the objective measured, averaged over the micro-batches of all processes that measured it."""
    found = [each for some in distributed.everyones([{k: float(v) for k, v in p.items()} for p in parts])
             for each in some]
    values = {name: [each[name] for each in found if name in each] for each in found for name in each}
    return {name: sum(some) / len(some) for name, some in values.items()}


def _write_log(folder: Path, line: dict) -> None:
    if distributed.first():
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _optimizers(model: nn.Module, parameters: list[Tensor], plan: Plan, dtype: torch.dtype, whole: bool) -> list:
    """Muon for the matrices, if they are whole, and AdamW for the rest; neither, if it would have nothing to do."""
    matrices, rest = split(model, parameters) if whole else ([], parameters)
    found = []
    if matrices:
        found.append(Muon(matrices, plan.lr, plan.weight_decay, dtype=dtype))
    if rest:
        found.append(torch.optim.AdamW(rest, plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True))
    return found


def _check_finite(value: Tensor, what: str, step: int, folder: Path, plan: Plan) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {what} is {value.item()} at step {step}; the last checkpoint in {folder} is "
                                 f"whole. Resume with a smaller learning rate than {plan.lr}.")


def _save(folder: Path, parameters: dict, ema: Ema, optimizers: list, step: int, seconds: float, recent: list,
          pieces: Pieces | None) -> None:
    """Writes the checkpoint, whole or not at all. A full disk is told in one message."""
    run = {"step": step, "seconds": seconds, "recent": recent}       # recent: losses that no line of the log has yet
    try:
        if pieces:
            pieces.save(folder, ema.average, optimizers[0], run)
        elif distributed.first():
            state = {"parameters": {k: p.detach() for k, p in parameters.items()}, "average": ema.average,
                     "optimizers": [o.state_dict() for o in optimizers], **run}
            with write_whole(folder / "checkpoint.pt") as part:
                torch.save(state, part)
    except (OSError, RuntimeError) as error:                         # torch's own writer raises RuntimeError
        free = shutil.disk_usage(folder).free
        raise OSError(f"the checkpoint of step {step} could not be written into {folder}, where {free / 1e9:.2f} GB "
                      f"are free ({error}). What was there before is whole. Make room and run the same again; it goes "
                      "on from there.") from error


def _resume(folder: Path, parameters: dict, ema: Ema, optimizers: list,
            pieces: Pieces | None) -> tuple[int, float, list[float]]:
    """Loads the checkpoint of `folder`, if any, and cuts the log back to it.

    Returns its step, the seconds spent, and the losses since the last line of the log.
    """
    path = folder / "checkpoint.pt"
    if distributed.first():
        for name in ("checkpoint.pt", "log.jsonl", "loss.png"):
            sweep(folder / name)
    check_way(folder, shard=pieces is not None)
    if pieces:
        state = pieces.resume(folder, ema.average, optimizers[0])
    else:
        state = _load(path, parameters, ema, optimizers) if path.exists() else None
    state = state or {"step": 0, "seconds": 0.0}
    _cut_log(folder, state["step"])
    return state["step"], state["seconds"], state.get("recent", [])


def check_way(folder: Path, shard: bool) -> None:
    """Raises ValueError if `folder` holds a checkpoint of the other way to train, with shards or without."""
    if (folder / "checkpoint.pt").exists() if shard else any(folder.glob("checkpoint-*")):
        way = "without" if shard else "with"
        raise ValueError(f"{folder} holds the checkpoint of a run {way} shards. Go on {way} them, or choose another "
                         "folder: with shards all learns by AdamW, without them matrices learn by Muon, and neither "
                         "can go on from what the other remembers.")


def _load(path: Path, parameters: dict, ema: Ema, optimizers: list) -> dict:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if set(state["parameters"]) != set(parameters):
        raise ValueError(f"{path} was written by another model or stage: it holds {len(state['parameters'])} tensors, "
                         f"{len(parameters)} are trained here. Choose another folder, or remove this one.")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["parameters"][name])
    for name, average in ema.average.items():
        average.copy_(state["average"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state


def _cut_log(folder: Path, step: int) -> None:
    """Takes what came after `step` out of the log."""
    if distributed.first():
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        with write_whole(folder / "log.jsonl") as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_log(folder: str | Path) -> list[dict]:
    """The log of a run as a list of dicts. A last line that was cut by a kill is left out."""
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plot_log(folder: str | Path) -> None:
    """Draws the loss over the steps into loss.png."""
    from matplotlib.figure import Figure

    lines = [line for line in read_log(folder) if "loss" in line]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=Path(folder).name)
    with write_whole(Path(folder) / "loss.png") as part:
        figure.savefig(part, format="png", dpi=100)
