"""Fine-tuning: what learns and what does not, what is told of it, and that a killed run is the run that was not."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import make_pipe

import minit2v
from minit2v import beforeafter, cli, examples, finetune, footage, lora, video
from minit2v.captions import caption
from minit2v.config import AutoencoderConfig, ModelConfig, TextConfig, UNetConfig
from minit2v.convert import convert
from minit2v.pipeline import TextToVideo, networks
from minit2v.training import Plan, read_log
from minit2v.world import sample_scene

PLAN = Plan(steps=6, batch=2, lr=1e-2, warmup=1, ema=0.5, save_every=2, log_every=1)
CAPTIONS = ["red circle moves right", "blue square", "red square moves left"]


def moving(count: int = 3, frames: int = 5, size: int = 16) -> list[torch.Tensor]:
    """Clips in which a bright bar wanders, each in its own colour."""
    clips = []
    for i in range(count):
        clip = torch.full((frames, size, size, 3), 30, dtype=torch.uint8)
        for f in range(frames):
            clip[f, :, (2 * f + i) % size:(2 * f + i) % size + 4, i % 3] = 220
        clips.append(clip)
    return clips


@pytest.fixture
def pipe(tmp_path):
    return make_pipe(tmp_path)


@pytest.fixture
def short(monkeypatch):
    """Two sampling steps for a look, which here is not about what there is to see."""
    monkeypatch.setattr(beforeafter, "SAMPLING", {"num_inference_steps": 2, "sampler": "ddim"})


def run(pipe, folder, plan=PLAN, **options):
    return finetune.finetune(pipe, moving(), CAPTIONS, plan, folder, progress=False,
                             **{"judge": 0, "learns": "all", **options})


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}


# --- what learns ---

def test_temporal_are_the_parameters_that_a_picture_does_not_use(pipe):
    """The predicate goes by names; the network itself says which parameters a picture passes by."""
    latents, context = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 16, 16)
    pipe.unet(latents, torch.tensor([5]), context, temporal=False).square().sum().backward()
    passed_by = {name for name, p in pipe.unet.named_parameters() if p.grad is None}
    assert passed_by == {name for name, _ in pipe.unet.named_parameters() if finetune.is_temporal(name)}
    assert passed_by == {n for n, _ in pipe.unet.named_parameters() if not finetune.LEARNS["spatial"](n)}
    assert 0.1 < len(passed_by) / len(weights(pipe)) < 0.9


@pytest.mark.parametrize("learns", ["all", "temporal", "spatial"])
def test_what_learns_moves_and_nothing_else(pipe, tmp_path, learns):
    before = weights(pipe)
    report = run(pipe, tmp_path / "out", learns=learns)
    moved = {name for name, p in pipe.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(finetune.LEARNS[learns](name) for name in moved)
    assert len(moved) > 0.9 * sum(finetune.LEARNS[learns](name) for name in before)
    assert report["moved"] > 0 and report["learns"] == learns and not pipe.unet.training


@pytest.mark.parametrize("layers, here", [("temporal", "temporal_transformer"), ("cross", "attn2"),
                                          (r"mid\.0\..*to_v$", "mid.0")])
def test_lora_learns_beside_the_layers_that_are_chosen(pipe, tmp_path, layers, here):
    before = weights(pipe)
    run(pipe, tmp_path / "out", learns="lora", rank=2, layers=layers)
    found = lora.adapters(pipe.unet)
    assert found and all(here in name or name.startswith("transformer_in") for name in found)
    assert all(a.up.abs().max() > 0 for a in found.values())
    lora.remove(pipe.unet)
    assert all(torch.equal(p, before[name]) for name, p in pipe.unet.named_parameters())
    stored = load_file(tmp_path / "out" / "lora.safetensors")
    assert len(stored) == 2 * len(found) and not (tmp_path / "out" / "config.json").exists()


def test_the_layers_are_all_of_attention_and_no_layer_is_twice(pipe):
    linear = [name for name, m in pipe.unet.named_modules() if isinstance(m, torch.nn.Linear)]
    found = {kind: [n for n in linear if re.search(pattern, n)] for kind, pattern in finetune.LAYERS.items()}
    parts = found["spatial"] + found["cross"] + found["temporal"]
    assert sorted(parts) == sorted(found["all"]) and all(found.values())


def test_single_frames_pass_the_temporal_parts_by(pipe, tmp_path):
    before = weights(pipe)
    run(pipe, tmp_path / "out", image_share=1.0)
    moved = {name for name, p in pipe.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(finetune.is_temporal(name) for name in moved)
    with pytest.raises(ValueError, match="nothing that learns here sees single frames"):
        run(make_pipe(tmp_path), tmp_path / "b", learns="temporal", image_share=0.5)
    with pytest.raises(ValueError, match="nothing that learns here sees single frames"):
        run(make_pipe(tmp_path), tmp_path / "c", learns="lora", rank=1, layers="temporal", image_share=0.5)


def test_checkpointing_changes_nothing_and_min_snr_does(pipe, tmp_path):
    plain = run(pipe, tmp_path / "a")
    again = make_pipe(tmp_path)
    run(again, tmp_path / "b", checkpointing=True)
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(pipe.unet.parameters(), again.unet.parameters()))
    assert again.unet.gradient_checkpointing is False
    weighted = run(make_pipe(tmp_path), tmp_path / "c", min_snr=5.0)
    assert weighted["loss"][0] < 0.9 * plain["loss"][0]               # the same errors, each counting 1 or less


@pytest.fixture
def asked(monkeypatch):
    """What the objective was called with: one dict a micro-batch."""
    genuine, seen = finetune.denoising_loss, []

    def listening(network, process, latents, context, generator, **more):
        seen.append({"latents": tuple(latents.shape), "context": context, "half": torch.is_autocast_enabled("cpu"),
                     "checkpointing": getattr(network, "func", network).gradient_checkpointing, **more})
        return genuine(network, process, latents, context, generator, **more)

    monkeypatch.setattr(finetune, "denoising_loss", listening)
    return seen


def test_every_setting_reaches_the_objective(pipe, tmp_path, asked):
    with torch.no_grad():
        silence = pipe.encode_text([""])[0]

    def told(call):
        return [not torch.allclose(one, silence, atol=5e-3) for one in call["context"]]

    run(pipe, tmp_path / "a", drop=1.0, image_share=1.0, checkpointing=True, min_snr=5.0)
    assert {call["latents"] for call in asked} == {(finetune.STILLS * PLAN.batch, 4, 1, 8, 8)}
    assert all(call["checkpointing"] and call["min_snr"] == 5.0 and not call["half"] for call in asked)
    assert not any(any(told(call)) for call in asked)
    asked.clear()
    run(make_pipe(tmp_path), tmp_path / "b", drop=0.0, autocast=torch.bfloat16)
    assert {call["latents"] for call in asked} == {(PLAN.batch, 4, 3, 8, 8)} and len(asked) == PLAN.steps
    assert all(call["half"] and not call["checkpointing"] and all(told(call)) for call in asked)
    asked.clear()
    run(make_pipe(tmp_path), tmp_path / "c", replace(PLAN, steps=60), image_share=0.25, drop=0.5)
    stills = sum(call["latents"][2] == 1 for call in asked)
    heard = [heard for call in asked for heard in told(call)]
    assert 5 <= stills <= 27 and 0.35 < sum(heard) / len(heard) < 0.65


def test_what_comes_out_is_the_average_of_the_weights(pipe, tmp_path):
    run(pipe, tmp_path / "out")
    state = torch.load(tmp_path / "out" / "run" / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(p, state["average"][name]) for name, p in pipe.unet.named_parameters())
    assert any(not torch.equal(state["average"][name], p) for name, p in state["parameters"].items())


def test_how_far_weights_moved(pipe, tmp_path):
    """|change| / |weights|: of adapters alpha / rank times B A against the weights they stand beside."""
    before = weights(pipe)
    report = run(pipe, tmp_path / "a", learns="lora", rank=2, alpha=6.0)
    found = lora.adapters(pipe.unet)
    assert {a.scale for a in found.values()} == {3.0}
    lora.merge(pipe.unet), lora.remove(pipe.unet)
    change, size = 0.0, 0.0
    for name in found:
        change += (pipe.unet.get_submodule(name).weight - before[f"{name}.weight"]).double().square().sum()
        size += before[f"{name}.weight"].double().square().sum()
    assert report["moved"] == pytest.approx(float((change / size).sqrt()), rel=1e-3)

    pipe = make_pipe(tmp_path)
    report = run(pipe, tmp_path / "b", learns="temporal")
    change, size = 0.0, 0.0
    for name, p in pipe.unet.named_parameters():
        if finetune.is_temporal(name):                   # of large tensors, the first numbers
            now, was = (x.flatten()[:finetune.SAMPLE].double() for x in (p.detach(), before[name]))
            change, size = change + (now - was).square().sum(), size + was.square().sum()
    assert report["moved"] == pytest.approx(float((change / size).sqrt()), rel=1e-6)


def test_another_seed_is_another_run(tmp_path):
    first = [run(make_pipe(tmp_path), tmp_path / f"{seed}", replace(PLAN, lr=1e-9), learns="lora", rank=2, seed=seed)
             for seed in (0, 1)]
    one, two = (load_file(tmp_path / name / "lora.safetensors") for name in ("0", "1"))
    assert all(not torch.allclose(one[key], two[key], atol=1e-3) for key in one if "lora_A" in key)
    assert first[0]["loss"] != first[1]["loss"]


def test_it_learns_what_it_is_shown(pipe, tmp_path):
    """The loss of three clips falls, on noise that it has not seen: fifty steps against none."""
    from minit2v.diffusion import denoising_loss
    data = examples.of_clips(pipe, moving(), CAPTIONS, progress=False)

    def loss(pipe):
        generator, rng = torch.Generator().manual_seed(9), random.Random(9)
        with torch.no_grad():
            return denoising_loss(pipe.unet, pipe.process, *data.batch(rng, 64), generator)[0].item()

    before = loss(pipe)
    finetune.finetune(pipe, data, None, replace(PLAN, steps=50, ema=0.9), tmp_path / "out", learns="all", judge=0,
                      progress=False)
    assert loss(pipe) < 0.7 * before


# --- what it leaves behind ---

def test_a_full_run_leaves_a_model_that_loads(pipe, tmp_path, short, monkeypatch):
    shown, genuine = [], footage.sheet
    monkeypatch.setattr(footage, "sheet", lambda rows, path: shown.append(rows) or genuine(rows, path))
    report = run(pipe, tmp_path / "out", judge=2)
    again = minit2v.load(tmp_path / "out")
    assert all(torch.equal(p, q) for p, q in zip(pipe.unet.parameters(), again.unet.parameters()))
    assert again.config.num_frames == 3 and (again.config.height, again.config.width) == (16, 16)
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
    assert (tmp_path / "out" / "before_after.png").stat().st_size > 500
    assert len(report["prompts"]) == 2 and report["changed"] > 0
    options = {"num_inference_steps": 2, "sampler": "ddim", "progress": False, "seed": [0, 1]}
    clips = again(report["prompts"], **options)
    energy = ((clips[:, 1:].double() - clips[:, :-1].double()).abs().mean() / 255).item()
    assert report["after"]["motion energy"] == pytest.approx(energy, rel=1e-4)
    (tmp_path / "fresh").mkdir()
    before = make_pipe(tmp_path / "fresh")(report["prompts"], **options)
    assert report["changed"] == pytest.approx(((clips.double() - before.double()).abs().mean() / 255).item(), rel=1e-4)
    log = [line["loss"] for line in read_log(tmp_path / "out" / "run")]
    assert report["loss"] == [log[0], log[-1]] and log[0] != log[-1]
    data = examples.of_clips(make_pipe(tmp_path), moving(), CAPTIONS, progress=False)
    real = beforeafter.real(again, data, report["prompts"])[0]
    rows, = shown
    assert [title for title, _ in rows] == [f"{kind}: {prompt}" for prompt in report["prompts"]
                                            for kind in ("before", "after", "yours")]
    for i, (_, clip) in enumerate(rows):
        assert torch.equal(clip, (before, clips, real)[i % 3][i // 3])


def test_the_clip_beside_a_prompt_is_the_one_with_this_caption(pipe):
    """Its middle, through the autoencoder; the figures are those of these clips."""
    clips = moving(frames=9)
    data = examples.of_clips(pipe, clips, CAPTIONS, progress=False)
    found, figures = beforeafter.real(pipe, data, [CAPTIONS[2], CAPTIONS[0]])
    for one, clip in zip(found, (clips[2], clips[0])):
        expected = beforeafter.metrics.through_autoencoder(pipe, clip[None])[0, 3:6]
        assert (one.float() - expected.float()).abs().mean() < 2         # the latents were kept in half precision
    energy = (found[:, 1:].double() - found[:, :-1].double()).abs().mean() / 255
    assert figures == {"motion energy": pytest.approx(float(energy), rel=1e-4)}


def test_what_the_referee_finds_right_is_counted():
    """Real clips of known scenes: all right; asked for another colour; of two things, and of nothing."""
    scenes = beforeafter.metrics.judging_scenes(1, "train", 4)
    clips = beforeafter.metrics.draw(scenes)
    asked = [{a: getattr(scene.things[0], a) for a in beforeafter.ATTRIBUTES} for scene in scenes]
    assert beforeafter._share(clips, asked, 8) == dict.fromkeys((*beforeafter.ATTRIBUTES, "all"), 1.0)
    asked[1] = {**asked[1], "colour": "none"}
    assert beforeafter._share(clips, asked, 8) == {"colour": 0.75, "shape": 1.0, "motion": 1.0, "all": 0.75}
    two = beforeafter.metrics.judging_scenes(2, "train", 4)
    asked = [{a: getattr(scene.things[0], a) for a in beforeafter.ATTRIBUTES} for scene in two]
    assert beforeafter._share(beforeafter.metrics.draw(two), asked, 8)["all"] == 0


def test_of_captions_about_moving_shapes_the_report_says_what_is_right_and_of_how_many(tmp_path, short, monkeypatch):
    """Two clips of the world, and one with a caption that is not of it. In the data, through the autoencoder that
    comes along, all is as the captions say; made in two steps of sampling, it need not be.
    """
    monkeypatch.setattr(beforeafter, "KNOWN", 1)
    scenes = beforeafter.metrics.judging_scenes(1, "train", 2)
    clips = beforeafter.metrics.draw(scenes)
    words = [*(caption(scene, random.Random(0), "en") for scene in scenes), "a dog runs"]
    report = finetune.finetune(minit2v.load(), [*clips, clips[0]], words, replace(PLAN, steps=1, batch=1),
                               tmp_path / "out", judge=3, progress=False)
    assert sorted(report["prompts"]) == sorted(words)
    shares = [f"asked: {name}" for name in (*beforeafter.ATTRIBUTES, "all")]
    assert report["data"].items() >= {"asked: captions": 2, **dict.fromkeys(shares, 1.0)}.items()
    for found in (report["before"], report["after"]):
        assert found["asked: captions"] == 2 and all(found[name] in (0, 0.5, 1) for name in shares)
    assert "| asked: captions | 2 | 2 | 2 |" in beforeafter.table(report["before"], report["after"], report["data"])


def test_what_the_mini_model_still_knows_is_read_at_its_own_rate(tmp_path, monkeypatch):
    """A model that draws what it is asked for: all that it knew is right, whatever the rate of the data."""
    pipe = make_pipe(tmp_path, name="mini")
    scenes = beforeafter.metrics.judging_scenes(1, "train", beforeafter.KNOWN)

    def draws(pipe, prompts, progress, **sizes):
        return torch.stack(moving(len(prompts))) if sizes else beforeafter.metrics.draw(scenes)

    monkeypatch.setattr(beforeafter, "_make", draws)
    data = examples.of_clips(pipe, moving(), CAPTIONS, fps=2, progress=False)
    _, found = beforeafter.look(pipe, data, CAPTIONS[:1], progress=False)
    assert {name: value for name, value in found.items() if name.startswith("known")} == {
        f"known: {name}": 1.0 for name in ("colour", "shape", "motion", "all")}


def test_lora_is_added_to_a_model_by_file(pipe, tmp_path):
    run(pipe, tmp_path / "out", learns="lora", rank=2)
    inputs = torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(1, 16, 16)
    expected = pipe.unet(*inputs)
    with pytest.raises(ValueError, match="LoRA adapters beside its weights"):
        pipe.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="LoRA adapters already"):
        run(pipe, tmp_path / "again", learns="lora")
    fresh = make_pipe(tmp_path)
    plain = fresh.unet(*inputs)
    fresh.load_lora(tmp_path / "out" / "lora.safetensors")
    assert torch.allclose(fresh.unet(*inputs), expected, atol=1e-4) and not lora.adapters(fresh.unet)
    assert (plain - expected).abs().max() > 1e-3
    twice = make_pipe(tmp_path).load_lora(tmp_path / "out" / "lora.safetensors", scale=0.0)
    assert torch.allclose(twice.unet(*inputs), plain, atol=1e-4)
    fresh.save(tmp_path / "saved")
    again = minit2v.load(tmp_path / "saved").unet.state_dict()
    assert all(torch.equal(p, again[name]) for name, p in fresh.unet.state_dict().items())


@pytest.mark.parametrize("learns", ["all", "lora"])
def test_the_files_of_the_model_stay_as_they_are(tmp_path, learns):
    """Weights are mapped from their file; what learns must be another copy."""
    folder = make_pipe(tmp_path).save(tmp_path / "model")
    before = (folder / "unet.safetensors").read_bytes()
    run(minit2v.load(folder), tmp_path / "out", learns=learns)
    assert (folder / "unet.safetensors").read_bytes() == before


# --- resuming ---

@pytest.mark.parametrize("learns", ["all", "lora"])
def test_a_run_that_is_interrupted_and_resumed_is_the_run_that_was_not(tmp_path, monkeypatch, short, learns):
    options = {"learns": learns, "judge": 2, "image_share": 0.3, "rank": 2}
    whole = make_pipe(tmp_path)
    expected = run(whole, tmp_path / "whole", **options)
    genuine, calls = finetune.denoising_loss, []

    def dying(*arguments, **more):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return genuine(*arguments, **more)

    looks, look = [], beforeafter.look
    monkeypatch.setattr(beforeafter, "look", lambda *given: looks.append(None) or look(*given))
    monkeypatch.setattr(finetune, "denoising_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(make_pipe(tmp_path), tmp_path / "out", **options)
    resumed = make_pipe(tmp_path)
    assert run(resumed, tmp_path / "out", **options) == expected
    assert len(calls) == 4 + 4                                        # it went on from step 2, of 6
    assert len(looks) == 2                                            # before was looked at once, and then after
    assert all(torch.equal(p, q) for p, q in zip(whole.unet.parameters(), resumed.unet.parameters()))


def test_another_run_in_the_same_folder_is_refused(pipe, tmp_path):
    run(pipe, tmp_path / "out")
    with pytest.raises(ValueError, match="holds another run: there learns is 'all'.* here learns is 'spatial'"):
        run(make_pipe(tmp_path), tmp_path / "out", learns="spatial")
    other = make_pipe(tmp_path)
    with torch.no_grad():
        other.unet.conv_in.weight.add_(1)
    with pytest.raises(ValueError, match="there model is"):
        run(other, tmp_path / "out")


# --- what is told ---

def figures(energy, **known):
    return {"motion energy": energy, **{f"known: {name}": value for name, value in known.items()}}


@pytest.mark.parametrize("before, after, data, changed, moved, told", [
    (0.02, 0.019, 0.02, 0.05, 0.01, []),
    (0.02, 0.009, 0.02, 0.05, 0.01, ["The picture is freezing"]),
    (0.02, 0.009, 0.008, 0.05, 0.01, ["So do yours"]),
    (0.02, 0.02, 0.02, 0.001, 0.01, ["Nothing to be seen happened"]),
    (0.02, 0.02, 0.02, 0.0, 0.0, ["No weight moved"]),
    (0.02, 0.004, 0.02, 0.002, 0.01, ["The picture is freezing", "Nothing to be seen happened"]),
    (0.012, 0.0065, 0.03, 0.05, 0.01, ["motion energy fell to 0.0065 from 0.0120, and in your clips it is 0.0300"]),
    (0.0005, 0.0005, 0.02, 0.05, 0.01, ["was frozen before and still is: motion energy is 0.0005, was 0.0005"]),
    (0.006, 0.002, 0.02, 0.05, 0.01, ["was frozen before and still is"]),
    (0.002, 0.015, 0.02, 0.05, 0.01, []),                                 # it was frozen, and moves now
    (0.009, 0.007, 0.02, 0.05, 0.01, []),                                 # a little more than a third of the data
    (0.0, 0.0, 0.0, 0.05, 0.01, []),                                      # single frames
])
def test_the_two_usual_failures_are_told(before, after, data, changed, moved, told):
    found = beforeafter.verdict(figures(before), figures(after), figures(data), changed, moved)
    assert len(found) == len(told) and all(words in sentence for words, sentence in zip(told, found))
    assert all("ry " in sentence or "choose" in sentence for sentence in found)          # each says what to try


def test_a_picture_that_was_frozen_and_still_is_is_told(tmp_path, monkeypatch):
    """The mini model is asked for things that stay still, which it draws well; in the clips they do move. One step
    changes nothing of that.
    """
    monkeypatch.setattr(beforeafter, "KNOWN", 1)
    monkeypatch.setattr(beforeafter, "SAMPLING", {"num_inference_steps": 8, "sampler": "dpm++"})
    scenes = beforeafter.metrics.judging_scenes(1, "train", 8)
    clips = beforeafter.metrics.draw(scenes)
    liveliest = beforeafter.metrics.motion_energy(clips).topk(2).indices
    words = [f"a {scenes[i].things[0].colour} {scenes[i].things[0].shape} stays still" for i in liveliest]
    report = finetune.finetune(minit2v.load(), clips[liveliest], words, replace(PLAN, steps=1, batch=1, lr=1e-4),
                               tmp_path / "out", judge=2, progress=False)
    before, after, data = (report[name]["motion energy"] for name in ("before", "after", "data"))
    assert max(before, after) < data / 3, (before, after, data)
    assert report["warnings"][0].startswith(f"The picture was frozen before and still is: motion energy is {after:.4f}")


def test_forgetting_is_told():
    before, after = figures(0.02, colour=1.0, motion=0.9), figures(0.02, colour=0.5, motion=0.9)
    found = beforeafter.verdict(before, after, figures(0.02), 0.1, 0.1)
    assert len(found) == 1 and "known: colour 100% to 50%" in found[0] and "motion" not in found[0]


def test_a_run_that_does_nothing_is_told(pipe, tmp_path, short):
    report = run(pipe, tmp_path / "out", replace(PLAN, lr=1e-9), judge=1)
    assert [note for note in report["warnings"] if "Nothing to be seen happened" in note]


def test_what_a_caption_asks_for():
    """Of 600 captions of one thing all are understood as they were meant; of those of two things, none is."""
    for i in range(600):
        rng = random.Random(i)
        scene, language = sample_scene(rng, rng.choice((1, 1, 3))), rng.choice(("en", "zh"))
        words, thing = caption(scene, rng, language), scene.things[0]
        expected = {"colour": thing.colour, "shape": thing.shape, "motion": thing.motion}
        assert beforeafter.meant(words) == (expected if len(scene.things) == 1 else None), words
        assert beforeafter.meant(caption(sample_scene(rng, 2), rng, language)) is None
    assert beforeafter.meant("a dog runs") is beforeafter.meant("a red circle") is beforeafter.meant("") is None


@pytest.mark.parametrize("options, says", [
    ({"learns": "nothing"}, "learns is 'nothing'; choose one of all, temporal, spatial, lora"),
    ({"image_share": 1.5}, "image_share is 1.5"),
    ({"drop": -0.1}, "drop is -0.1"),
    ({"min_snr": 0.0}, "min_snr is 0.0"),
    ({"learns": "lora", "layers": "nowhere"}, "'nowhere', which is neither one of all, spatial, cross, temporal nor "
                                              "fits.*no linear layer has a name that matches 'nowhere'"),
    ({"learns": "lora", "layers": "("}, r"'\(' is no regular expression"),
    ({"learns": "lora", "rank": 1000}, "rank is 1000"),
])
def test_what_does_not_fit_is_named_and_nothing_is_written(pipe, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        run(pipe, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_clips_that_do_not_fit(pipe, tmp_path):
    for clips, captions, says in [
            (moving(), CAPTIONS[:2], "3 clips and 2 captions"), ([], [], "0 clips"),
            ([clip.float() for clip in moving()], CAPTIONS, "must be uint8"),
            (moving(2) + moving(1, size=24), CAPTIONS, "of one size"),
            (moving(size=18), CAPTIONS, "height is 18 pixels, but must be a multiple of 4.*; try 16")]:
        with pytest.raises(ValueError, match=says):
            finetune.finetune(pipe, clips, captions, PLAN, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="too coarse"):
        run(make_pipe(tmp_path).to(dtype=torch.bfloat16), tmp_path / "out")


# --- examples on disk ---

def folder_of_films(folder: Path, seconds: float = 4.0) -> Path:
    folder.mkdir(parents=True)
    for i, words in enumerate(CAPTIONS):
        video.save(moving(3, int(8 * seconds), 32)[i], folder / f"{i}.mp4", fps=8)
        (folder / f"{i}.txt").write_text(words)
    return folder


def test_films_are_encoded_once(pipe, tmp_path, monkeypatch):
    films, _ = footage.scan(folder_of_films(tmp_path / "films"), 3, 8, progress=False)
    size = {"num_frames": 3, "fps": 8, "height": 16, "width": 16, "progress": False}
    data, failed = examples.of_films(pipe, films, tmp_path / "cache", **size)
    assert not failed and data.captions == CAPTIONS and data.shape == (4, 3, 8, 8) and len(data) == 3
    assert all(x.shape == (32, 4, 8, 8) and x.dtype == torch.float16 for x in data.latents)
    expected = pipe.autoencoder.encode(examples.to_model(footage.read_clip(films[1], 32, 8, 16, 16)[None]))[0]
    assert torch.allclose(data.latents[1].movedim(0, 1).float(), expected, atol=5e-3)
    with torch.no_grad():
        assert torch.allclose(data.contexts["blue square"].float(), pipe.encode_text(["blue square"])[0], atol=5e-3)

    def never(*_):
        raise AssertionError("encoded again")

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(examples, "_encode", never)
        patch.setattr(examples, "_read", never)
        again, _ = examples.of_films(pipe, films, tmp_path / "cache", **size)
        assert all(torch.equal(a, b) for a, b in zip(again.latents, data.latents))
        with pytest.raises(AssertionError):                           # another size is another encoding
            examples.of_films(pipe, films, tmp_path / "cache", **{**size, "height": 24})
        with torch.no_grad():
            pipe.autoencoder.encoder.conv_in.weight[0, 0] += 1        # and another encoder, too
        with pytest.raises(AssertionError):
            examples.of_films(pipe, films, tmp_path / "cache", **size)
        reader = make_pipe(tmp_path)
        with torch.no_grad():
            next(reader.text_encoder.parameters()).add_(1)            # another text encoder
        with pytest.raises(AssertionError):
            examples.of_films(reader, films, tmp_path / "cache", **size)
        patch.setattr(examples, "LONGEST", 8)                         # of a long film, the middle only
        with pytest.raises(AssertionError):
            examples.of_films(make_pipe(tmp_path), films, tmp_path / "cache", **size)
    with monkeypatch.context() as patch:
        patch.setattr(examples, "LONGEST", 8)
        short, _ = examples.of_films(make_pipe(tmp_path), films, tmp_path / "short", **size)
        assert [len(x) for x in short.latents] == [8, 8, 8]
        patch.setattr(examples, "_encode", never)
        with pytest.raises(AssertionError):                           # as many frames, but at another rate
            examples.of_films(make_pipe(tmp_path), films, tmp_path / "short", **{**size, "fps": 4})
        film = films[0].path.read_bytes()
        films[0].path.write_bytes(films[1].path.read_bytes())         # another film of the same name
        with pytest.raises(AssertionError):
            examples.of_films(make_pipe(tmp_path), films[:1], tmp_path / "other", **size)
        films[0].path.write_bytes(film)
    damaged = next(path for path in files if path.name.startswith("text"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    examples.of_films(make_pipe(tmp_path), films, tmp_path / "cache", **size)
    assert {p: p.stat().st_mtime_ns for p in files} | {damaged: 0} == files | {damaged: 0}
    assert damaged.stat().st_size > 50


def test_a_batch_takes_clips_from_random_places():
    latents = [torch.arange(20).view(20, 1, 1, 1).expand(20, 4, 2, 2).half() + 100 * i for i in range(2)]
    texts = {"": torch.zeros(5, 3), "a": torch.ones(5, 3), "b": torch.full((5, 3), 2.0)}
    data = examples.Examples(latents, ["a", "b"], texts, num_frames=4, fps=8)
    clips, context = data.batch(random.Random(0), 200, drop=0.25)
    assert clips.shape == (200, 4, 4, 2, 2) and context.shape == (200, 5, 3) and clips.dtype == torch.float32
    first = clips[:, 0, :, 0, 0]                                      # (200, 4): which frames
    assert torch.equal(first - first[:, :1], torch.arange(4.0).expand(200, 4))
    assert set((first[:, 0] % 100).int().tolist()) == set(range(17))
    said, shown = context[:, 0, 0], first[:, 0] // 100
    assert 0.15 < (said == 0).float().mean() < 0.35 and torch.equal(said[said > 0], shown[said > 0] + 1)
    assert data.batch(random.Random(0), 5, num_frames=1)[0].shape == (5, 4, 1, 2, 2)
    assert data.middle(1)[0, 0, :, 0, 0].tolist() == [108, 109, 110, 111]


# --- the command ---

def command(*argv) -> int:
    return cli.main(["finetune", *map(str, argv)])


QUICK = ("--steps", 4, "--batch", 2, "--judge", 2, "--save-every", 2, "--lr", 0.01)


def test_the_command_on_a_folder(tmp_path, capsys, short):
    weights = make_pipe(tmp_path).save(tmp_path / "model")
    films = folder_of_films(tmp_path / "films")
    (films / "bad.mp4").write_bytes(b"nothing")
    (films / "bad.txt").write_text("bad")
    assert command("--data", films, "--out", tmp_path / "out", "--weights", weights, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "3 films to learn from, 1 left out" in out and "left out: bad.mp4: " in out
    assert re.search(r"  3: '.*'; .* [\d.]+ dB", out)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["data.png"]

    assert command("--data", films, "--out", tmp_path / "out", "--weights", weights, "--rank", 2, *QUICK) == 0
    out = capsys.readouterr().out
    assert "| motion energy |" in out and f"--lora {tmp_path / 'out' / 'lora.safetensors'}" in out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["steps"] == 4

    clips = {}
    for name, more in (("plain", []), ("taught", ["--lora", str(tmp_path / "out" / "lora.safetensors")])):
        assert cli.main(["generate", "blue square", "--weights", str(weights), "--num-inference-steps", "2",
                         "-o", str(tmp_path / f"{name}.webp"), *more]) == 0
        clips[name] = video.load(tmp_path / f"{name}.webp")
    assert not torch.equal(clips["plain"], clips["taught"])
    assert video.read_settings(tmp_path / "taught.webp")["lora"] == ["lora.safetensors"]

    assert command("--data", films, "--out", tmp_path / "whole", "--weights", weights, "--learns", "temporal",
                   "--num-frames", 2, "--fps", 4, "--height", 24, "--min-snr", 5, *QUICK) == 0
    config = minit2v.load(tmp_path / "whole").config
    assert (config.num_frames, config.fps, config.height, config.width) == (2, 4, 24, 16)


@pytest.mark.parametrize("argv, says", [
    (["--data", "none"], "there is no folder 'none'"),
    (["--data", "films", "--out", "model"], "the result needs a folder of its own"),
    (["--data", "films", "--height", "18"], "height is 18 pixels"),
    (["--data", "empty"], "there is no film"),
    (["--data", "films", "--layers", "nowhere"], "layers is 'nowhere', which is neither one of all, spatial"),
    (["--data", "films", "--rank", "999"], "rank is 999"),
    (["--data", "films", "--layers", "temporal", "--image-share", "0.5"], "nothing that learns here sees single"),
])
def test_failures_of_the_command(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    make_pipe(tmp_path).save(tmp_path / "model")
    folder_of_films(tmp_path / "films")
    (tmp_path / "empty").mkdir()
    assert command("--weights", "model", *(["--out", "out"] if "--out" not in argv else []), *argv) == 1
    err = capsys.readouterr().err
    assert says in err.partition("minit2v: error: ")[2] and "Traceback" not in err      # after a progress bar, perhaps
    assert not (tmp_path / "out").exists()               # nothing has been encoded yet, neither a film nor a caption


def test_choices_of_the_command_are_those_of_the_library():
    from minit2v import cli_finetune
    assert tuple(cli_finetune.RATES) == tuple(finetune.LEARNS) and cli_finetune.LAYERS == tuple(finetune.LAYERS)


def test_killed_at_any_moment_the_same_command_goes_on(tmp_path):
    """A process that is killed while it trains; then the command again; then one that nobody kills, to compare."""
    weights = make_pipe(tmp_path).save(tmp_path / "model")
    films = folder_of_films(tmp_path / "films")

    def start(out):
        argv = ["finetune", "--data", films, "--out", tmp_path / out, "--weights", weights, "--learns", "all",
                "--steps", 40, "--batch", 2, "--judge", 1, "--save-every", 2, "--cache", tmp_path / "cache"]
        return subprocess.Popen([sys.executable, "-m", "minit2v.cli", *map(str, argv)], stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})

    process = start("killed")
    while not (tmp_path / "killed" / "run" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()
    assert start("killed").wait() == 0 and start("whole").wait() == 0
    one, two = (load_file(tmp_path / out / "unet.safetensors") for out in ("killed", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert [line["step"] for line in read_log(tmp_path / "killed" / "run") if "loss" in line] == [20, 40]


# --- the released kind ---

def test_a_model_of_the_released_kind(tmp_path, short, capsys):
    """Small, but in diffusers' layout, with CLIP's vocabulary, predicted noise, dropout and 77 tokens."""
    config = ModelConfig(
        autoencoder=AutoencoderConfig(channels=8, multipliers=(1, 2), res_blocks=1, norm_groups=4),
        text=TextConfig(width=64, heads=1, layers=2),
        unet=UNetConfig(channels=16, multipliers=(1, 2), res_blocks=1, attention=(True, False), head_dim=8,
                        context_dim=64, norm_groups=4),
        num_frames=4, height=16, width=16)
    torch.manual_seed(0)
    TextToVideo(config, **networks(config)).save(tmp_path / "ours")
    weights = convert(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    films = folder_of_films(tmp_path / "films", seconds=16 / 8)
    common = ("--data", films, "--weights", weights, "--cache", tmp_path / "cache", *QUICK, "--num-frames", 4)
    assert command("--out", tmp_path / "lora", "--layers", "temporal", *common) == 0
    assert command("--out", tmp_path / "all", "--learns", "all", "--image-share", 0.5, "--dtype", "bfloat16",
                   "--checkpointing", "--accumulate", 2, *common) == 0
    pipe = minit2v.load(weights).load_lora(tmp_path / "lora" / "lora.safetensors")
    assert pipe.config.diffusion.prediction == "noise" and pipe.config.text.context_length == 77
    taught = minit2v.load(tmp_path / "all")
    assert taught.config.text.merges is None and taught("a cat", num_inference_steps=2, progress=False).shape[0] == 4
    stored = load_file(tmp_path / "lora" / "lora.safetensors")
    assert all(key.startswith("unet.") and "temp_attentions" in key or "transformer_in" in key for key in stored)
    convert(tmp_path / "all", tmp_path / "back", "diffusers")
