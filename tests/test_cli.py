"""The command line: what it prints, what it writes, and the status it ends with."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from test_pipeline import make_pipe

import minit2v
from minit2v import cli, doctor, video

FAST = ["--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(make_pipe(tmp_path_factory.mktemp("model")).save(tmp_path_factory.mktemp("saved")))


def run(*argv, **env):
    """The command in a process of its own, as a user starts it. Returns (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "minit2v.cli", *map(str, argv)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}, timeout=300)
    return done.returncode, done.stdout, done.stderr


# --- generate ---

def test_generate_writes_every_kind_of_file(weights, tmp_path):
    outputs = [tmp_path / name for name in ("clip.mp4", "clip.gif", "clip.webp", "clip.png")]
    options = [word for path in outputs for word in ("-o", path)]
    status, out, err = run("generate", "red circle", "--weights", weights, *FAST, *options, "--seed", 3)
    assert (status, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in outputs)
    assert "'red circle': 3 frames of 16 x 16 pixels" in out
    assert all(f"wrote {path}" in out for path in outputs)
    pipe = minit2v.load(weights)
    clip = pipe("red circle", num_inference_steps=2, seed=3, progress=False)
    assert torch.equal(video.load(outputs[2]), clip)                  # webp is lossless; the command is the library
    settings = video.read_settings(outputs[0])
    assert settings == {"prompt": "red circle", "negative_prompt": "", "num_frames": 3, "height": 16, "width": 16,
                        "seed": 3, "eta": 0.0, "num_inference_steps": 2, "guidance_scale": 9.0, "sampler": "ddim",
                        "spacing": None, "rounding": "round", "dtype": "float32", "model": "tiny",
                        "minit2v": minit2v.__version__, "fps": 8}


