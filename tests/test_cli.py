"""The command line: what it prints, what it writes, and the status it ends with."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_pipeline import make_pipe

import minit2v
from minit2v import cli, doctor, pipeline, video

FAST = ["--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(make_pipe(tmp_path_factory.mktemp("model")).save(tmp_path_factory.mktemp("saved")))


def run(*argv, **env):
    """The command in a process of its own, as a user starts it. Returns (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "minit2v.cli", *map(str, argv)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}, timeout=300,
                          encoding=env.get("PYTHONIOENCODING"))
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
    (["train", "--out", "runs"], "cli_train", "run_stages"),
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
    (["-o", "clip.mp4", "-o", "clip.gif", "--fps", "60"], "at most 50"),
    (["-o", "x" * 300 + ".gif"], "takes no file of this name"),
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
    assert cli.main(["generate", "red", "--weights", "none", "-o", str(tmp_path / "clip.gif"), "--fps", "60"]) == 1
    assert "at most 50" in capsys.readouterr().err


@pytest.mark.parametrize("name, change, message", [("clip.gif", {"fps": 60}, "fps is 60.*at most 50"),
                                                   ("clip.mp4", {"height": 15}, "even sizes.*15 x 16")])
def test_what_only_the_model_knows_is_looked_at_before_the_work(tmp_path, capsys, name, change, message):
    """Of a model that halves nothing. 1,001 steps are refused as soon as the work begins: it has not begun."""
    config = make_pipe(tmp_path).config
    config = replace(config, autoencoder=replace(config.autoencoder, multipliers=(1,)),
                     unet=replace(config.unet, multipliers=(1,), attention=(True,)), **change)
    weights = pipeline.TextToVideo(config, **pipeline.networks(config)).save(tmp_path / "saved")
    command = ["generate", "red", "--weights", str(weights), "--steps", "1001", "-o", str(tmp_path / name)]
    assert cli.main(command) == 1
    assert re.search(message, capsys.readouterr().err)
    assert cli.main([*command[:-1], str(tmp_path / "clip.png")]) == 1
    assert "num_inference_steps is 1001" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--referee", "--picture", "a.png", "--json", "a.json"], "the referee's table has no picture"),
    (["--published", "--json", "a.json"], "--published only prints"),
    (["--json", "."], "'.': it is a folder"),
    (["--picture", "x" * 300], "takes no file of this name"),
])
def test_evaluate_looks_at_its_outputs_before_the_work(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--weights", "none", *options]) == 1          # weights that would be missed next
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", [["train"], ["ablate", "steps"], ["finetune", "--data", "none"]])
def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    for out, message in (("afile", "cannot write into 'afile': 'afile' is no folder; choose another one"),
                         (os.path.join("x" * 300, "y"), "cannot write ")):
        assert cli.main([*verb, "--out", out]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"minit2v: error: {message}") and "choose another one" in err
    assert [p.name for p in tmp_path.iterdir()] == ["afile"]


# --- a standard output that does not take everything ---

def test_a_pipe_of_another_encoding_gets_everything(weights, tmp_path):
    path, windows = tmp_path / "clip.gif", {"PYTHONIOENCODING": "cp1252"}
    command = ["generate", "红 café", "--weights", weights, *FAST, "-o", path]
    status, out, err = run(*command, **windows)
    assert (status, err) == (0, "") and out.startswith("'\\u7ea2 café': 3 frames") and path.is_file()
    status, out, err = run(*command, "--json", **windows)
    assert (status, err) == (0, "") and json.loads(out)["settings"]["prompt"] == "红 café"


def test_tables_reach_a_pipe_of_another_encoding(tmp_path):
    out = tmp_path / "figures.json"
    status, printed, err = run("evaluate", "--clips", "2", "--steps", "1", "--json", out, PYTHONIOENCODING="cp1252")
    assert status == 0, err
    assert "course Frechet distance \\u2193" in printed and "±" in printed
    assert json.loads(out.read_text(encoding="utf-8"))["clips"] == 2


def test_files_are_written_before_anything_is_printed(tmp_path, monkeypatch, capsys):
    """Nobody reads the pipe: what was measured is in its file all the same."""
    reads, writes = os.pipe()
    os.close(reads)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writes, "w", buffering=1))
        assert cli.main(["evaluate", "--referee", "--clips", "1", "--json", str(tmp_path / "figures.json")]) == 1
    assert "minit2v: error: " in capsys.readouterr().err
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["clips"] == 1


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


def needing(requirements, folder, monkeypatch):
    """From here on an installed minit2v declares these requirements."""
    (folder / "minit2v-9.dist-info").mkdir()
    lines = ["Metadata-Version: 2.1", "Name: minit2v", "Version: 9", *(f"Requires-Dist: {r}" for r in requirements)]
    (folder / "minit2v-9.dist-info" / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def test_doctor_looks_for_every_declared_package(tmp_path, monkeypatch):
    needing(["torch>=2.5", "regex>=99999.1", "no_such_package>=1", "pillow>=10.1", 'absent>=1; extra == "course"'],
            tmp_path, monkeypatch)
    assert doctor.needed() == {"torch": "2.5", "regex": "99999.1", "no_such_package": "1", "pillow": "10.1"}
    finding = doctor.check_packages()
    assert finding.status == "bad" and finding.remedy.endswith("pip install -e .")
    assert re.fullmatch(r"no_such_package \(ModuleNotFoundError: .*\); regex \(it is 20\d\d[\d.]+, but 99999.1 or "
                        r"newer is needed\)", finding.detail)
    assert doctor.check_torch().status == "good"


def test_doctor_knows_that_torch_is_too_old(tmp_path, monkeypatch):
    needing(["torch>=99.5"], tmp_path, monkeypatch)
    finding = doctor.check_torch()
    assert finding.status == "bad" and f"it is {torch.__version__}, but 99.5 or newer is needed" == finding.detail
    assert finding.remedy.startswith("pip install --upgrade torch") and "none that is new enough" in finding.remedy


def test_doctor_says_that_the_package_is_not_installed(tmp_path, monkeypatch):
    needing([], tmp_path, monkeypatch)
    assert doctor.needed() == {} and doctor.check_packages().status == "bad"
    assert "not installed" in doctor.check_packages().detail and doctor.check_torch().status == "good"


def test_versions_are_compared_as_numbers():
    older = [("2.4.1+cu121", "2.5"), ("2.9", "2.10"), ("0.4.2", "0.4.3"), ("9.5", "10.1")]
    assert all(doctor.is_older(*pair) for pair in older) and not any(doctor.is_older(b, a) for a, b in older)
    assert not any(doctor.is_older(*pair) for pair in [("2.5.0+cpu", "2.5"), ("2.5", "2.5"), ("12.0.0rc1", "12")])


@pytest.mark.skipif(not hasattr(torch, "accelerator"), reason="torch 2.5 does not know which card there is")
def test_doctor_recommends_no_card_that_does_not_compute(monkeypatch):
    """Card number 99: no machine has it, and torch says so when it shall compute there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda:99"))
    finding = doctor.check_device()
    assert finding.status == "poor" and "cuda, but it does not compute" in finding.detail
    assert "leave --device out" in finding.remedy
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))     # one that computes
    assert doctor.check_device().status == "good" and "--device cpu" in doctor.check_device().detail


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
