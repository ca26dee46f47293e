"""A kill at any moment, and a full disk: what was saved last stays, and the run goes on from there."""

import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import crew
import pytest
import torch

from minit2v.training import fit, read_log

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGPROF") or not crew.AVAILABLE,
                                reason="needs processes that end by a signal (POSIX)")


def checkpoint(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, and the processor time of its steps and of one save."""
    folder = tmp_path_factory.mktemp("whole")
    begun = time.process_time()
    fit(crew.Net(), crew.roll, crew.FAST, folder / "run", progress=False)
    run = time.process_time() - begun
    state, begun = checkpoint(folder / "run"), time.process_time()
    for _ in range(5):
        torch.save(state, folder / "state.pt")
    return folder / "run", run, (time.process_time() - begun) / 5


def test_killed_at_twenty_random_moments_a_run_arrives_where_it_would_have(whole, tmp_path):
    """Ten times anywhere, ten times while it saves. After each, there is a whole checkpoint, and never an older one."""
    expected, run_time, save_time = whole
    rng, folder, halves, step = random.Random(), tmp_path / "run", 0, 0
    for i in range(20):
        when = ({"dies_saving": (0, rng.uniform(0, 1.2 * save_time) + 1e-4)} if i % 2 else
                {"dies_after": rng.uniform(0, run_time / 8) + 1e-4})
        codes = crew.wait(crew.start(crew.train_fast, 0, tmp_path / "m", folder, **when))
        assert codes in ([-signal.SIGPROF], [0]), (codes, crew.errors(tmp_path / "m", 0))      # killed, or too late
        halves += bool(list(folder.glob(".checkpoint.pt.*.part")))
        if (folder / "checkpoint.pt").exists():
            state = checkpoint(folder)
            assert state["step"] % crew.FAST.save_every == 0 and state["step"] >= step
            step = state["step"]
        else:
            assert step == 0
        if (folder / "log.jsonl").exists():
            assert [line["step"] for line in read_log(folder)] == list(range(2, 2 * len(read_log(folder)) + 1, 2))
        if step == crew.FAST.steps:                                   # arrived early: once more from the start
            assert_same_run(folder, expected)
            for path in folder.iterdir():
                path.unlink()
            step = 0
    assert halves >= 2, f"of ten kills during saving, {halves} left half a file: the test does not do what it says"
    for name in ("checkpoint.pt", "log.jsonl", "loss.png"):               # a kill while any of them is written
        (folder / f".{name}.1.part").touch()
    crew.together(crew.train_fast, 0, tmp_path / "m", folder)
    assert_same_run(folder, expected)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "log.jsonl", "loss.png"]


def assert_same_run(folder, expected):
    one, two = checkpoint(folder), checkpoint(expected)
    for part in ("parameters", "average"):
        assert all(torch.equal(one[part][name], value) for name, value in two[part].items())
    logs = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_log(each)]
            for each in (folder, expected)]
    assert logs[0] == logs[1]


# --- a full disk ---

@pytest.mark.parametrize("shard, world", ((False, 0), (False, 2), (True, 2)))
def test_a_file_that_cannot_be_written_is_told_and_the_last_checkpoint_stays(shard, world, tmp_path):
    """One process may write no large file any more, by the system's limit: the first, or with shards the last."""
    run = tmp_path / "run"
    members = crew.start(crew.fill_up, world, tmp_path / "m", run, shard=shard)
    codes = crew.wait(members)
    assert codes == [1] * max(1, world)
    for rank in range(world) if shard else [0]:                       # those that write
        said = crew.errors(tmp_path / "m", rank)
        assert "OSError: the checkpoint of step 4 could not be written into" in said, said
        assert "What was there before is whole. Make room" in said and "GB are free" in said
    if shard:
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    else:
        assert checkpoint(run)["step"] == 2
    plan = replace(crew.PLAN, steps=3, save_every=1, accumulate=2)
    crew.together(crew.train, int(shard), tmp_path / "again", run, plan=plan, shard=shard)
    assert read_log(run)[-1]["step"] == 3 and not list(run.glob(".*"))


def test_a_full_file_system_is_told(tmp_path):
    """A file system of 30 MB of its own, where it may be mounted: one checkpoint has room, its successor has not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)], capture_output=True)
    except OSError:
        mounted = None
    if mounted is None or mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(OSError, match="the checkpoint of step 6 could not be written.*where 0.0. GB are free"):
            fit(crew.Net(), crew.roll, crew.FAST, disk / "run", progress=False)
        assert checkpoint(disk / "run")["step"] == 3 and os.listdir(disk / "run")
        assert not list((disk / "run").glob(".checkpoint*"))          # half of it was taken away again
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)      # an error may hold a file of it open
