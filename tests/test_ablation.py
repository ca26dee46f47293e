"""Ablations: equal compute is equal, what is left out is out, and the numbers printed are the numbers stored."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minit2v import ablation, cli, cli_train, metrics, training
from minit2v.ablation import ARMS, CHANCE, TRAINING, bill, flops, leave_out, results, small, table
from minit2v.config import UNetConfig
from minit2v.referee import read
from minit2v.training import read_log
from minit2v.unet import TemporalConv, TemporalTransformer, UNet

TINY = UNetConfig(channels=8, multipliers=(1, 2), res_blocks=1, attention=(False, True), head_dim=8, input_heads=1,
                  context_dim=128, norm_groups=4, dropout=0.0)


@pytest.fixture(scope="module")
def pipe():
    return small()


@pytest.fixture(scope="module")
def world(pipe):
    return ablation.SmallWorld(pipe, 24, progress=False)


def tiny(pipe):
    """The same model with a UNet that hardly costs anything."""
    config = replace(pipe.config, unet=TINY)
    return type(pipe)(config, pipe.text_encoder, UNet(TINY), pipe.autoencoder)


# --- the small world ---

def test_the_small_world_is_readable_and_judged_on_other_scenes(pipe, world):
    """The ceiling: the referee reads eight small frames, also through the autoencoder; else a score means nothing."""
    truth = ablation.scenes(24, "judge")
    assert not set(truth) & set(ablation.scenes(2000, "train")) and world.scenes == ablation.scenes(24, "train")
    config = pipe.config
    clips = ablation.render(truth, num_frames=config.num_frames, fps=config.fps, height=config.height,
                            width=config.width)
    assert clips.shape == (24, 8, 32, 32, 3) and len(read(clips[0], config.fps)) == 1
    assert metrics.accuracy(clips, truth, config.fps)["all"] == 1
    assert metrics.accuracy(metrics.through_autoencoder(pipe, clips), truth, config.fps)["all"] >= 0.95
    triples = {(s.things[0].colour, s.things[0].shape, s.things[0].motion) for s in ablation.scenes(2000, "train")}
    assert CHANCE["all"] == 1 / len(triples) and CHANCE["motion"] == 1 / len({motion for *_, motion in triples})


def test_each_caption_is_encoded_once_and_says_what_the_pipeline_says(pipe, world, monkeypatch):
    texts = ["a red circle grows", "", "一个蓝色的方块变小", ""]
    with torch.inference_mode():
        plain = pipe.encode_text(texts)                                        # (4, L, D)
    assert torch.allclose(world.encode(texts), plain, atol=2e-3 * float(plain.abs().max()))      # kept as halves
    monkeypatch.setattr(pipe, "encode_text", lambda texts: pytest.fail(f"{texts} are encoded again"))
    with torch.autocast("cpu", torch.bfloat16):
        assert world.encode(texts[:2]).shape == (2, *plain.shape[1:])


def test_a_world_speaks_the_languages_it_is_asked_for(world):
    for languages in (("en",), ("zh",), ("en", "zh")):
        _, texts = world.speaking(*languages).batch(random.Random(1), 40)
        found = {"zh" if re.search("[\u4e00-\u9fff]", text) else "en" for text in texts}
        assert found == set(languages)
    assert world.languages == ("en", "zh")


# --- what is left out ---

def test_what_is_left_out_is_the_identity(pipe):
    """A fresh layer that sees time adds zero. So without it a fresh network answers the same, and all else stays."""
    for kinds in ((TemporalConv,), (TemporalTransformer,), (TemporalConv, TemporalTransformer)):
        torch.manual_seed(0)
        unet = UNet(TINY)
        nn.init.normal_(unet.conv_out.weight)
        x, t, context = torch.randn(2, 4, 8, 4, 4), torch.tensor([3, 700]), torch.randn(2, 5, 128)
        before, state = unet(x, t, context), dict(unet.state_dict())
        gone = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
        leave_out(unet, kinds)
        assert gone and torch.allclose(unet(x, t, context), before, atol=1e-5)
        lost = state.keys() - unet.state_dict().keys()
        assert lost == {name for name in state if name.startswith(tuple(f"{prefix}." for prefix in gone))}
        assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_a_network_without_both_cannot_tell_frames_apart(pipe):
    """Then each frame is a picture of its own, whatever the weights: shuffled noise in, shuffled answer out."""
    torch.manual_seed(0)
    unet = UNet(TINY)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.2)
    x, t, context = torch.randn(1, 4, 8, 4, 4), torch.tensor([500]), torch.randn(1, 5, 128)
    order = torch.randperm(8)
    mixed = [torch.allclose(unet(x[:, :, order], t, context), unet(x, t, context)[:, :, order], atol=1e-4)]
    leave_out(unet, (TemporalConv,))
    mixed.append(torch.allclose(unet(x[:, :, order], t, context), unet(x, t, context)[:, :, order], atol=1e-4))
    assert mixed == [False, True]                # attention without positions sees a set of frames, not a sequence


# --- equal compute ---

def test_flops_by_hand(pipe):
    """A network of one convolution and one matrix product, counted with pen and paper."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.text = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Linear(128, 5, bias=False)

        def forward(self, latents, timesteps, context, temporal):
            return self.conv(latents[:, :, 0]).sum() + self.text(context).sum()

    config = replace(pipe.config, height=32, width=32)
    conv, matrix = 2 * (4 * 4) * (6 * 4 * 9), 2 * config.text.context_length * 128 * 5
    assert flops(Net(), config, 8) == 2 * (conv + matrix)        # forward, and the gradient of the weights


