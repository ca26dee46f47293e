"""Training: one loop for everything that learns here.

An objective says what a step is: it draws a batch and judges the model. The loop does the rest: learning rate,
gradient clipping, a moving average of the weights, a log, and checkpoints that survive a kill at any moment.

Everything random in step n is drawn from generators seeded by (seed, n). So a run that was killed and resumed
from its last checkpoint makes the same steps as one that was not, and loses only the steps since that checkpoint.
"""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .files import write_whole
from .muon import Muon, split


@dataclass(frozen=True)
class Plan:
    """How long and how fast one stage learns."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100                     # steps until the learning rate has risen to `lr`
    final_lr: float = 0.02                # where the cosine ends, in units of `lr`
    weight_decay: float = 0.0
    ema: float = 0.999                    # how much of the average is kept at each step
    clip_grad: float = 1.0
    save_every: int = 500
    log_every: int = 20

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


def generators(seed: int, step: int) -> tuple[torch.Generator, random.Random]:
    """The two sources of chance of one step: noise for tensors, choices for everything else."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step), random.Random(f"{seed}, {step}")


def fit(model: nn.Module, objective: Callable, plan: Plan, folder: str | Path, seed: int = 0,
        learns: Callable[[str], bool] = lambda name: True, autocast: torch.dtype | None = None,
        on_save: Callable[[dict[str, Tensor], int], dict | None] | None = None,
        progress: bool = True) -> dict[str, Tensor]:
    """Trains `model` for `plan.steps` steps and returns the averaged weights, {name: tensor}.

    objective(model, generator, rng) -> (loss, {name: number}): draws a batch and its noise, and judges the model.
    folder: gets checkpoint.pt, log.jsonl and loss.png. If there is a checkpoint in it, the run goes on from there.
    learns: which parameters are trained, by name. autocast: torch.bfloat16 for mixed precision, None for none.
    on_save: called with the averaged weights and the step at each save; what it returns is logged.
    Raises FloatingPointError when the loss is not a number; the last checkpoint stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    parameters = {name: p for name, p in model.named_parameters() if learns(name)}
    for name, p in model.named_parameters():
        p.requires_grad_(name in parameters)
    ema = Ema(parameters, plan.ema)
    optimizers = _optimizers(model, list(parameters.values()), plan, autocast or torch.float32)
    first, spent, recent = _resume(folder, parameters, ema, optimizers)
    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    started = time.monotonic() - spent
    bar = tqdm(range(first, plan.steps), desc=folder.name, initial=first, total=plan.steps, disable=not progress)
    model.train()
    for step in bar:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = plan.learning_rate(step)
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss, parts = objective(model, *generators(seed, step))
        _check_finite(loss, "loss", step, folder, plan)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), plan.clip_grad)
        _check_finite(norm, "gradient's norm", step, folder, plan)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(parameters, step)
        recent.append(loss.item())
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            line = {"step": done, "loss": sum(recent) / len(recent), "grad_norm": norm.item(),
                    "lr": plan.learning_rate(step), "seconds": round(time.monotonic() - started, 1),
                    **{k: float(v) for k, v in parts.items()}}
            recent = []
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{line['loss']:.4f}")
        if done % plan.save_every == 0 or done == plan.steps:
            found = on_save(ema.average, done) if on_save else None     # before the checkpoint: a kill repeats it
            if found:
                log.write(json.dumps({"step": done, **found}) + "\n")
                log.flush()
            _save(folder, parameters, ema, optimizers, done, time.monotonic() - started, recent)
            plot_log(folder)
    log.close()
    return ema.average


def _optimizers(model: nn.Module, parameters: list[Tensor], plan: Plan, dtype: torch.dtype) -> list:
    """Muon for the matrices and AdamW for the rest; either is left out if it would have nothing to do."""
    matrices, rest = split(model, parameters)
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


def _save(folder: Path, parameters: dict, ema: Ema, optimizers: list, step: int, seconds: float, recent: list) -> None:
    state = {"parameters": {k: p.detach() for k, p in parameters.items()}, "average": ema.average,
             "optimizers": [o.state_dict() for o in optimizers], "step": step, "seconds": seconds,
             "recent": recent}                             # losses that no line of the log has counted yet
    with write_whole(folder / "checkpoint.pt") as part:
        torch.save(state, part)


def _resume(folder: Path, parameters: dict, ema: Ema, optimizers: list) -> tuple[int, float, list[float]]:
    """Loads the checkpoint of `folder`, if any, and cuts the log back to it.

    Returns its step, the seconds spent, and the losses since the last line of the log.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        (folder / "log.jsonl").write_text("", encoding="utf-8")
        return 0, 0.0, []
    state = torch.load(path, weights_only=True)
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
    kept = [line for line in read_log(folder) if line["step"] <= state["step"]]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return state["step"], state["seconds"], state.get("recent", [])


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
