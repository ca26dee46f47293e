"""Several processes train as one does; and when one dies, all end and the last checkpoint is whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import crew
import pytest
import torch
from safetensors.torch import save_file
from test_finetune import folder_of_films
from test_pipeline import make_pipe
from test_training import TINY

from minit2v import distributed
from minit2v.autoencoder import Autoencoder
from minit2v.training import fit, read_log

pytestmark = pytest.mark.skipif(not crew.AVAILABLE, reason="needs torch.distributed with gloo")
OPTIMIZERS = {False: "muon", True: "adamw"}              # of runs without and with shards


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the plan: with Muon and AdamW, and with AdamW alone."""
    folder = tmp_path_factory.mktemp("alone")
    for shard, name in OPTIMIZERS.items():
        crew.together(crew.train_and_keep, 0, folder / "m" / name, folder / name, adamw=shard)
    return folder


def assert_same(folder, other, world: int):
    """Losses, norms and measurements of every step to 1e-8 in float64, and the weights that each process returned."""
    one, two = read_log(folder), read_log(other)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for a, b in zip(one, two):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "seconds"}, rel=1e-8)
        assert {"still", "moving"} & set(a)
    expected, _ = torch.load(other / "returned-0.pt")
    for rank in range(world):
        average, saves = torch.load(folder / f"returned-{rank}.pt")
        assert bool(saves) == (rank == 0) and average.keys() == expected.keys()
        assert all(torch.allclose(average[name], expected[name], rtol=0, atol=1e-7) for name in expected)
    assert not (folder / f"returned-{world}.pt").exists()


@pytest.mark.parametrize("shard", (False, True), ids=("whole", "sharded"))
def test_two_processes_make_the_steps_of_one(shard, alone, tmp_path):
    """Images in some processes and clips in others, dropout, weight decay, clipped gradients; each with its share."""
    crew.together(crew.train_and_keep, 2, tmp_path / "m", tmp_path / "run", shard=shard)
    assert_same(tmp_path / "run", alone / OPTIMIZERS[shard], 2)
    names = {path.name for path in (tmp_path / "run").iterdir()} - {"returned-0.pt", "returned-1.pt"}
    assert names == {"checkpoint-4" if shard else "checkpoint.pt", "log.jsonl", "loss.png"}


@pytest.mark.parametrize("shard, world, then", ((False, 2, 0), (False, 0, 2), (True, 2, 3)))
def test_another_number_of_processes_goes_on(shard, world, then, alone, tmp_path):
    """Two processes, or one, die in step 4; one, two or three go on from step 2."""
    run = tmp_path / "run"
    members = crew.start(crew.train_and_keep, world, tmp_path / "m", run, shard=shard, steps=3)
    assert crew.wait(members) == [1] * len(members) and "KeyboardInterrupt" in crew.errors(tmp_path / "m", 0)
    assert (run / ("checkpoint-2" if shard else "checkpoint.pt")).exists() and not (run / "returned-0.pt").exists()
    crew.together(crew.train_and_keep, then, tmp_path / "n", run, shard=shard)
    assert_same(run, alone / OPTIMIZERS[shard], max(1, then))


def test_gradients_are_those_of_torchs_own_data_parallel(tmp_path):
    crew.together(crew.gradients, 2, tmp_path / "m", tmp_path)
    found = [torch.load(tmp_path / f"gradients-{rank}.pt") for rank in (0, 1)]
    had = [names for names, _, _ in found]
    assert had[0] != had[1]                                              # one drew images, the other a clip
    for _, ours, theirs in found:
        assert set(ours) == had[0] | had[1]
        assert all(torch.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12) for name in ours)
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_sharded_training_in_bfloat16_with_checkpointing_of_some_layers(tmp_path):
    """Weights travel in bfloat16, three digits; blocks are computed twice; only the temporal parts learn."""
    options = {"autocast": torch.bfloat16, "dtype": torch.float32, "checkpointing": True, "learns": "temporal"}
    plan = replace(crew.PLAN, steps=2, accumulate=2, lr=0.02)
    crew.together(crew.train_and_keep, 0, tmp_path / "m", tmp_path / "one", plan=plan, adamw=True, **options)
    crew.together(crew.train_and_keep, 2, tmp_path / "n", tmp_path / "two", plan=plan, shard=True, **options)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in two], rel=0.01)
    first, (average, _) = crew.unet().state_dict(), torch.load(tmp_path / "two" / "returned-0.pt")
    assert average and all("temporal" in name and value.dtype == torch.float32 for name, value in average.items())
    assert any((value - first[name]).abs().max() > 1e-3 for name, value in average.items())