def test_every_arm_costs_the_same(pipe):
    bills = {name: bill(arm, pipe.config, ablation.BUDGET) for name, arm in ARMS.items()}
    for name, cost in bills.items():
        arm = ARMS[name]
        assert cost.total <= ablation.BUDGET
        assert cost.total == pytest.approx(ablation.BUDGET, abs=cost.image_flops + cost.clip_flops)
        assert cost.image_steps * cost.image_flops == pytest.approx(arm.image_part * ablation.BUDGET,
                                                                    abs=cost.image_flops)
    recipe = bills["the recipe"]
    for name in ("no temporal convolution", "no temporal attention"):
        assert bills[name].clip_flops < 0.95 * recipe.clip_flops and bills[name].steps > recipe.steps
        assert bills[name].image_flops == recipe.image_flops                  # single frames do not pass there
    assert bills["all layers from the start"].image_steps == 0


def test_a_batch_costs_what_its_clips_cost(pipe):
    """`flops` counts one clip; a step takes so many."""
    unet = UNet(TINY)
    config = replace(pipe.config, unet=TINY)
    with ablation.FlopCounterMode(display=False) as counter:
        unet(torch.zeros(3, 4, 8, 4, 4), torch.zeros(3), torch.zeros(3, 40, 128)).sum().backward()
    assert counter.get_total_flops() == 3 * flops(unet, config, 8)
    assert all(p.grad is None for p in unet.parameters())


# --- two steps of every arm ---

@pytest.fixture(scope="module")
def trained(pipe, world, tmp_path_factory):
    """Every arm, trained for two steps at most, as {name: (pipe, bill, folder)}."""
    out, found = tmp_path_factory.mktemp("arms"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "BATCH", 4)
        patch.setattr(ablation, "IMAGES", 4)
        for name, arm in ARMS.items():
            model = tiny(pipe)
            one = bill(arm, model.config, 1e15)
            budget = (1 if arm.image_part == 0 else 1 / (1 - arm.image_part)) * 2.5 * one.clip_flops
            cost, seconds = ablation.train(arm, model, world, out, name, budget=budget, progress=False)
            assert seconds > 0
            found[name] = model, cost, out / "runs" / f"{name} 0"
    return found


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_learns_what_it_may(trained, name):
    model, cost, folder = trained[name]
    assert read_log(folder)[-1]["step"] == cost.steps >= 2
    fresh = UNet(TINY)
    ablation._initialise(fresh, seed=3)
    leave_out(fresh, ARMS[name].without)
    start, end = fresh.state_dict(), model.unet.state_dict()
    assert start.keys() == end.keys()
    moved = [key for key in end if not torch.equal(start[key], end[key])]
    temporal = [key for key in end if "temporal" in key or "transformer_in" in key]
    assert set(moved) & set(temporal) and set(moved) - set(temporal)
    for kind in ARMS[name].without:
        assert not any(isinstance(module, kind) for module in model.unet.modules())


