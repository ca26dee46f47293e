"""Training: a run that was killed and resumed is the run that was not; and all four stages in miniature."""

import copy
import errno
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import minit2v
from minit2v import cli_train, data, recipe
from minit2v.autoencoder import Autoencoder
from minit2v.config import AutoencoderConfig, ModelConfig, TextConfig, UNetConfig
from minit2v.muon import Muon
from minit2v.training import Ema, Plan, fit, generators, read_log
from minit2v.unet import UNet
from minit2v.world import Scene, Thing, render

PLAN = Plan(steps=24, batch=16, lr=0.02, warmup=4, weight_decay=0.1, ema=0.9, clip_grad=1.2, save_every=4, log_every=2)


class Net(nn.Module):
    """Two layers, always with the same first weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 20), nn.Linear(20, 16)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def objective(model, generator, rng):
    """Learn to roll a vector by one place; uses both sources of chance."""
    x = torch.randn(16, 16, generator=generator).to(model.last.bias.dtype)
    error = (model(x) - x.roll(1, dims=1)).square().mean()
    return error * (1 + rng.random()), {"error": error.detach()}


def train_net(folder, plan=PLAN, **options):
    return fit(Net(), objective, plan, folder, progress=False, **options)


def stop_after(steps: int):
    """An objective that dies at its next call after `steps` calls, as a run does that is interrupted."""
    calls = []

    def dying(model, generator, rng):
        if len(calls) == steps:
            raise KeyboardInterrupt
        calls.append(None)
        return objective(model, generator, rng)

    return dying


def checkpoint(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def without_seconds(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log]


def assert_same_run(folder, other):
    """Weights, averages and optimizer identical, one log line a step, losses equal to 1e-6."""
    one, two = checkpoint(folder), checkpoint(other)
    for part in ("parameters", "average"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part]), part
    assert len(one["optimizers"]) == len(two["optimizers"]) == 2                # Muon and AdamW
    for first, second in zip(one["optimizers"], two["optimizers"]):
        for i, state in first["state"].items():
            assert all(torch.equal(value, second["state"][i][name]) for name, value in state.items())
    first, second = read_log(folder), read_log(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    assert all(math.isclose(a["loss"], b["loss"], rel_tol=0, abs_tol=1e-6) for a, b in zip(first, second))
    assert without_seconds(first) == without_seconds(second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 24 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_net(folder)
    return folder


# --- the pieces ---

def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    """Against torch's own scheduler, which anneals from lr to eta_min in T_max steps."""
    plan = Plan(steps=110, batch=1, lr=0.5, warmup=10, final_lr=0.1)
    rates = [plan.learning_rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
    for rate in rates[10:]:
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert plan.learning_rate(110) == pytest.approx(0.05) == plan.learning_rate(500)


def test_the_average_is_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    values = [{"a": torch.randn(3, generator=generator).double(), "b": torch.randn(2, 2, generator=generator).double()}
              for _ in range(60)]
    ema = Ema(values[0], decay=0.8)
    expected = {name: v.clone() for name, v in values[0].items()}
    for step, current in enumerate(values):
        ema.update(current, step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * current[name]
            assert torch.allclose(ema.average[name], expected[name], rtol=1e-12, atol=1e-14)
    start = torch.randn(3, generator=generator)
    ema = Ema({"a": start}, 0.8)
    ema.update({"a": start + 1}, 0)
    assert not torch.equal(ema.average["a"], start) and ema.average["a"] is not start        # a copy, not a view


def test_chance_follows_from_seed_and_step():
    def draw(seed, step):
        generator, rng = generators(seed, step)
        return torch.randn(4, generator=generator).tolist(), rng.random()

    assert draw(0, 5) == draw(0, 5)
    drawn = [draw(seed, step) for seed in range(3) for step in range(50)]
    assert len({tuple(noise) for noise, _ in drawn}) == len({choice for _, choice in drawn}) == 150


def test_micro_batches_draw_apart_from_one_another_and_from_other_steps():
    """The first draws what a step without micro-batches draws; no other draws what any step does."""
    noise = {torch.randn(4, generator=generators(3, step, micro)[0]).numpy().tobytes()
             for micro in range(40) for step in range(100)}
    choices = {generators(3, step, micro)[1].random() for micro in range(40) for step in range(100)}
    assert len(noise) == len(choices) == 4000
    kept = [micro * 0x9E3779B1 % 2 ** 32 for micro in range(900)]                 # of a seed, torch keeps 32 bits
    assert min(b - a for a, b in zip(sorted(kept), sorted(kept)[1:])) > 1_500_000
    generator, rng = generators(3, 7, 0)
    assert generator.initial_seed() == 3 * 10_000_019 + 7 and rng.random() == random.Random("3, 7").random()


def test_a_step_is_the_mean_over_its_micro_batches(tmp_path):
    """Of losses, gradients and measurements; here the micro-batches are made one, by hand."""
    plan = replace(PLAN, steps=6, log_every=1)

    def by_hand(model, generator, rng):
        step = generator.initial_seed()                                           # seed 0: the step itself
        found = [objective(model, *generators(0, step, micro)) for micro in range(3)]
        return sum(loss for loss, _ in found) / 3, {"error": sum(parts["error"] for _, parts in found) / 3}

    one = fit(Net().double(), objective, replace(plan, accumulate=3), tmp_path / "one", progress=False)
    two = fit(Net().double(), by_hand, plan, tmp_path / "two", progress=False)
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-12) for name in one)
    for a, b in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert all(a[key] == pytest.approx(b[key], rel=1e-9) for key in ("loss", "error", "grad_norm", "lr"))
    plain = fit(Net().double(), objective, plan, tmp_path / "plain", progress=False)
    assert not any(torch.allclose(one[name], plain[name], rtol=0, atol=1e-4) for name in one)


