"""The commands themselves, started by torchrun on gloo: the losses of one process, a kill, another number of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import crew
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from test_finetune import folder_of_films
from test_pipeline import make_pipe
from test_training import TINY

from minit2v import cli, data, distributed, recipe, training
from minit2v.autoencoder import Autoencoder
from minit2v.text import TextEncoder
from minit2v.training import read_log

pytestmark = pytest.mark.skipif(not crew.AVAILABLE or shutil.which("pgrep") is None,
                                reason="needs torch.distributed with gloo, and pgrep to find the processes")
LORA = ("--learns", "lora", "--rank", 3)
ALL = ("--learns", "all", "--image-share", 0.3)


@pytest.fixture(scope="module")
def finetune(tmp_path_factory):
    """A run that takes a while, whose films are encoded already; where to (--out) is left to say."""
    folder = tmp_path_factory.mktemp("finetune")
    command = ["finetune", "--data", folder_of_films(folder / "films"), "--cache", folder / "cache", "--weights",
               make_pipe(folder).save(folder / "model"), "--steps", 60, "--save-every", 4, "--batch", 2,
               "--accumulate", 2, "--judge", 0, "--lr", 1e-3]
    assert run(*command, "--steps", 1, "--out", folder / "out") == 0
    return command


@pytest.fixture
def train(tmp_path):
    """`minit2v train` of images in a folder that has what it needs: 32 clips, and networks that have learnt nothing."""
    out = tmp_path / "train"
    out.mkdir()
    torch.manual_seed(0)
    autoencoder = Autoencoder(TINY.autoencoder)
    save_file(autoencoder.state_dict(), out / "autoencoder.safetensors")
    save_file(TextEncoder(TINY.text).state_dict(), out / "text_encoder.safetensors")
    (out / "config.json").write_text(TINY.to_json(), encoding="utf-8")
    recipe.learn_vocabulary(TINY, out / TINY.text.merges, captions=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", 1)
        data.encode_world(out / "clips", autoencoder, {1: recipe.SHARDS[1], 2: recipe.SHARDS[2]}, progress=False)
    return ["train", "--stage", "image", "--accumulate", 2, "--out", out]


# --- ways to run a command ---

def run(*argv) -> int:
    """In this process, alone."""
    return cli.main([str(word) for word in argv])


def run_by_adamw(*argv) -> int:
    """The same, but all learns by AdamW, as it does with shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "split", lambda model, parameters: ([], parameters))
        return run(*argv)


def run_as_only_one(*argv) -> int:
    """In this process, which takes itself for the only one that torchrun has started."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", 0)):
            patch.setenv(name, str(value))
        try:
            return run(*argv)
        finally:
            if dist.is_initialized():                    # after an error
                dist.destroy_process_group()


def start(said, *argv) -> subprocess.Popen:
    """By torchrun, in two processes; what they say goes to the file `said`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minit2v"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with said.open("w") as file:
        return subprocess.Popen([*command, *map(str, argv)], env=environment, stdout=file, stderr=file)


def kill_one(started: subprocess.Popen, said, folder, step: int) -> None:
    """Kills one of both when step `step` stands in the log in `folder`; all must end, with an error, in a minute."""
    try:
        patience = time.monotonic() + 300
        while not (folder / "log.jsonl").exists() or not any(line["step"] >= step for line in read_log(folder)):
            assert started.poll() is None and time.monotonic() < patience, said.read_text()
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "-P", str(started.pid), "-f", "minit2v"], capture_output=True, text=True)
        one, other = map(int, found.stdout.split())
        os.kill(other, signal.SIGKILL)
        assert started.wait(60) == 1, said.read_text()
        patience = time.monotonic() + 60
        while runs(one):
            assert time.monotonic() < patience, "the other process is still there"
            time.sleep(0.05)
    finally:
        started.kill()


def runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same_lines(folder, other, first: int, last: int):
    """Losses and norms of the steps `first` to `last`, to 1e-5."""
    lines = [[{name: value for name, value in line.items() if name != "seconds"} for line in read_log(each)
              if first <= line["step"] <= last] for each in (folder, other)]
    assert len(lines[0]) == len(lines[1]) > 0
    for one, two in zip(*lines):
        assert one == pytest.approx(two, rel=1e-5)


def assert_near(path, other, most: float):
    """The weights in two files: the same names, and no difference above `most`."""
    one, two = load_file(path), load_file(other)
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < most


# --- finetune ---