def test_arms_that_begin_with_the_same_images_share_that_run(trained):
    runs = sorted(path.name for path in next(iter(trained.values()))[2].parent.iterdir())
    assert runs == sorted([*(f"{name} 0" for name in ARMS), "images en zh 0", "images en 0"])


def test_an_arm_is_trained_as_it_says(pipe, world, tmp_path, monkeypatch):
    """Images and clips in its shares, captions in its languages, first weights and batches by its seed; averaged."""
    monkeypatch.setattr(ablation, "BATCH", 4)
    monkeypatch.setattr(ablation, "IMAGES", 6)
    runs, genuine = [], ablation.unet_objective
    texts, encode = [], ablation.SmallWorld.encode

    def listening(process, encoder, clips, batch, share, images):
        runs.append((clips.languages, batch, share, images))
        return genuine(process, encoder, clips, batch, share, images)

    monkeypatch.setattr(ablation, "unet_objective", listening)
    monkeypatch.setattr(ablation.SmallWorld, "encode", lambda self, some: texts.extend(some) or encode(self, some))
    models = []
    english, clips_alone = "English captions only", "no single frames among the clips"
    for name, seed in ((english, 0), (english, 1), (clips_alone, 0)):
        model = tiny(pipe)
        one = bill(ARMS[name], model.config, 1e15)
        budget = 2.5 * one.clip_flops / (1 - ablation.IMAGE_PART)
        ablation.train(ARMS[name], model, world, tmp_path, name, seed, budget=budget, progress=False)
        state = torch.load(tmp_path / "runs" / f"{name} {seed}" / "checkpoint.pt", weights_only=True)
        assert all(torch.equal(p, state["average"][key]) for key, p in model.unet.named_parameters())
        models.append(model.unet.state_dict())
        if name == english:
            assert not any(re.search("[\u4e00-\u9fff]", text) for text in texts) and any(texts)
        texts.clear()
    assert runs[:2] == runs[2:4] == [(("en",), 4, 1.0, 6), (("en",), 4, ablation.IMAGE_SHARE, 6)]
    assert runs[4:] == [(("en", "zh"), 4, 1.0, 6), (("en", "zh"), 4, 0.0, 6)]
    fresh = [UNet(TINY), UNet(TINY)]
    for seed, unet in enumerate(fresh):
        ablation._initialise(unet, seed=3 + 1000 * seed)
    for model, unet in zip(models, fresh):                            # far from one another, near to where it began
        near = [torch.allclose(model[key], p, atol=0.05) for key, p in unet.state_dict().items()]
        assert sum(near) > 0.9 * len(near)
    assert not torch.allclose(models[0]["conv_in.weight"], models[1]["conv_in.weight"], atol=0.05)
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"images en 0", "images en 1", "images en zh 0"} <= names