def test_dropout_follows_from_the_seed_and_leaves_the_global_generator_alone(tmp_path):
    def train(folder, steps, seed):
        net = Net()
        net.first = nn.Sequential(net.first, nn.Dropout(0.5))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        try:
            return fit(net, stop_after(steps), PLAN, tmp_path / folder, progress=False)
        finally:
            assert torch.equal(torch.get_rng_state(), before)

    whole = train("whole", 99, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train("run", 11, seed=2)
    resumed = train("run", 99, seed=3)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_run_is_the_loop_written_out(tmp_path):
    """Muon and AdamW, clipped gradients, learning rates and averages step by step in float64."""
    average = fit(Net().double(), objective, PLAN, tmp_path, seed=3, progress=False)
    net = Net().double()
    muon = Muon([net.first.weight, net.last.weight], lr=1.0, weight_decay=0.1)
    adamw = torch.optim.AdamW([net.first.bias, net.last.bias], lr=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    losses, norms = [], []
    for step in range(24):
        loss, _ = objective(net, *generators(3, step))
        net.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        for p in net.parameters():
            p.grad *= min(1.0, 1.2 / norm)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = PLAN.learning_rate(step)
            optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach() for name, p in net.named_parameters()}
        losses.append(loss.item())
        norms.append(norm.item())
    assert min(norms) < 1.2 < max(norms)                                     # some were clipped, some were not
    for name, value in checkpoint(tmp_path)["parameters"].items():
        assert torch.allclose(value, net.get_parameter(name), rtol=0, atol=1e-6)     # clip_grad_norm_ adds 1e-6
        assert torch.allclose(average[name], expected[name], rtol=0, atol=1e-6)
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == list(range(2, 25, 2))
    means = [sum(losses[i:i + 2]) / 2 for i in range(0, 24, 2)]
    assert [line["loss"] for line in log] == pytest.approx(means, abs=1e-6)
    assert [line["grad_norm"] for line in log] == pytest.approx(norms[1::2], abs=1e-5)
    assert [line["lr"] for line in log] == pytest.approx([PLAN.learning_rate(step) for step in range(1, 24, 2)])
    assert losses[-1] < losses[0]


def test_frozen_parameters_do_not_move(tmp_path):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    average = fit(net, objective, PLAN, tmp_path, learns=lambda name: name.startswith("last"), progress=False)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"last.weight", "last.bias"} == set(average)
    assert net.first.weight.grad is None


def test_a_run_leaves_a_log_a_checkpoint_and_a_picture(whole):
    assert sorted(p.name for p in whole.iterdir()) == ["checkpoint.pt", "log.jsonl", "loss.png"]
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == read_log(whole) and {"step", "loss", "grad_norm", "lr", "seconds", "error"} == set(lines[0])
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoint(whole)["step"] == 24


