"""A model in another layout: the peers' own classes load it, strictly, and answer as the model we came from."""

import gc
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_layouts import (
    INDEX,
    PARTS,
    UNET,
    VAE,
    modelscope,  # noqa: F401  (a fixture, as are peers, plain and states)
    modelscope_states,
    peers,  # noqa: F401
    plain,  # noqa: F401
    randomise,
    states,  # noqa: F401
)
from test_pipeline import make_pipe

import minit2v
from minit2v import cli, convert, layouts
from minit2v.config import AutoencoderConfig, ModelConfig, TextConfig, UNetConfig
from minit2v.pipeline import TextToVideo, networks
from minit2v.text import Tokenizer

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
PROMPTS = ["", "a red circle moves right", "It's 2 squares: don't blink...", "一个红色的小圆", "emoji 🎈 flies up",
           "a small red circle moves quickly to the right and a big blue square moves slowly up " * 6]


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def as_diffusers(modelscope, tmp_path_factory):  # noqa: F811
    return convert.convert(modelscope, tmp_path_factory.mktemp("converted") / "diffusers", "diffusers")


@pytest.mark.parametrize("source, size, steps", [("modelscope", (2, 64, 64), 2), ("small", (5, 16, 24), 4)])
def test_diffusers_own_pipeline_loads_it_and_makes_the_same_clip(request, tmp_path, source, size, steps):
    """From ModelScope's files, or ours, to diffusers' TextToVideoSDPipeline, end to end, with one start noise."""
    folder = convert.convert(request.getfixturevalue(source), tmp_path / "diffusers", "diffusers")
    theirs = diffusers.TextToVideoSDPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours, seen = minit2v.load(folder), []
    decode = ours.autoencoder.decode
    ours.autoencoder.decode = lambda latents, *args: seen.extend([latents, decode(latents, *args)]) or seen[1]
    assert type(theirs.scheduler).__name__ == "DDIMScheduler" and theirs.scheduler.config.steps_offset == 1
    cell, (frames, height, width) = ours.config.autoencoder.downscale, size
    noise = torch.randn(1, 4, frames, height // cell, width // cell, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "negative_prompt": "blue", "latents": noise}
    clip = ours("a red circle", progress=False, **options)                        # (F, H, W, 3)
    options |= {"num_frames": frames, "height": height, "width": width}
    latents = theirs("a red circle", output_type="latent", **options).frames      # (1, 4, F, h, w)
    assert (seen[0] - latents).abs().max() <= 1e-4 * latents.abs().max()
    expected = theirs("a red circle", output_type="pt", **options).frames[0]      # (F, 3, H, W), 0 to 1
    found = (seen[1][0].movedim(0, 1) / 2 + 0.5).clamp(0, 1)                      # (3, F, H, W), -1 to 1
    assert expected.std() > 0.08 and (found - expected).abs().max() <= 1e-4
    assert (clip.float() - (expected.permute(0, 2, 3, 1) * 255).round()).abs().max() <= 1        # a step of rounding


def test_their_tokenizer_is_ours(as_diffusers):
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(as_diffusers / "tokenizer"), Tokenizer(
        minit2v.modelscope_1_7b().text)
    with pytest.warns(UserWarning, match="cut off"):
        expected = ours(PROMPTS)
    found = theirs(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert found.shape == (len(PROMPTS), 77) and torch.equal(found, expected)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Our layout, two levels, every number random: whatever all three layouts can say."""
    config = ModelConfig(
        name="small", num_frames=16, height=256, width=256,
        autoencoder=AutoencoderConfig(channels=32, multipliers=(1, 2), res_blocks=1),
        text=TextConfig(width=64, heads=1, layers=3),
        unet=UNetConfig(channels=32, multipliers=(1, 2), res_blocks=1, attention=(False, True), head_dim=8,
                        context_dim=64))
    parts = {name: randomise(network) for name, network in networks(config).items()}
    return TextToVideo(config, **parts).save(tmp_path_factory.mktemp("small"))


def test_every_way(small, tmp_path):
    """From each layout into each other one, round and round: no setting and no number changes."""
    way, folder = ["minit2v", "diffusers", "modelscope", "minit2v", "modelscope", "diffusers", "minit2v"], small
    assert len(set(zip(way, way[1:]))) == 6
    before = layouts.open_model(small)
    for i, layout in enumerate(way[1:]):
        folder = convert.convert(folder, tmp_path / f"{i} {layout}", layout)
        after = layouts.open_model(folder)
        assert after.layout == layout and not list(tmp_path.glob(".*"))
        assert replace(after.config, name="small") == before.config
    for name in layouts.NETWORKS:
        old, new = before.part(name).tensors(), after.part(name).tensors()
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def test_strict_names_of_modelscope(plain, peers, states, tmp_path):  # noqa: F811
    """What UNetSD, AutoencoderKL and open_clip load strictly: names and shapes by the tables of the released files."""
    folder = convert.convert(plain, tmp_path / "made", "modelscope")
    expected = modelscope_states(peers, states)

    def shapes(state):
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    unet = torch.load(folder / "text2video_pytorch_model.pth", weights_only=True)
    assert shapes(unet) == shapes(expected["unet"])
    assert all(torch.equal(unet[name], tensor) for name, tensor in expected["unet"].items())
    vae = torch.load(folder / "VQGAN_autoencoder.pth", weights_only=True)
    of_vae = {name: t for name, t in expected["autoencoder"]["state_dict"].items() if name.startswith("first_stage")}
    assert shapes(vae["state_dict"]) == shapes(of_vae)
    clip = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    missing, unexpected = peers.tower.load_state_dict(clip, strict=False)
    assert not unexpected and {name.replace("resblocks.2.", "last.").split(".")[1] for name in missing
                               if "." in name} == {"last"}
    settings = json.loads((folder / "configuration.json").read_text())["model"]["model_cfg"]
    assert settings["unet_dim_mult"] == [1, 1, 2, 2] and settings["unet_attn_scales"] == [1, 0.5, 0.25]


def test_peers_load_it_in_half_precision(plain, peers, tmp_path, capsys):  # noqa: F811
    """The peers' own from_pretrained, class by class, finds every tensor, none too many, and the number type asked."""
    made = tmp_path / "made"
    command = ["convert", str(plain), str(made), "--to", "diffusers", "--dtype", "float16", "--json"]
    assert cli.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["folder"] == str(made) and answer["files"].keys() == listing(made).keys()
    for part, cls in zip(PARTS, (diffusers.UNet3DConditionModel, diffusers.AutoencoderKL)):
        network, info = cls.from_pretrained(made / part, torch_dtype=torch.float16, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        state = network.state_dict()
        for name, tensor in getattr(peers, part).state_dict().items():
            assert torch.equal(state[name], tensor.half()), name
    text, info = transformers.CLIPTextModel.from_pretrained(made / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(t.dtype == torch.float16 for path in made.rglob("*.safetensors") for t in load_file(path).values())
    written = {name: json.loads((made / name).read_text()) for name in ("unet/config.json", "vae/config.json")}
    for key, value in UNET.items():
        assert written["unet/config.json"][key] == (list(value) if isinstance(value, tuple) else value)
    assert written["vae/config.json"]["block_out_channels"] == list(VAE["block_out_channels"])


def test_only_one_network_is_in_memory_at_a_time(small, tmp_path, monkeypatch):
    """At the moment one is written, the converted tensors of all others are gone."""
    alive = []

    def convolutions():                                   # where the numbers of all live 4-D tensors are
        return {t.untyped_storage().data_ptr() for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim == 4}

    def count(path, tensors, write=convert.write_tensors):
        gc.collect()
        alive.append(len(convolutions() - before))
        write(path, tensors)

    monkeypatch.setattr(convert, "write_tensors", count)
    gc.collect()
    before = convolutions()
    convert.convert(small, tmp_path / "made", "minit2v", torch.float16)
    networks = layouts.open_model(small).networks
    assert alive == [sum(t.ndim == 4 for t in networks[name].state_dict().values()) for name in layouts.NETWORKS]
    assert alive[0] == 0 < alive[1] and alive[2] > 0      # the text tower has no convolutions


# --- what cannot be said, and what must not happen ---

def test_our_mini_model(tmp_path):
    """It has one head at its input where diffusers builds eight, and a tokenizer of its own."""
    with pytest.raises(ValueError, match="(?s)diffusers cannot express.*unet.input_heads is 1, there it would be 8"):
        convert.convert(layouts.WEIGHTS, tmp_path / "made", "diffusers")
    with pytest.raises(ValueError) as caught:
        convert.convert(layouts.WEIGHTS, tmp_path / "made", "modelscope")
    for part in ("unet.norm_groups is 8", "text.heads is 4", "text.merges is", "diffusion.prediction is 'velocity'",
                 "autoencoder.scaling_factor is 2.1055"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    made = convert.convert(layouts.WEIGHTS, tmp_path / "made", "minit2v", torch.float32)
    assert sorted(listing(made)) == ["autoencoder.safetensors", "config.json", "merges.txt.gz",
                                     "text_encoder.safetensors", "unet.safetensors"]
    assert replace(minit2v.load(made).config.text, merges=None) == replace(minit2v.mini().text, merges=None)


def test_a_tokenizer_of_ones_own_goes_along(tmp_path):
    """A small model that diffusers can build: its words are found by transformers' tokenizer and by ours."""
    config = make_pipe(tmp_path).config
    config = replace(config, unet=replace(config.unet, input_heads=8))
    folder = TextToVideo(config, **networks(config)).save(tmp_path / "ours")
    made = convert.convert(folder, tmp_path / "made", "diffusers")
    prompts = ["red circle moves", "blue left", "unheard of"]
    theirs = transformers.CLIPTokenizer.from_pretrained(made / "tokenizer")
    ours = minit2v.load(made)
    found = theirs(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(found, ours.tokenizer(prompts)) and found.shape == (3, 16)
    diffusers.UNet3DConditionModel.from_pretrained(made / "unet")
    back = convert.convert(made, tmp_path / "back", "minit2v")
    options = {"num_frames": 3, "num_inference_steps": 1, "progress": False}      # diffusers has no place for a length
    assert torch.equal(minit2v.load(back)("red", **options), minit2v.load(folder)("red", **options))


def test_nothing_is_overwritten(small, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        assert cli.main(["convert", str(small), str(tmp_path / name), "--to", "minit2v"]) == 1
        assert "is there already; nothing is overwritten" in capsys.readouterr().err
    assert cli.main(["convert", str(small), str(small), "--to", "minit2v"]) == 1
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", ""):
        assert cli.main(["convert", str(small), name, "--to", "minit2v"]) == 1
        assert "'.' is the folder that you are in; give the name of a new one" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "full" / "mine").read_text() == "mine" and (tmp_path / "file").read_text() == "mine"
    capsys.readouterr()
    assert cli.main(["convert", str(small), str(tmp_path / "empty"), "--to", "modelscope"]) == 0
    out = capsys.readouterr().out
    assert "configuration.json: " in out and "all of CLIP" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_a_failure_leaves_nothing(plain, tmp_path, monkeypatch):  # noqa: F811
    broken = shutil.copytree(plain, tmp_path / "broken")
    path = next((broken / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="vae.*is damaged"):
        convert.convert(broken, tmp_path / "made", "minit2v")
    (broken / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no model in"):
        convert.convert(broken, tmp_path / "made", "minit2v")
    with pytest.raises(ValueError, match="layout is 'onnx'; it must be one of minit2v, diffusers, modelscope"):
        convert.convert(plain, tmp_path / "made", "onnx")
    monkeypatch.setitem(convert.FILES["minit2v"], "autoencoder", "no/such/folder.safetensors")    # the last of three
    with pytest.raises(OSError):
        convert.convert(plain, tmp_path / "made", "minit2v")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("argv, message", [
    (["convert", "a"], "DST"), (["convert", "a", "b"], "--to"), (["convert", "a", "b", "--to", "onnx"], "modelscope"),
    (["convert", "a", "b", "--to", "diffusers", "--dtype", "int8"], "float16"), (["inspect", "a", "b"], "b"),
])
def test_bad_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_choices_are_those_of_the_library():
    assert cli.LAYOUTS == tuple(convert.FILES) == tuple(layouts.INDEX) and INDEX["_class_name"] == \
        convert.configfiles.diffusers_files(minit2v.modelscope_1_7b())["model_index.json"]["_class_name"]


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0 and "usage: minit2v " + verb in capsys.readouterr().out