def test_seconds_are_those_of_all_lives_of_a_run(tmp_path, monkeypatch):
    """A clock that goes on by ten whenever it is looked at: at the start, and at each save."""
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(ablation.time, "process_time", lambda: next(ticks))
    calls, seeds = [], []

    def objective(unet, generator, rng):
        calls.append(None)
        seeds.append(generator.initial_seed())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return unet.conv_in.weight.square().mean(), {}

    plan = replace(ablation.PLAN, steps=6, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        ablation._fit(UNet(TINY), objective, plan, tmp_path / "run", 7, progress=False)
    assert json.loads((tmp_path / "run" / "seconds.json").read_text()) == 10
    _, seconds = ablation._fit(UNet(TINY), objective, plan, tmp_path / "run", 7, progress=False)
    assert seconds == 10 + 20                            # of the first life until its save, and of the second
    assert seeds[0] == training.generators(7, 0)[0].initial_seed()


def test_a_trained_arm_is_judged_on_scenes_of_its_own_in_the_language_that_is_asked(pipe, monkeypatch):
    """A model that draws what it is told, found again by its captions."""
    for language in ("en", "zh"):
        truth, rng = ablation.scenes(6, "judge"), random.Random(f"captions {language}")
        told = {ablation.caption(scene, rng, language): scene for scene in truth}
        config = pipe.config

        def draws(pipe, prompts, **settings):
            return ablation.render([told[prompt] for prompt in prompts], num_frames=config.num_frames, fps=config.fps,
                                   height=config.height, width=config.width)

        monkeypatch.setattr(metrics, "generate", draws)
        assert ablation.judge(pipe, 6, language) == dict.fromkeys(metrics.ATTRIBUTES, 1.0)


def test_a_trained_arm_is_judged(trained):
    model = trained["no temporal attention"][0]
    found = ablation.judge(model, 2, "zh")
    assert list(found) == list(metrics.ATTRIBUTES) and found == ablation.judge(model, 2, "zh")


# --- sampling ---

def test_rows_of_sampling_ask_the_network_as_often_as_they_say(monkeypatch):
    pipe = ablation.load()
    asked, genuine = [], metrics.generate
    monkeypatch.setattr(metrics, "generate", lambda *given, **how: asked.append(how) or genuine(*given, **how))
    rows = [ablation.sample(pipe, sampler, steps, 1.0, 2) for sampler, steps in (("ddpm", 1), ("dpm++", 2))]
    assert [(how["sampler"], how["num_inference_steps"], how["guidance_scale"]) for how in asked] == [
        ("ddpm", 1, 1.0), ("dpm++", 2, 1.0)]
    assert [row["asked"] for row in rows] == [1, 2] and all(row["guidance"] == 1 for row in rows)
    assert {row["clips"] for row in rows} == {2} and all(0 <= row["all"] <= row["colour"] <= 1 for row in rows)


def test_long_chains_get_fewer_clips_but_never_none(monkeypatch):
    monkeypatch.setattr(metrics, "generate", lambda pipe, prompts, *more, on_step, **other: (on_step(0, 0), prompts)[1])
    monkeypatch.setattr(metrics, "accuracy", lambda clips, truth, fps: {"all": len(clips) / 100})
    pipe = SimpleNamespace(config=SimpleNamespace(fps=8))
    counts = [ablation.sample(pipe, "ddim", steps, 4.0, 32)["clips"] for steps in ablation.STEPS]
    assert counts == [32, 32, 32, 32, 32, 26, 16, 8, 8, 8]
    assert ablation.sample(pipe, "ddim", 1000, 4.0, 4)["clips"] == 4


def test_every_setting_is_asked_for_once():
    steps, guidance = ablation.settings("steps", 4.0), ablation.settings("guidance", 4.0)
    assert len(set(steps)) == len(steps) == 3 * len(ablation.STEPS) and {1, 1000} <= {row[1] for row in steps}
    assert {row[2] for row in guidance} >= {1.0, 15.0} and len({row[:2] for row in guidance}) == 1


# --- the command ---

def test_the_command_knows_every_ablation():
    assert cli_train.ABLATIONS == (*TRAINING, "steps", "guidance")
    assert set(sum(TRAINING.values(), ())) == set(ARMS)
    args = cli.build_parser().parse_args(["ablate", "order", "--out", "x", "--seed", "1"])
    assert args.run is cli_train.ablate and args.seed == 1


def test_the_command_makes_each_row_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "settings", lambda name, usual: [("ddim", 1, 1.0), ("dpm++", 1, usual)])
    command = ["ablate", "guidance", "--out", str(tmp_path), "--clips", "1"]
    assert cli.main(command) == 0
    first = (tmp_path / "ablations.json").read_bytes()
    shown = capsys.readouterr().out.strip()
    assert shown == table("guidance", results(tmp_path / "ablations.json"))
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    assert [row["guidance"] for row in json.loads(first)["guidance"]] == [1.0, 4.0]
    monkeypatch.setattr(ablation, "sample", lambda *given: pytest.fail("a row is made again"))
    assert cli.main(command) == 0
    assert (tmp_path / "ablations.json").read_bytes() == first
    (tmp_path / "ablations.json").write_bytes(first.replace(json.loads(first)["guidance"][0]["weights"].encode(), b"0"))
    assert cli.main(command) == 1
    assert re.search("another UNet.*another --out", capsys.readouterr().err)