def test_on_save_sees_the_averaged_weights(tmp_path):
    seen = []

    def on_save(average, step):
        seen.append((step, {name: value.clone() for name, value in average.items()}))
        return {"score": step / 2} if step > 10 else None

    final = train_net(tmp_path, on_save=on_save)
    assert [step for step, _ in seen] == [4, 8, 12, 16, 20, 24]
    assert all(torch.equal(final[name], value) for name, value in seen[-1][1].items())
    assert [(line["step"], line["score"]) for line in read_log(tmp_path) if "score" in line] == [
        (12, 6.0), (16, 8.0), (20, 10.0), (24, 12.0)]


# --- interrupted and resumed ---

@pytest.mark.parametrize("steps", (1, 4, 11, 23))
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, steps):
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), stop_after(steps), PLAN, tmp_path, progress=False)
    average = train_net(tmp_path)
    assert_same_run(tmp_path, whole)
    assert all(torch.equal(value, checkpoint(whole)["average"][name]) for name, value in average.items())


def test_it_may_be_saved_between_two_log_lines(tmp_path):
    plan = Plan(steps=12, batch=16, lr=0.02, warmup=4, save_every=3, log_every=4)
    train_net(tmp_path / "whole", plan)
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), stop_after(7), plan, tmp_path / "run", progress=False)
    train_net(tmp_path / "run", plan)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_is_the_run(tmp_path):
    given = set()

    def watched(model, generator, rng):
        given.add(type(model))
        return objective(model, generator, rng)

    average = fit(Net(), watched, PLAN, tmp_path, progress=False, compiled=True)
    assert given == {type(torch.compile(Net()))} and Net not in given
    assert set(average) == {name for name, _ in Net().named_parameters()}, "the names are the plain model's"
    for name, value in train_net(tmp_path / "plain").items():
        torch.testing.assert_close(average[name], value, rtol=0, atol=1e-5)
    assert read_log(tmp_path)[-1]["loss"] == pytest.approx(read_log(tmp_path / "plain")[-1]["loss"], abs=1e-5)


