"""The whole system on a tiny model with random weights: what goes in, what comes out, and what is refused."""

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minit2v import pipeline
from minit2v.config import AutoencoderConfig, ModelConfig, TextConfig, UNetConfig
from minit2v.pipeline import TextToVideo, load, networks
from minit2v.text import learn_merges, write_merges

STEPS = {"num_inference_steps": 4, "progress": False}


def make_pipe(folder, name="tiny") -> TextToVideo:
    """A model of 100,000 random weights, clips of 3 x 16 x 16; the same weights at every call."""
    words = {(word, True): 1 for word in ("red", "circle", "moves", "right", "blue", "square", "left")}
    write_merges(folder / "merges.gz", learn_merges(words, vocab_size=530))
    config = ModelConfig(
        name=name,
        autoencoder=AutoencoderConfig(channels=8, multipliers=(1, 2), res_blocks=1, norm_groups=4, scaling_factor=0.5),
        text=TextConfig(width=16, heads=2, layers=2, context_length=16, vocab_size=530,
                        merges=str(folder / "merges.gz")),
        unet=UNetConfig(channels=16, multipliers=(1, 2), res_blocks=1, attention=(True, False), head_dim=8,
                        input_heads=2, context_dim=16, norm_groups=4, dropout=0.0),
        num_frames=3, height=16, width=16)
    pipe = TextToVideo(config, **networks(config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (pipe.text_encoder, pipe.unet, pipe.autoencoder):
            for key, p in part.named_parameters():                    # zero-initialised ones too: all must matter
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(noise / math.sqrt(p[0].numel()) if p.ndim > 1 else key.endswith("weight") + 0.1 * noise)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return make_pipe(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    return pipe.save(tmp_path_factory.mktemp("saved"))


def last_latents(pipe, prompt, **options):
    """The clean latents that the sampler arrives at, before they are rounded to colours."""
    seen = []
    pipe(prompt, **{**STEPS, **options}, on_step=lambda i, x0: seen.append(x0))
    return seen[-1]


# --- what comes out ---

def test_shapes_and_types(pipe):
    clip = pipe("red circle", **STEPS)
    assert clip.shape == (3, 16, 16, 3) and clip.dtype == torch.uint8 and clip.device.type == "cpu"
    assert clip.float().std() > 5                                     # something is in it
    assert pipe(["red circle"], **STEPS).shape == (1, 3, 16, 16, 3)
    assert pipe(["red circle", ""], num_frames=2, height=8, width=20, **STEPS).shape == (2, 2, 8, 20, 3)
    clip[0] = 0                                                       # the clip belongs to the caller


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("dpm++", 0.0)])
def test_same_seed_same_clip_and_a_batch_equals_each_alone(pipe, sampler, eta):
    options = {"sampler": sampler, "eta": eta, "guidance_scale": 3.0}
    prompts = ["red circle moves right", "blue square", ""]
    torch.manual_seed(1)
    clip = pipe(prompts[0], **options, **STEPS)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(pipe(prompts[0], **options, **STEPS), clip)    # whatever the global generator says
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)                  # which is left alone

    together = last_latents(pipe, prompts, seed=[5, 6, 5], **options)
    for i, seed in enumerate([5, 6, 5]):
        alone = last_latents(pipe, prompts[i], seed=seed, **options)
        assert (together[i] - alone[0]).abs().max() < 1e-4 * alone.abs().max().clamp(min=1)
    assert (together[0] - together[2]).abs().max() > 1e-2             # same seed, another prompt
    same = last_latents(pipe, prompts[:2], seed=5, **options)         # one seed serves every prompt alike
    assert (same[0] - together[0]).abs().max() < 1e-4 * same.abs().max().clamp(min=1)
    assert (last_latents(pipe, prompts[0], seed=6, **options) - together[0]).abs().max() > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_equals_the_originals_loop_written_out(pipe, guidance):
    """ModelScope's DDIM as its specification has it: two separate UNet calls, times counted from 0."""
    pipe = make_pipe_double(pipe)
    x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(7)).double()
    alphas = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    stride = 1000 // 4
    with torch.no_grad():
        cond, uncond = (pipe.text_encoder(pipe.tokenizer([text])) for text in ("red circle", "blue"))
        for t in (1 + torch.arange(0, 1000, stride)).clamp(0, 999).flip(0):
            eps_cond, eps_uncond = (pipe.unet(x, t.view(1), c) for c in (cond, uncond))
            eps = eps_uncond + guidance * (eps_cond - eps_uncond)
            x0 = (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
            previous = alphas[max(int(t) - stride, 0)]
            x = previous.sqrt() * x0 + (1 - previous).sqrt() * eps
        frames = pipe.autoencoder.decode(x)[0]                        # (3, F, H, W)
    expected = ((frames / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 3, 0)
    clip = pipe("red circle", negative_prompt="blue", guidance_scale=guidance, seed=7, **STEPS)
    assert (clip.double() - expected).abs().max() <= 1                # at most one step of rounding


def make_pipe_double(pipe):
    """A copy in float64, so that the fixture stays as it is."""
    parts = networks(pipe.config)
    for name, part in parts.items():
        part.load_state_dict(getattr(pipe, name).state_dict())
    return TextToVideo(pipe.config, **parts).to(dtype=torch.float64)


def test_latents_are_the_start_noise(pipe):
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = pipe("red circle", **STEPS)
    assert torch.equal(pipe("red circle", latents=noise[None], seed=99, **STEPS), clip)
    wide = torch.randn(1, 4, 2, 4, 12, generator=torch.Generator().manual_seed(0))
    assert pipe("red circle", latents=wide, **STEPS).shape == (2, 8, 24, 3)                   # sizes follow


def test_both_roundings(pipe):
    """The same decoded numbers, computed here, to the nearest colour or cut off as in the original."""
    with torch.inference_mode():
        frames = pipe.autoencoder.decode(last_latents(pipe, "red circle", sampler="dpm++"))[0]     # ends at x0 itself
    levels = (frames.clamp(-1, 1) + 1).permute(1, 2, 3, 0) * 127.5                                # (F, H, W, 3)
    for rounding, expected in (("round", levels.round()), ("truncate", levels.floor())):
        clip = pipe("red circle", sampler="dpm++", rounding=rounding, **STEPS)
        assert (clip.float() - expected).abs().max() <= 1 and (clip.float() != expected).float().mean() < 0.01
    assert 0.3 < (levels.round() != levels.floor()).float().mean() < 0.7


def test_both_spacings(pipe):
    """Three steps do not divide 1000: the original visits 999, 667, 334 and 1, diffusers 667, 334 and 1."""
    counts = {}
    for spacing in ("modelscope", "leading"):
        seen = []
        pipe("red circle", spacing=spacing, num_inference_steps=3, progress=False, on_step=lambda i, x0: seen.append(i))
        counts[spacing] = len(seen)
    assert counts == {"modelscope": 4, "leading": 3}
    four = {name: pipe("red circle", spacing=name, **STEPS) for name in ("modelscope", "leading", "linspace")}
    assert torch.equal(four["modelscope"], four["leading"])           # 4 divides 1000: one list
    assert not torch.equal(four["modelscope"], four["linspace"])


def test_guidance_and_negative_prompt_matter(pipe):
    plain = last_latents(pipe, "red circle", guidance_scale=1.0)
    assert (last_latents(pipe, "red circle", guidance_scale=4.0) - plain).abs().max() > 1e-2
    against = last_latents(pipe, "red circle", guidance_scale=4.0, negative_prompt="blue square")
    assert (against - last_latents(pipe, "red circle", guidance_scale=4.0)).abs().max() > 1e-2
    # against itself there is nothing to gain: u + g (u - u) = u, whatever g
    itself = last_latents(pipe, "red circle", guidance_scale=4.0, negative_prompt="red circle")
    assert (itself - plain).abs().max() < 1e-4 * plain.abs().max()
    each = last_latents(pipe, ["red circle"] * 2, guidance_scale=4.0, negative_prompt=["blue square", "red circle"])
    assert (each[0] - against[0]).abs().max() < 1e-4 * against.abs().max()
    assert (each[1] - itself[0]).abs().max() < 1e-4 * itself.abs().max()


def test_on_step_sees_every_step(pipe):
    seen = []
    pipe(["red", "blue"], num_inference_steps=5, progress=False, on_step=lambda i, x0: seen.append((i, x0.shape)))
    assert seen == [(i, (2, 4, 3, 8, 8)) for i in range(5)]


def test_the_size_of_frames_is_checked_in_one_place(pipe):
    """By the autoencoder's factor of 2 and the UNet's of 2; what is nearest is said for each side."""
    assert pipe.size_multiple == 4
    pipe.check_size(16, 4)
    for size, says in (((16, 18), "width is 18 pixels.*try 16"), ((3, 16), "height is 3 pixels.*try 4"),
                       ((19, 16), "try 20"), ((0, 16), "height is 0.*at least 1"), ((16, 8.0), "width is 8.0.*whole")):
        with pytest.raises(ValueError, match=says):
            pipe.check_size(*size)


def test_half_precision_stays_near(pipe, saved):
    half = load(saved, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    exact = last_latents(pipe, "red circle", guidance_scale=1.0)
    near = last_latents(half, "red circle", guidance_scale=1.0)
    assert near.dtype == torch.float32                                # the sampler's own state is not rounded
    assert 0 < (near - exact).abs().mean() < 0.1 * exact.abs().mean()


# --- what is refused, and what is only warned of ---

@pytest.mark.parametrize("options, message", [
    ({"height": 18}, r"height is 18 pixels.*multiple of 4.*try 16"),
    ({"width": 1}, r"width is 1 pixels.*try 4"),
    ({"width": 0}, r"width is 0.*at least 1"),
    ({"num_frames": 0}, r"num_frames is 0.*at least 1"),
    ({"num_frames": -3}, r"num_frames is -3"),
    ({"num_frames": 2.5}, r"num_frames is 2.5.*whole number"),
    ({"num_inference_steps": 0}, r"num_inference_steps is 0.*from 1 to 1000"),
    ({"num_inference_steps": 1001}, r"num_inference_steps is 1001"),
    ({"sampler": "euler"}, r"'euler' is unknown.*ddim, ddpm, dpm\+\+"),
    ({"spacing": "wide"}, r"'wide' is unknown.*linspace"),
    ({"rounding": "up"}, r"\"round\" or \"truncate\", not 'up'"),
    ({"guidance_scale": float("nan")}, r"guidance_scale is nan.*finite"),
    ({"guidance_scale": float("inf")}, r"guidance_scale is inf"),
    ({"eta": 1.5}, r"eta is 1.5.*between 0 and 1"),
    ({"eta": 0.5, "sampler": "dpm++"}, r"eta is 0.5.*only ddim"),
    ({"seed": -1}, r"seed is -1"),
    ({"seed": 1.5}, r"seed is 1.5.*whole number"),
    ({"seed": [1, 2]}, r"2 seeds for 1 prompts"),
    ({"prompt": []}, r"prompt is \[\]"),
    ({"prompt": 7}, r"prompt is 7.*string"),
    ({"negative_prompt": ["a", "b"]}, r"2 strings as negative_prompt for 1 prompts"),
    ({"latents": torch.zeros(4, 3, 8, 8)}, r"latents have shape \(4, 3, 8, 8\).*frames, height, width"),
    ({"latents": torch.zeros(2, 4, 3, 8, 8)}, r"must be \(1, 4, 3, 8, 8\)"),
    ({"latents": torch.zeros(1, 4, 3, 8, 8), "num_frames": 5}, r"for 1 prompts of 5 frames.*\(1, 4, 5, 8, 8\)"),
    ({"latents": torch.zeros(1, 4, 3, 7, 8)}, r"height is 14 pixels"),
    ({"latents": torch.full((1, 4, 3, 8, 8), float("nan"))}, r"NaN"),
])
def test_bad_input_is_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "red", **STEPS, **options})


def test_nan_that_arises_on_the_way_is_no_black_clip(pipe):
    broken = make_pipe_double(pipe)
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        broken("red", **STEPS)


def test_over_long_prompt_says_what_was_cut(pipe):
    with pytest.warns(UserWarning, match="cut off.*square"):
        long = pipe("red circle moves right red circle moves right red circle blue square", **STEPS)
    assert long.shape == (3, 16, 16, 3)


def test_mini_names_words_that_it_does_not_know(tmp_path):
    mini = make_pipe(tmp_path, name="mini")
    with pytest.warns(UserWarning, match="'dragon'.*circle") as caught:
        assert mini(["a red dragon", "a dragon"], **STEPS).shape == (2, 3, 16, 16, 3)
    assert len(caught) == 1 and caught[0].filename == __file__        # it points at the caller's line
    with pytest.warns(UserWarning, match="'🔴', '➡', 'dragon' and") as caught:         # signs alone; what not to show
        mini("🔴 ➡️", negative_prompt="a dragon", **STEPS)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="saw '→' and"):
        mini("a red circle → right", **STEPS)
    with pytest.warns(UserWarning, match=r"saw '\?', '!' and"):
        mini("?!", **STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mini(["a red circle moves right", "", "A red (circle)!", "一个圆，"], negative_prompt="blue.", **STEPS)
        make_pipe(tmp_path, name="other")("a red dragon", **STEPS)    # others know more words than we do


# --- weights on disk ---

def test_saved_and_loaded_is_the_same_model(pipe, saved):
    assert sorted(p.name for p in saved.iterdir()) == ["autoencoder.safetensors", "config.json", "merges.gz",
                                                       "text_encoder.safetensors", "unet.safetensors"]
    assert json.loads((saved / "config.json").read_text())["text"]["merges"] == "merges.gz"    # no path of this machine
    again = load(saved)
    assert torch.equal(again("red circle", **STEPS), pipe("red circle", **STEPS))
    for name in pipeline.NETWORKS:
        network = getattr(again, name)
        assert not network.training and all(p.device.type == "cpu" for p in network.state_dict().values())
        assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(load(again.save(saved.parent / "copy"))("red", **STEPS), pipe("red", **STEPS))


def test_half_size_on_disk_full_precision_in_memory(pipe, saved, tmp_path):
    pipe.save(tmp_path / "half", dtype=torch.float16)
    file, half_file = saved / "unet.safetensors", tmp_path / "half" / "unet.safetensors"
    assert half_file.stat().st_size < 0.65 * file.stat().st_size
    again = load(tmp_path / "half")
    assert again.dtype == torch.float32
    for key, tensor in again.unet.state_dict().items():
        assert torch.equal(tensor, pipe.unet.state_dict()[key].half().float())
    assert load(tmp_path / "half", dtype=torch.float16).dtype == torch.float16


def test_loaded_weights_can_be_trained_and_the_file_stays(saved):
    before = (saved / "unet.safetensors").read_bytes()
    network = load(saved).unet
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert (saved / "unet.safetensors").read_bytes() == before


def test_save_leaves_the_old_model_if_it_fails(pipe, tmp_path):
    folder = pipe.save(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    broken = make_pipe_double(pipe)
    broken.config = replace(broken.config, text=replace(broken.config.text, merges=str(tmp_path / "gone.gz")))
    with pytest.raises(FileNotFoundError):
        broken.save(folder)
    class Unsaveable(torch.nn.Linear):
        def state_dict(self):
            raise RuntimeError("disk full")
    broken = make_pipe_double(pipe)
    broken.autoencoder = Unsaveable(1, 1)                             # the last of the three: two are written already
    with pytest.raises(RuntimeError, match="disk full"):
        broken.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_with_a_configuration_is_whole(pipe, tmp_path):
    (tmp_path / "unet.safetensors" / "in the way").mkdir(parents=True)          # this name cannot be replaced
    with pytest.raises(OSError):
        pipe.save(tmp_path)
    assert not (tmp_path / "config.json").exists() and not list(tmp_path.glob(".*"))


def test_no_progress_bar_in_a_log_file(pipe, capsys):
    pipe("red", num_inference_steps=2, progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(path, edit):
    tensors = dict(load_file(path))
    edit(tensors)
    save_file(tensors, path)


def test_missing_files_are_named(copy):
    (copy / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="unet.safetensors' are missing"):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no model in.*config.json"):
        load(copy)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(copy / "nowhere")


def test_a_missing_folder_is_named_before_the_hub(tmp_path, monkeypatch):
    """The README's own --weights runs/mini has the form of an id on the Hub."""
    from huggingface_hub import constants
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConnectionError, match="^there is no folder 'runs/mini' here; as the id of a model on "):
        load("runs/mini")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_named(copy, keep):
    path = copy / "autoencoder.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="autoencoder.safetensors is damaged or cut short"):
        load(copy)


def test_tensors_that_do_not_fit_are_each_named(copy):
    def edit(tensors):
        tensors["conv_ouT.bias"] = tensors.pop("conv_out.bias")
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3].contiguous()
    change(copy / "unet.safetensors", edit)
    with pytest.raises(ValueError) as caught:
        load(copy)
    message = str(caught.value)
    assert "unet.safetensors does not fit" in message
    assert "missing: conv_out.bias (4,)" in message
    assert "unexpected: conv_ouT.bias (the nearest that is expected: conv_out.bias)" in message
    assert "wrong shape: conv_in.weight is (16, 3, 3, 3), expected (16, 4, 3, 3)" in message
    change(copy / "unet.safetensors", lambda tensors: [tensors.pop(key) for key in list(tensors)[:50]])
    with pytest.raises(ValueError, match="and 3[0-9] more"):
        load(copy)


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"nme": "x"}', '{"unet": {"width": 3}}'])
def test_bad_configurations_are_named(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not a model's configuration"):
        load(copy)


def test_tokenizer_of_the_hub(tmp_path, saved):
    config = make_pipe(tmp_path).config
    config = replace(config, text=TextConfig(width=16, heads=2, layers=2))         # CLIP's own vocabulary
    folder = TextToVideo(config, **networks(config)).save(tmp_path / "clip")
    ours, hub = load(folder), load(folder, tokenizer="hub")
    assert torch.equal(ours.encode_text(["red"]), hub.encode_text(["red"]))
    assert not torch.equal(ours.encode_text(["red!"]), hub.encode_text(["red!"]))
    with pytest.raises(ValueError, match="'clip' is unknown; choose one of open_clip, hub"):
        load(folder, tokenizer="clip")
    with pytest.raises(ValueError, match="vocabulary of its own"):
        load(saved, tokenizer="hub")


def test_bad_number_type(saved):
    with pytest.raises(ValueError, match="'int8' is unknown.*float16"):
        load(saved, dtype="int8")
    with pytest.raises(ValueError, match="torch.int64"):
        load(saved, dtype=torch.int64)