def test_rows_of_training_are_made_once_for_each_seed(tmp_path, monkeypatch):
    made = []

    def trains(arm, pipe, world, out, name, seed, **options):
        made.append((name, seed, options))
        return bill(arm, pipe.config, ablation.BUDGET), 1.0

    monkeypatch.setattr(ablation, "train", trains)
    monkeypatch.setattr(ablation, "SmallWorld", lambda pipe, count: count)
    monkeypatch.setattr(ablation, "judge", lambda pipe, count, language: dict.fromkeys(metrics.ATTRIBUTES, count / 10))
    for name, seed in (("mixing", 0), ("mixing", 1), ("layers", 0)):
        assert cli.main(["ablate", name, "--out", str(tmp_path), "--seed", str(seed), "--clips", "4", "--dtype",
                         "bfloat16"]) == 0
    assert [(arm, seed) for arm, seed, _ in made] == [
        *((arm, seed) for seed in (0, 1) for arm in TRAINING["mixing"]), *((arm, 0) for arm in TRAINING["layers"][1:])]
    assert all(options == {"autocast": torch.bfloat16} for *_, options in made)
    rows = results(tmp_path / "ablations.json")["training"]
    assert [(row["arm"], row["seed"], row["en"]["all"]) for row in rows] == [(arm, seed, 0.4) for arm, seed, _ in made]


# --- the stored results ---

def test_the_tables_print_the_stored_rows():
    found = results()
    for name, rows in found.items():
        lines = table(name).splitlines()
        assert len(lines) == len(rows) + 3                                    # head, rule, chance
        assert len({line.count("|") for line in lines}) == 1
        for line, row in zip(lines[2:], rows):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            scores = row["en"] if name == "training" else row
            for cell, attribute in zip(cells[6:], metrics.ATTRIBUTES):
                low, high = metrics.wilson(scores[attribute], row["clips"])
                assert cell == f"{100 * scores[attribute]:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def test_the_notebooks_folder_shows_all_stored_rows():
    """ablations.md holds exactly the tables that the stored rows print."""
    text = (Path(__file__).parent.parent / "notebooks" / "ablations.md").read_text(encoding="utf-8")
    printed = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert printed == [table(name) + "\n" for name in results()]


def test_the_figures_whiskers_are_wilsons_own():
    """Above a share of nothing there is an interval, and below it none."""
    below, above = ablation._whiskers([0.0, 1.0, 0.5], [100, 100, 16])
    assert below == pytest.approx([0, 100 * 1.96 ** 2 / (100 + 1.96 ** 2), 100 * metrics.interval(0.5, 16)])
    assert above == pytest.approx([100 * 1.96 ** 2 / (100 + 1.96 ** 2), 0, 100 * metrics.interval(0.5, 16)])


def test_the_stored_training_rows_are_of_equal_compute(pipe):
    rows = results()["training"]
    costs = {name: bill(arm, pipe.config, ablation.BUDGET) for name, arm in ARMS.items()}
    for row in rows:
        cost = costs[row["arm"]]
        assert (row["image_steps"], row["steps"], row["flops"]) == (cost.image_steps, cost.steps, round(cost.total))


def test_a_figure_of_results_and_of_none():
    assert len(ablation.figure().axes) == len(ablation.figure({"training": [], "steps": [], "guidance": []}).axes) == 3