def test_finetune_by_two_of_which_one_is_killed_and_then_by_one_alone(finetune, tmp_path):
    two, one, said = tmp_path / "two", tmp_path / "one", tmp_path / "said"
    kill_one(start(said, *finetune, *ALL, "--out", two), said, two / "run", step=20)
    saved = torch.load(two / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < saved < 60 and saved % 4 == 0 and not (two / "report.json").exists()
    assert run(*finetune, *ALL, "--out", two) == 0                               # from the last checkpoint
    assert run(*finetune, *ALL, "--out", one) == 0
    assert_same_lines(two / "run", one / "run", 1, 20)                           # these were made by two
    assert [line["step"] for line in read_log(two / "run")] == [20, 40, 60]
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (two, one)]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=1e-3)
    assert_near(two / "unet.safetensors", one / "unet.safetensors", 1e-3)


def test_finetune_with_shards_by_two_of_which_one_is_killed_and_then_by_one(finetune, tmp_path):
    """LoRA: of every weight each process holds a piece, of those that do not learn, too."""
    two, one, said = tmp_path / "two", tmp_path / "one", tmp_path / "said"
    kill_one(start(said, *finetune, *LORA, "--shard", "--out", two), said, two / "run", step=20)
    assert any((two / "run").glob("checkpoint-*")) and not (two / "report.json").exists()
    assert run_as_only_one(*finetune, *LORA, "--shard", "--out", two) == 0
    assert run_by_adamw(*finetune, *LORA, "--out", one) == 0
    assert_same_lines(two / "run", one / "run", 1, 20)
    assert_near(two / "lora.safetensors", one / "lora.safetensors", 1e-3)
    assert [path.name for path in (two / "run").glob("checkpoint*")] == ["checkpoint-60"]


# --- train ---

def test_train_by_two_of_which_one_is_killed_and_then_by_one_alone(train, tmp_path):
    """A checkpoint every 500 steps is too seldom for a test: the first 20 steps are a run of their own."""
    out, said = train[-1], tmp_path / "said"
    run_of = out / "runs" / "image"
    shutil.copytree(out, tmp_path / "one")
    assert start(said, *train, "--steps", 20).wait(300) == 0, said.read_text()
    assert said.read_text().count(f"image: the weights are in {out}") == 1       # said by the first alone
    assert run(*train, "--out", tmp_path / "one", "--steps", 20) == 0
    assert_same_lines(run_of, tmp_path / "one" / "runs" / "image", 1, 20)
    assert_near(out / "unet.safetensors", tmp_path / "one" / "unet.safetensors", 1e-4)

    kill_one(start(said, *train, "--steps", 400), said, run_of, step=40)
    assert torch.load(run_of / "checkpoint.pt", weights_only=True)["step"] == 20
    for folder in (out, tmp_path / "one"):                                       # what one goes on with, the other does
        assert run(*train, "--out", folder, "--steps", 40) == 0
    assert_same_lines(run_of, tmp_path / "one" / "runs" / "image", 40, 40)


def test_train_with_shards(train, tmp_path):
    out, said = train[-1], tmp_path / "said"
    shutil.copytree(out, tmp_path / "one")
    assert start(said, *train, "--steps", 3, "--shard").wait(300) == 0, said.read_text()
    assert [path.name for path in (out / "runs" / "image").glob("checkpoint*")] == ["checkpoint-3"]
    assert run_by_adamw(*train, "--out", tmp_path / "one", "--steps", 3) == 0
    assert_same_lines(out / "runs" / "image", tmp_path / "one" / "runs" / "image", 1, 3)
    assert_near(out / "unet.safetensors", tmp_path / "one" / "unet.safetensors", 1e-4)
    assert run_as_only_one(*train, "--steps", 4, "--shard") == 0
    assert read_log(out / "runs" / "image")[-1]["step"] == 4


# --- what makes no sense is told at once ---

@pytest.mark.parametrize("options, says", [
    (["--shard"], "torchrun did not start this one. Start it by torchrun --standalone --nproc-per-node N -m minit2v"),
    (["--shard", "--stage", "text"], "stage 'text' has no UNet"),
])
def test_train_refuses_shards(tmp_path, capsys, options, says):
    assert run("train", "--out", tmp_path / "out", *options) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_finetune_refuses_shards_alone_and_a_run_of_the_other_kind(finetune, tmp_path, capsys):
    assert run(*finetune, "--weights", "nowhere", "--shard", "--out", tmp_path / "out") == 1
    assert "torchrun did not start this one" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "checkpoint.pt").touch()
    assert run_as_only_one(*finetune, "--data", "nowhere", "--shard", "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "the checkpoint of a run without shards. Go on without them" in said and "AdamW" in said


def test_micro_batches_that_cannot_be_shared_are_told_at_once(finetune, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert run(*finetune, "--accumulate", 3, "--data", "nowhere", "--out", tmp_path / "out") == 1
    assert "a step has 3 micro-batches, which 2 processes cannot share evenly" in capsys.readouterr().err