# --- what goes wrong ---

@pytest.mark.parametrize("shard, victim", ((False, 0), (False, 1), (True, 1)))
def test_when_one_process_is_killed_all_end_within_a_minute(shard, victim, tmp_path):
    """Without torchrun, which would end them itself."""
    run = tmp_path / "run"
    members = crew.start(crew.train_for_ever, 2, tmp_path / "m", run, shard=shard, victim=victim)
    patience = time.monotonic() + 300
    while not (run / "ready").exists() and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(members[victim].pid, signal.SIGKILL)
    codes = crew.wait(members, 60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, codes
    assert "Error" in crew.errors(tmp_path / "m", 1 - victim)
    assert_loads(run, shard)


def test_killed_while_a_sharded_checkpoint_is_saved_a_run_arrives_where_it_would_have(alone, tmp_path):
    """At four moments of a save, one after the other in one run; after each its last whole checkpoint is there."""
    run, half = tmp_path / "run", ".checkpoint-2.part"
    for i, (victim, moment, name, times, left) in enumerate((
            (1, "open", f"{half}/shard-00002", 1, {1}),                      # the second's pieces are not written
            (0, "os.rename", half, 1, {1}),                                  # all is written, and has no name
            (0, "shutil.rmtree", f"{run}/checkpoint-1", 1, {1, 2}),          # it has; the old one is there, too
            (0, "os.remove", ".safetensors", 2, {1, 2, 3}))):                # half of the old one is removed
        codes = crew.wait(crew.start(crew.die_saving, 2, tmp_path / f"m{i}", run, victim, moment, name, times))
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, (i, codes)
        assert {int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")} == left
        assert (run / half).exists() == (i < 2)
    assert len(list((run / "checkpoint-1").glob("*.safetensors"))) == 1
    crew.together(crew.train_and_keep, 2, tmp_path / "n", run, shard=True)
    assert_same(run, alone / OPTIMIZERS[True], 2)
    assert [path.name for path in run.glob("*checkpoint*")] == ["checkpoint-4"]


@pytest.fixture
def films(tmp_path):
    """The command that fine-tunes a small model on small films."""
    return ["finetune", "--data", str(folder_of_films(tmp_path / "films")), "--weights",
            str(make_pipe(tmp_path).save(tmp_path / "model")), "--out", str(tmp_path / "out"), "--steps", "2",
            "--accumulate", "2", "--judge", "1"]


def start_command(argv, late, folder):
    port = crew.free_port()
    return [crew.start(crew.command, 0, folder / f"m{rank}", folder, rank, port, argv, late)[0] for rank in (0, 1)]


def test_who_waits_for_the_first_process_waits_longer_than_for_others(films, tmp_path):
    """It encodes films, and looks at clips before the run and after it; each takes longer than the others' patience."""
    codes = crew.wait(start_command(films, 8, tmp_path))
    assert codes == [0, 0], "\n".join(crew.errors(tmp_path / f"m{rank}", 0) for rank in (0, 1))
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["steps"] == 2 and {"before", "after", "data"} <= report.keys()


def test_who_waits_for_the_first_process_ends_with_it(films, tmp_path):
    """Without torchrun, which would end it."""
    assert crew.wait(start_command(films, None, tmp_path)) == [-signal.SIGKILL, 1]
    assert not (tmp_path / "out" / "report.json").exists()


def assert_loads(run: Path, shard: bool):
    """One more step from the last checkpoint, in one process."""
    if shard:
        step = max(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*"))
    else:
        step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert step >= 2
    plan = replace(crew.PLAN, steps=step + 1, save_every=1, accumulate=1)
    crew.together(crew.train, int(shard), run.parent / "again", run, plan=plan, shard=shard)
    assert read_log(run)[-1]["step"] == step + 1
    assert not list(run.glob(".*"))                                      # nothing half-written is left


def test_torchrun_starts_them_and_ends_them(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", crew.__file__]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "errors").open("w") as errors:
        started = subprocess.Popen([*command, str(run)], env=environment, stdout=errors, stderr=errors)
    try:
        patience = time.monotonic() + 300
        while not (run / "ready").exists() and time.monotonic() < patience and started.poll() is None:
            time.sleep(0.01)
        assert (run / "ready").exists(), (tmp_path / "errors").read_text()
        os.kill(int((run / "ready").read_text()), signal.SIGKILL)
        assert started.wait(60) == 1
    finally:
        started.kill()
    assert_loads(run, shard=False)


def test_an_error_in_one_process_ends_all(tmp_path):
    members = crew.start(crew.fail_alone, 2, tmp_path / "m", tmp_path / "run")
    assert crew.wait(members, 120) == [1, 1]
    assert "this video is unreadable" in crew.errors(tmp_path / "m", 1)


def test_micro_batches_that_cannot_be_shared_evenly_are_refused(tmp_path):
    members = crew.start(crew.train, 2, tmp_path / "m", tmp_path / "run", plan=replace(crew.PLAN, accumulate=3))
    assert crew.wait(members) == [1, 1]
    said = "a step has 3 micro-batches, which 2 processes cannot share evenly. Set accumulate to 4"
    assert all(said in crew.errors(tmp_path / "m", rank) for rank in (0, 1))
    assert list(distributed.share_out(3)) == [0, 1, 2]                   # alone, anything goes


def test_processes_share_out_the_clips_to_encode(tmp_path):
    """Each shard is encoded once, by one of the two, and both read all of them: as one process alone does."""
    for name in ("two", "one"):
        torch.manual_seed(0)
        autoencoder = Autoencoder(TINY.autoencoder)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(TINY.to_json())
        save_file(autoencoder.state_dict(), tmp_path / name / "autoencoder.safetensors")
    crew.together(crew.encode_clips, 2, tmp_path / "m2", tmp_path / "two")
    crew.together(crew.encode_clips, 0, tmp_path / "m1", tmp_path / "one")
    (first, some), (second, rest) = (torch.load(tmp_path / "two" / f"clips-{rank}.pt") for rank in (0, 1))
    alone, every = torch.load(tmp_path / "one" / "clips-0.pt")
    assert (some, rest, every) == (12, 8, 20)
    assert torch.equal(first, alone) and torch.equal(second, alone)


def test_shards_need_processes_and_a_unet(tmp_path):
    with pytest.raises(ValueError, match="torchrun --standalone"):
        fit(crew.unet(), crew.objective, crew.PLAN, tmp_path, shard=True, progress=False)
    members = crew.start(crew.shard_a_net, 1, tmp_path / "m", tmp_path / "run")
    assert crew.wait(members) == [1] and "Net has no blocks of a UNet" in crew.errors(tmp_path / "m", 0)


def test_a_run_is_not_continued_in_the_other_way(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="run with shards. Go on with them"):
        fit(crew.unet(), crew.objective, crew.PLAN, tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint.pt").touch()
    members = crew.start(crew.train, 1, tmp_path / "m", tmp_path, shard=True)
    assert crew.wait(members) == [1] and "run without shards" in crew.errors(tmp_path / "m", 0)


def test_alone_nothing_is_needed(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with distributed.processes("cpu") as device:
        assert device == torch.device("cpu") and distributed.first() and distributed.world() == 1
    with distributed.first_ahead():
        pass
    value = torch.ones(2)
    assert distributed.mean(value) is value and distributed.everyones("a") == ["a"]