def test_generate_as_json(weights, tmp_path, capsys):
    path = tmp_path / "clip.gif"
    options = ["--sampler", "dpm++", "--guidance-scale", "2.5", "--num-frames", "2", "--height", "8", "--width", "12",
               "--negative-prompt", "blue", "--fps", "4"]
    assert cli.main(["generate", "red", "--weights", weights, *FAST, *options, "-o", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)                      # one object and nothing else
    assert answer["files"] == [str(path)] and answer["seconds"] > 0 and answer["referee"] is None
    assert answer["settings"] | video.read_settings(path) == video.read_settings(path)
    assert video.load(path).shape == (2, 8, 12, 3)
    assert video.read_settings(path)["negative_prompt"] == "blue" and video.read_settings(path)["fps"] == 4


def test_generate_with_the_minis_name_asks_the_referee(tmp_path, capsys):
    weights = str(make_pipe(tmp_path, name="mini").save(tmp_path / "saved"))
    path = str(tmp_path / "clip.gif")
    command = ["generate", "red dragon", "--weights", weights, *FAST, "--num-frames", "4", "-o", path]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "the referee reads: " in out
    assert err.startswith("minit2v: warning: ") and "'dragon'" in err and "site-packages" not in err
    assert cli.main([*command, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["referee"], list)


def test_read_objects_reads_a_real_clip():
    import random

    from minit2v import world
    scene = world.sample_scene(random.Random(1))
    clip = world.render([scene])[0]
    reading, = cli.read_objects(clip if clip.shape[-1] == 3 else clip.permute(1, 2, 3, 0), fps=8)
    thing = scene.things[0]
    assert (reading["colour"], reading["shape"], reading["motion"]) == (thing.colour, thing.shape, thing.motion)
    json.dumps(reading)


def test_default_output_is_clip_mp4(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "", "--weights", weights, *FAST]) == 0          # an empty prompt is allowed
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


# --- status 2: the command makes no sense ---

@pytest.mark.parametrize("argv, message", [
    ([], "VERB"),
    (["paint"], "paint"),
    (["generate"], "prompt"),
    (["generate", "red", "-o", "clip.avi"], "'clip.avi' must end in one of .mp4, .gif, .webp, .png"),
    (["generate", "red", "--sampler", "euler"], "dpm++"),
    (["generate", "red", "--num-inference-steps", "0"], "'0' must be a whole number, at least 1"),
    (["generate", "red", "--num-frames", "-1"], "'-1' must be a whole number, at least 1"),
    (["generate", "red", "--height", "tall"], "'tall' must be a whole number"),
    (["generate", "red", "--guidance-scale", "nan"], "'nan' must be a finite number"),
    (["generate", "red", "--eta", "2"], "'2' must be a number from 0 to 1"),
    (["generate", "red", "--fps", "0"], "'0' must be a number above 0"),
    (["generate", "red", "--seed", "-1"], "'-1' must be a whole number from 0"),
    (["train"], "--out"),
    (["train", "--out", "x", "--stage", "sound"], "autoencoder"),
    (["evaluate", "--clips", "0"], "at least 1"),
])
def test_bad_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["generate", "evaluate", "train", "doctor"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: minit2v " + verb in capsys.readouterr().out


def test_help_does_not_wait_for_torch():
    code = ("import sys; from minit2v import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.endswith("False\n"), done.stderr


def test_choices_are_those_of_the_library():
    """The parser repeats a few lists so as not to import torch; they must not drift."""
    from minit2v import fvd, pipeline, recipe
    assert cli.SAMPLERS == tuple(pipeline.SPACINGS) and cli.ENDINGS == video.ENDINGS
    assert cli.cli_evaluate.CLIP_NAME == fvd.CLIP_NAME and cli.cli_train.STAGES == ("all", *recipe.STAGES)
    assert cli.TOKENIZERS == tuple(pipeline.TOKENIZERS) and cli.OFFLOAD == pipeline.offload.WAYS
    for name in cli.DTYPES:
        assert pipeline._number_type(name) == getattr(torch, name)


@pytest.mark.parametrize("argv, home, name", [
    (["evaluate"], "evaluate", "main_evaluate"),
    (["train", "--out", "runs"], "recipe", "main_train"),
])
def test_verbs_hand_over_what_is_read(argv, home, name):
    """Every `args.x` that the function behind a verb reads is an option of that verb."""
    source = inspect.getsource(getattr(importlib.import_module(f"minit2v.{home}"), name))
    read = set(re.findall(r"\bargs\.([a-z0-9_]+)", source))
    assert read and read <= set(vars(cli.build_parser().parse_args(argv)))


# --- status 1: it failed ---

def test_failures_are_one_line_and_leave_no_file(weights, tmp_path):
    out = tmp_path / "clip.mp4"
    status, stdout, stderr = run("generate", "red", "--weights", tmp_path / "none", "-o", out)
    assert status == 1 and stdout == ""
    assert stderr.startswith("minit2v: error: there is no model in") and stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options, message", [
    (["--height", "18"], "height is 18 pixels, but must be a multiple of 4"),
    (["--num-inference-steps", "1001"], "num_inference_steps is 1001"),
    (["-o", "nowhere/clip.mp4"], "no folder 'nowhere'"),
    (["-o", "folder.gif"], "is a folder"),
    (["--eta", "0.5", "--sampler", "ddpm"], "only ddim"),
    (["--device", "abacus"], "abacus"),
    (["-o", "clip.gif", "--fps", "90"], "at most 50"),
])
def test_failures(weights, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gif").mkdir()
    assert cli.main(["generate", "red", "--weights", weights, *FAST, *options]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("minit2v: error: ") and message in err and "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["folder.gif"]


@pytest.mark.parametrize("adapter, message", [
    ("none.safetensors", "there is no adapter 'none.safetensors'; `minit2v finetune --learns lora --out DIR` writes"),
    ("taught", f"'taught' is a folder; name the file of the adapter in it, such as 'taught{os.sep}lora.safetensors'"),
])
def test_an_adapter_that_is_not_there_is_told_before_the_work(tmp_path, monkeypatch, capsys, adapter, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taught").mkdir()
    assert cli.main(["generate", "red", "--weights", "none", "--lora", adapter]) == 1
    assert capsys.readouterr().err.startswith(f"minit2v: error: {message}")


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert cli.main(["generate", "red", "--weights", str(tmp_path), "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "FileNotFoundError" in err


def test_unwritable_output_is_found_before_the_work(tmp_path, capsys):
    # the weights do not exist either: the output is looked at first
    assert cli.main(["generate", "red", "--weights", "none", "-o", str(tmp_path / "no" / "clip.mp4")]) == 1
    assert "no folder" in capsys.readouterr().err


# --- doctor ---

@pytest.mark.parametrize("check", [doctor.check_python, doctor.check_packages, doctor.check_torch, doctor.check_device,
                                   doctor.check_memory, doctor.check_video])
def test_this_machine_is_healthy(check):
    assert check().status in ("good", "poor"), check()


def test_doctor_reports_in_words_and_as_json(capsys):
    status = cli.main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in answer["findings"]] == ["python", "packages", "torch", "device", "memory", "video",
                                                       "weights", "jupyter"]
    assert answer["healthy"] is all(f["status"] != "bad" for f in answer["findings"]) is (status == 0)
    assert cli.main(["doctor"]) == status
    out = capsys.readouterr().out
    assert ("all is well" in out) is (status == 0)
    assert all(f["remedy"] in out for f in answer["findings"])


def test_doctor_comes_when_torch_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open shared object file')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    status, out, err = run("doctor", PYTHONPATH=path)
    assert status == 1 and "Traceback" not in err
    assert "bad   torch" in out and "libtorch.so" in out and "to mend: pip install --upgrade torch" in out
    assert "something that is needed is missing" in out


def test_doctor_names_damaged_weights(tmp_path, monkeypatch, weights):
    from pathlib import Path

    from minit2v import pipeline
    for file in Path(weights).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path)
    monkeypatch.setattr("minit2v.text.WEIGHTS", tmp_path)
    assert doctor.check_weights().status == "good" and "tiny" in doctor.check_weights().detail
    (tmp_path / "unet.safetensors").write_bytes(b"")
    finding = doctor.check_weights()
    assert finding.status == "bad" and "unet.safetensors is damaged" in finding.detail and finding.remedy
