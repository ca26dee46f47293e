"""Nothing stays behind when a model is elsewhere than on the processor: see pretend.py."""

import importlib
from functools import partial

import pytest
import torch
from pretend import Device, There
from safetensors.torch import load_file
from test_finetune import folder_of_films
from test_training import TINY

import minit2v
from minit2v import beforeafter, cli, data, lora, metrics, recipe
from minit2v.training import Plan, read_log

PROMPTS = ["a red circle moves right", "a small blue star spins"]
FEW = {"num_inference_steps": 2, "progress": False}


def allow_fused_optimizers(monkeypatch):
    """torch's fused optimizers ask for a device by name."""
    optimizer = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"], raising=False)


def test_the_device_finds_what_is_left_behind():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator)
    with Device() as device:
        there = x.to("meta")
        assert isinstance(there, There) and isinstance(there @ there.T, There) and device.calls == 3
        assert torch.equal((there * 2 + 1).cpu(), x * 2 + 1) and type(there.cpu()) is torch.Tensor
        assert there.sum().item() == pytest.approx(x.sum().item())
        with pytest.raises(RuntimeError, match=r"shapes \[\(3, 4\)\]"):
            there + x
        with pytest.raises(RuntimeError, match="generator of the device"):
            torch.randn(2, generator=generator, device="meta")
        with pytest.raises(TypeError, match="no torch.float64"):
            there.double()
        with pytest.raises(RuntimeError, match="Attempted to call|on the device"):
            torch.nn.Linear(4, 4)(there)


@pytest.mark.parametrize("sampler, eta", (("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0), ("dpm++", 0.0)))
@pytest.mark.parametrize("way", ("load", "to"))
def test_a_clip_from_there_is_the_same(sampler, eta, way):
    """One level of 255 apart at most: there, convolutions do not take the processor's short ways."""
    here = minit2v.load()(PROMPTS, sampler=sampler, eta=eta, **FEW)
    with Device() as device:
        pipe = minit2v.load(device="meta") if way == "load" else minit2v.load().to("meta")
        clips = pipe(PROMPTS, sampler=sampler, eta=eta, **FEW)
        assert pipe.device.type == "meta" and device.calls > 5000
    assert type(clips) is torch.Tensor and (clips.int() - here.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_in_half_precision_too(dtype):
    with Device():
        pipe = minit2v.load(device="meta", dtype=dtype, vae_dtype="float32")
        lora.add(pipe.unet, rank=2)
        noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        clip = pipe(PROMPTS[0], latents=noise, guidance_scale=1, decode_chunk=3, **FEW)
    assert type(clip) is torch.Tensor and clip.shape == (4, 64, 64, 3)


def test_real_clips_pass_through_an_autoencoder_that_is_there():
    clips = metrics.draw(metrics.judging_scenes(1, "train", 3))
    here = metrics.through_autoencoder(minit2v.load(), clips, batch=2)
    with Device():
        there = metrics.through_autoencoder(minit2v.load(device="meta"), clips, batch=2)
        half = metrics.through_autoencoder(minit2v.load(device="meta", dtype="bfloat16"), clips)
    assert (there.int() - here.int()).abs().max() <= 1 and (half.int() - here.int()).abs().max() < 64


@pytest.mark.parametrize("command", (
    ("generate", PROMPTS[0], "--steps", 2, "--out", "clip.gif"), ("evaluate", "--clips", 2, "--steps", 1),
    ("finetune", "--learns", "lora", "--rank", 2),
    ("finetune", "--learns", "all", "--image-share", 0.5, "--checkpointing", "--dtype", "bfloat16"),
), ids=lambda command: " ".join(map(str, command[:3])))
def test_the_commands_work_there(command, tmp_path, monkeypatch, capsys):
    films = ["--data", "films", "--out", "out", "--steps", 3, "--batch", 2, "--judge", 1]
    more = films if command[0] == "finetune" else []
    if more:
        folder_of_films(tmp_path / "films")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beforeafter, "KNOWN", 2)                         # clips; each step there takes its time
    allow_fused_optimizers(monkeypatch)
    with Device() as device:
        assert cli.main([str(word) for word in (*command, *more, "--device", "meta", "--debug")]) == 0
    assert device.calls > 2000


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_training_there_has_the_same_losses(dtype, tmp_path, monkeypatch):
    """All four stages, and the scores of the last."""
    small = Plan(steps=2, batch=2, lr=1e-3, warmup=1, save_every=2, log_every=1)
    monkeypatch.setattr(recipe, "PLANS", dict.fromkeys(recipe.STAGES, small))
    monkeypatch.setattr(recipe, "SHARDS", {1: 1, 2: 1, 3: 1})
    monkeypatch.setattr(recipe, "score", partial(recipe.score, count=1))
    monkeypatch.setattr(recipe, "learn_vocabulary", partial(recipe.learn_vocabulary, captions=60))
    monkeypatch.setattr(data, "SHARD", 4)
    allow_fused_optimizers(monkeypatch)

    def train(name, *options):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(TINY.to_json(), encoding="utf-8")
        assert cli.main(["train", "--out", str(tmp_path / name), "--dtype", dtype, "--debug", *options]) == 0

    train("here")
    with Device() as device:
        train("there", "--device", "meta")
    assert device.calls > 5000
    for run in ("autoencoder", "autoencoder/decoder", "text", "image", "video/half", "video"):
        here, there = (read_log(tmp_path / name / "runs" / run) for name in ("here", "there"))
        losses = [[line["loss"] for line in log if "loss" in line] for log in (here, there)]
        assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-3 if dtype == "float32" else 2e-2), run
        assert [line.keys() for line in here] == [line.keys() for line in there]               # scores among them
    unet = load_file(tmp_path / "there" / "unet.safetensors")
    assert torch.isfinite(unet["conv_out.weight"]).all() and unet["conv_out.weight"].any()


def test_a_device_that_is_missing_is_told_before_anything_is_fetched():
    for name in ("mtia", "abacus"):
        with pytest.raises(ValueError, match=f"no device '{name}' for this torch.*minit2v doctor"):
            minit2v.load("nobody/nothing", device=name)


@pytest.mark.parametrize("command", ("train", "finetune --data films", "evaluate"))
@pytest.mark.parametrize("name", ("mtia", "abacus"))
def test_commands_tell_it_in_one_line(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = [] if command == "evaluate" else ["--out", "out"]
    assert cli.main([*command.split(), *out, "--device", name]) == 1
    told = capsys.readouterr().err
    assert f"there is no device '{name}' for this torch" in told and told.count("\n") == 1
    assert not any(tmp_path.iterdir())