def test_compiling_without_a_compiler_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--compile needs a C\+\+ compiler.*leave --compile out"):
        cli_train.run_stages(SimpleNamespace(stage="all", out=tmp_path / "run", threads=None, shard=False,
                                             compile=True))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_run_again(whole):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    average = fit(Net(), stop_after(0), PLAN, whole, progress=False)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before
    assert all(torch.equal(value, checkpoint(whole)["average"][name]) for name, value in average.items())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_killed_at_any_moment_loses_nothing(whole, tmp_path):
    """Three processes die by SIGKILL, each somewhere in the run; a last one arrives where `whole` is."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_training; test_training.train_net(sys.argv[2])"
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    rng, run, log = random.Random(), tmp_path / "run", tmp_path / "run" / "log.jsonl"
    for first, last in ((1, 6), (8, 13), (15, 20)):
        moment, pause = rng.randint(first, last), rng.uniform(0, 0.1)
        child = subprocess.Popen([sys.executable, "-c", program, str(Path(__file__).parent), str(run)], env=environment)
        patience = time.monotonic() + 300
        while child.poll() is None and time.monotonic() < patience:
            if log.exists() and any(line["step"] >= moment for line in read_log(run)):
                break
            time.sleep(0.002)
        time.sleep(pause)
        child.kill()
        assert child.wait() in (-signal.SIGKILL, 0), "the child failed by itself"
        if (run / "checkpoint.pt").exists():
            assert checkpoint(run)["step"] % PLAN.save_every == 0
        assert log.exists(), f"nothing had happened before the kill at step {moment}"
    train_net(run)
    assert_same_run(run, whole)


def test_a_log_line_cut_in_half_is_left_out(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), stop_after(11), PLAN, tmp_path, progress=False)
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 12, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6, 8, 10]
    train_net(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_full_disk_leaves_the_old_checkpoint_whole(whole, tmp_path, monkeypatch):
    real, saved = torch.save, []

    def fills_up(state, path):
        if saved:
            Path(path).write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, path)
        saved.append(Path(path))

    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(OSError, match="No space left"):
        train_net(tmp_path)
    assert saved and checkpoint(tmp_path)["step"] == 4
    monkeypatch.undo()
    train_net(tmp_path)
    assert_same_run(tmp_path, whole)


def test_on_save_is_not_lost_by_a_kill(tmp_path):
    def dies(average, step):
        if step == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_net(tmp_path, on_save=dies)
    seen = []
    train_net(tmp_path, on_save=lambda average, step: seen.append(step))
    assert seen[-1:] == [24]


# --- what goes wrong ---

def test_a_loss_that_is_no_number_stops_the_run(whole, tmp_path):
    calls = []

    def explodes(model, generator, rng):
        loss, parts = objective(model, generator, rng)
        calls.append(None)
        return loss * (float("nan") if len(calls) == 8 else 1.0), parts      # the eighth step is step 7

    with pytest.raises(FloatingPointError, match="nan at step 7") as error:
        fit(Net(), explodes, PLAN, tmp_path, progress=False)
    assert str(tmp_path) in str(error.value)
    state = checkpoint(tmp_path)
    assert state["step"] == 4 and all(p.isfinite().all() for p in state["parameters"].values())
    train_net(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    calls = []

    def explodes(model, generator, rng):
        loss, parts = objective(model, generator, rng)
        calls.append(None)
        root = (model.last.bias * (0.0 if len(calls) == 8 else 1.0)).square().sum().sqrt()       # sqrt'(0) is infinite
        return loss + 0.01 * root, parts

    with pytest.raises(FloatingPointError, match="step 7"):
        fit(Net(), explodes, PLAN, tmp_path, progress=False)
    assert all(p.isfinite().all() for p in checkpoint(tmp_path)["parameters"].values())


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    state = {"parameters": {}, "average": {}, "optimizers": [], "step": Evil(), "seconds": 0}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        train_net(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(Net(), objective, Plan(steps=1, batch=1, lr=0.1), tmp_path, learns=lambda name: "last" in name, progress=False)
    with pytest.raises(ValueError, match="holds 2 tensors, 4 are trained here"):
        train_net(tmp_path)


# --- the four stages, in miniature ---

TINY = ModelConfig(
    name="tiny",
    autoencoder=AutoencoderConfig(channels=4, multipliers=(1, 1, 2, 2), res_blocks=1, norm_groups=2,
                                  scaling_factor=1.0),
    text=TextConfig(width=16, heads=2, layers=2, context_length=40, vocab_size=600, merges="merges.txt.gz"),
    unet=UNetConfig(channels=8, multipliers=(1, 2), res_blocks=1, attention=(False, True), head_dim=8, input_heads=1,
                    context_dim=16, norm_groups=4, dropout=0.0),
    height=64, width=64)


def test_the_first_weights_follow_from_the_seed_alone():
    def fresh():
        model = UNet(TINY.unet)
        recipe._initialise(model, seed=3)
        return model.state_dict()

    one, other = fresh(), fresh()                       # the global generator has moved on in between
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_late_times_are_drawn_than_early_ones():
    """P(t > s T) = 1 - s^(1 / late), and every time from 1 to T occurs."""
    for options, share, expected in (({}, 0.5, 0.656), ({"late": 0.3}, 0.8, 0.525), ({"late": 1}, 0.3, 0.7)):
        times = recipe.draw_times(1000, 200_000, torch.Generator().manual_seed(0), **options)
        assert (times > 1000 * share).double().mean().item() == pytest.approx(expected, abs=0.005)
        assert times.max() == 1000 and times.dtype == torch.long
        assert times.min() == 1 or options.get("late") == 0.3               # 1 has a chance of 1 in 10^10 there
    assert recipe.draw_times(2, 50, torch.Generator().manual_seed(0)).unique().tolist() == [1, 2]


def test_directions_are_learnt_from_clips_of_one_object_that_goes_somewhere(monkeypatch):
    """Which run draws which clips how often, and at which times: what each hands to the run of a UNet."""
    runs = {}
    monkeypatch.setattr(recipe, "_clips", lambda *a, **options: None)
    monkeypatch.setattr(recipe, "_train_unet", lambda config, out, plan, run, *a, **options: runs.update(
        {run: {"steps": plan.steps, **options}}))
    recipe.train_video(TINY, Path("nowhere"), recipe.PLANS["video"])
    assert list(runs) == ["video/half", "video/one", "video/all", "video"]
    assert runs["video/all"]["steps"] == recipe.PLANS["video"].steps > runs["video"]["steps"]
    assert runs["video/half"]["every"] == 2 and {"every", "weight"}.isdisjoint(runs["video/all"] | runs["video"])
    assert runs["video/one"]["late"] < runs["video/all"]["late"] == runs["video"]["late"] < 0.65
    assert [run for run in runs if "terse" in runs[run]] == ["video"] and "late" not in runs["video/half"]
    weight = runs["video/one"]["weight"]
    goes, spins = Thing("red", "star", "up left"), Thing("blue", "square", "spin")
    assert [weight(Scene(things)) for things in ((goes,), (spins,), (goes, spins))] == [1, 0.2, 0]
    assert [recipe.hard_ones_more(Scene(things)) for things in ((goes,), (spins,), (goes, spins))] == [1, 3, 3]


def test_a_batch_of_rivals_stays_whole(tmp_path, monkeypatch):
    """Frames and clips of a step are shared out among micro-batches. But a caption is told from those of its batch."""
    plans = {}
    for stage in recipe.STAGES:
        monkeypatch.setattr(recipe, f"train_{stage}", lambda *a, stage=stage, **options: plans.update({stage: a[2]}))
    monkeypatch.setattr(recipe, "NEEDS", dict.fromkeys(recipe.STAGES, ()))
    cli_train.run_stages(SimpleNamespace(stage="all", out=tmp_path, steps=3, threads=None, dtype="float32",
                                         accumulate=4, shard=False, compile=False))
    assert {stage: plan.batch * 4 // recipe.PLANS[stage].batch for stage, plan in plans.items()} == {
        "autoencoder": 1, "text": 4, "image": 1, "video": 1}
    assert all(plan.accumulate == 4 and plan.steps == 3 for plan in plans.values())


def test_four_stages_make_a_model_that_generates(tmp_path, monkeypatch):
    small = Plan(steps=2, batch=2, lr=1e-3, warmup=1, save_every=2, log_every=1)
    monkeypatch.setattr(data, "SHARD", 4)
    monkeypatch.setattr(recipe, "SHARDS", {1: 1, 2: 1, 3: 1})
    monkeypatch.setattr(recipe, "score", partial(recipe.score, count=1))
    monkeypatch.setitem(recipe.PLANS, "autoencoder", small)
    options = {"out": tmp_path, "steps": 1, "threads": None, "dtype": "float32", "accumulate": 1, "shard": False,
               "compile": False}

    with pytest.raises(FileNotFoundError, match=r"--stage autoencoder"):
        cli_train.run_stages(SimpleNamespace(stage="image", **options))
    (tmp_path / "config.json").write_text(TINY.to_json(), encoding="utf-8")
    cli_train.run_stages(SimpleNamespace(stage="autoencoder", **options))
    assert read_log(tmp_path / "runs" / "autoencoder")[-1]["step"] == 1
    assert read_log(tmp_path / "runs" / "autoencoder" / "decoder")[-1]["step"] == 1
    config = ModelConfig.from_json((tmp_path / "config.json").read_text(encoding="utf-8"))
    autoencoder = Autoencoder(config.autoencoder)
    autoencoder.load_state_dict(load_file(tmp_path / "autoencoder.safetensors"))
    with torch.inference_mode():
        frames = data.to_model(render(data.scenes_of(1, 0, 200), num_frames=4, fps=2.0))
        assert autoencoder.encode(frames).std().item() == pytest.approx(1, abs=2e-3)        # they leave with unit size

    recipe.train_text(config, tmp_path, small, progress=False)
    recipe.train_image(config, tmp_path, small, progress=False)
    image = load_file(tmp_path / "unet.safetensors")
    zeros = [name for name, p in UNet(config.unet).state_dict().items() if not p.any() and "temporal" in name
             and name.endswith("weight")]
    assert zeros and not any(image[name].any() for name in zeros)              # the temporal parts did nothing
    assert image["conv_out.weight"].any()

    recipe.train_video(config, tmp_path, small, progress=False)
    assert {"colour", "motion"} < set(read_log(tmp_path / "runs" / "video" / "half")[-1])
    video = load_file(tmp_path / "unet.safetensors")
    assert all(video[name].any() for name in zeros)                            # and now they learn
    assert {"colour", "shape", "motion", "all"} < set(read_log(tmp_path / "runs" / "video")[-1])

    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    for stage, more, built in (("image", 3, "runs/video"), ("text", 3, "runs/image"), ("autoencoder", 2, "clips")):
        with pytest.raises(ValueError, match=f"stage '{stage}' would go on from step [12] to {more}.*{built}.*--out"):
            cli_train.run_stages(SimpleNamespace(**{**options, "stage": stage, "steps": more}))
    for stage in ("image", "text", "autoencoder"):                             # as far as they are: nothing to do
        cli_train.run_stages(SimpleNamespace(**{**options, "stage": stage}))
        if stage == "image":
            cli_train.run_stages(SimpleNamespace(**{**options, "stage": "video"}))
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}

    pipe = minit2v.load(tmp_path)
    clip = pipe("a red circle moves right", num_inference_steps=2, progress=False)
    assert clip.shape == (16, 64, 64, 3) and clip.dtype == torch.uint8
    assert pipe.config.autoencoder == config.autoencoder
    assert all(torch.equal(p, video[name]) for name, p in pipe.unet.state_dict().items())


def test_every_stage_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    """Killed once in the middle of each of its eight runs, the recipe makes what it makes in one go."""
    small = Plan(steps=3, batch=2, lr=1e-3, warmup=1, save_every=1, log_every=1)
    monkeypatch.setattr(data, "SHARD", 4)
    monkeypatch.setattr(recipe, "SHARDS", {1: 1, 2: 1, 3: 1})
    monkeypatch.setattr(recipe, "score", lambda *args, **options: {"all": 0.0})          # it is not what is tested here
    monkeypatch.setattr(recipe, "learn_vocabulary", partial(recipe.learn_vocabulary, captions=600))
    monkeypatch.setattr(recipe, "PLANS", {**dict.fromkeys(recipe.STAGES, small), "video": replace(small, steps=12)})
    died, real = [], recipe.fit

    def fit(model, objective, plan, folder, **options):
        calls = []

        def dies(*args):
            calls.append(folder)
            if len(calls) == 2 and "killed" in folder.parts and folder not in died:
                died.append(folder)
                raise KeyboardInterrupt
            return objective(*args)
        return real(model, dies, plan, folder, progress=False, **options)

    monkeypatch.setattr(recipe, "fit", fit)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(TINY.to_json(), encoding="utf-8")
        while True:
            try:
                cli_train.run_stages(SimpleNamespace(stage="all", out=tmp_path / name, steps=None, threads=None,
                                                     dtype="float32", accumulate=1, shard=False, compile=False))
                break
            except KeyboardInterrupt:
                pass
    runs = [folder.relative_to(tmp_path / "killed") for folder in died]
    assert [run.as_posix() for run in runs] == [f"runs/{name}" for name in (
        "autoencoder", "autoencoder/decoder", "text", "image", "video/half", "video/one", "video/all", "video")]
    for run in runs:
        whole, killed = ([(line["step"], line["loss"]) for line in read_log(tmp_path / name / run) if "loss" in line]
                         for name in ("whole", "killed"))
        assert [step for step, _ in whole] == [step for step, _ in killed]
        assert [loss for _, loss in whole] == pytest.approx([loss for _, loss in killed], abs=1e-6)
    for name in ("autoencoder", "text_encoder", "unet"):
        whole, killed = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "killed"))
        assert all((whole[key] - killed[key]).abs().max() <= 1e-6 for key in whole)

    logs = [tmp_path / f"whole/runs/video/{run}/log.jsonl" for run in ("half", "one", "all")]
    before = [log.read_bytes() for log in logs]                                          # longer: more of the last
    cli_train.run_stages(SimpleNamespace(stage="video", out=tmp_path / "whole", steps=16, threads=None,
                                         dtype="float32", accumulate=1, shard=False, compile=False))
    assert read_log(tmp_path / "whole/runs/video")[-1]["step"] == 12
    assert [log.read_bytes() for log in logs] == before
