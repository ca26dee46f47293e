"""Weights as people have them: every layout, written by the peers' own classes, loads and gives the peers' numbers."""

import copy
import ctypes
import functools
import gc
import gzip
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_pipeline import make_pipe

import minit2v
from minit2v import cli, inventory, layouts
from minit2v.config import modelscope_1_7b

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from open_clip.transformer import TextTransformer  # noqa: E402

DATA = Path(__file__).parent / "data"
VOCABULARY, WIDTH = 49408, 64
# The released shape of all things, small: the same levels, the same blocks, so the same names.
UNET = {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 8, "cross_attention_dim": WIDTH, "sample_size": 8}
VAE = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
       "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 1, "hidden_act": "gelu"}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
             "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False,
             "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
INDEX = {"_class_name": "TextToVideoSDPipeline", "unet": ["models.unet_3d_condition", "UNet3DConditionModel"],
         "vae": ["nowhere", "AutoencoderKL"]}
MODELSCOPE = {"framework": "pytorch", "model": {
    "type": "latent-text-to-video-synthesis",
    "model_args": {"ckpt_clip": "open_clip_pytorch_model.bin", "ckpt_unet": "text2video_pytorch_model.pth",
                   "ckpt_autoencoder": "VQGAN_autoencoder.pth", "max_frames": 3, "tiny_gpu": 1},
    "model_cfg": {"unet_in_dim": 4, "unet_dim": 32, "unet_y_dim": 768, "unet_context_dim": WIDTH, "unet_out_dim": 4,
                  "unet_dim_mult": [1, 1, 2, 2], "unet_num_heads": 8, "unet_head_dim": 8, "unet_res_blocks": 2,
                  "unet_attn_scales": [1, 0.5, 0.25], "unet_dropout": 0.1, "temporal_attention": "True",
                  "num_timesteps": 1000, "mean_type": "eps", "var_type": "fixed_small", "loss_type": "mse"}}}
STEM, PARTS = "diffusion_pytorch_model", ("unet", "vae", "text_encoder")


def randomise(module, seed=0):
    """Random numbers in every parameter, norms and zero-initialised ones too, so that a swapped one is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_norm = ("norm" in name or "ln_" in name or ".conv" in name and name.split(".")[-2] == "0")
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2 * noise + (is_norm and name.endswith("weight")))
    return module.eval()


class Peers:
    """The three networks of others, and what they answer to fixed questions, in float64."""

    def __init__(self):
        with torch.device("meta"):                        # initialising costs more than the whole test
            unet, vae = diffusers.UNet3DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
        self.unet, self.vae = randomise(unet.to_empty(device="cpu"), 1), randomise(vae.to_empty(device="cpu"), 2)
        self.text_encoder = randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)), 3)
        self.tower = randomise(TextTransformer(77, VOCABULARY, WIDTH, 1, 3, output_dim=16), 4)

    def answers(self, half=False):
        """half: after the weights were rounded to float16 on disk."""
        unet, vae, text, tower = (copy.deepcopy(net) for net in (self.unet, self.vae, self.text_encoder, self.tower))
        for net in (unet, vae, text, tower):
            (net.half() if half else net).double()
        latents, frames, times, context, tokens = questions()
        caught = []
        tower.transformer.resblocks[-2].register_forward_hook(lambda module, args, output: caught.append(output))
        with torch.no_grad():
            tower(tokens)
            return {"unet": unet(latents, times, context).sample, "mean": vae.encode(frames).latent_dist.mean,
                    "frames": vae.decode(latents[:, :, 0]).sample, "text": text(input_ids=tokens).last_hidden_state,
                    "tower": F.layer_norm(caught[0], (WIDTH,), tower.ln_final.weight, tower.ln_final.bias, 1e-5)}


def questions():
    generator = torch.Generator().manual_seed(9)
    latents, context = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                        for shape in ((1, 4, 2, 8, 8), (1, 5, WIDTH)))
    tokens = torch.randint(0, VOCABULARY - 1, (2, 77), generator=generator)
    tokens[:, -1] = VOCABULARY - 1
    return latents, torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1, torch.tensor([981]), \
        context, tokens


def check_answers(pipe, expected, text="text", tolerance=1e-9):
    latents, frames, times, context, tokens = questions()
    latents, frames, context = (x.to(pipe.dtype) for x in (latents, frames, context))
    scale = pipe.config.autoencoder.scaling_factor
    with torch.no_grad():
        found = {"unet": pipe.unet(latents, times, context), "mean": pipe.autoencoder.posterior(frames)[0],
                 "frames": pipe.autoencoder.decode(latents[:, :, 0] * scale), text: pipe.text_encoder(tokens)}
    for name, answer in found.items():
        assert expected[name].std() > 0.05, name                      # the comparison is of something
        assert (answer - expected[name]).abs().max() <= tolerance, name


make_peers = functools.cache(Peers)                       # test_convert needs them, too
answers = functools.cache(Peers.answers)


@pytest.fixture(scope="module")
def peers():
    return make_peers()


@pytest.fixture(scope="module")
def exact(peers):
    return answers(peers)


@pytest.fixture(scope="module")
def rounded(peers):
    return answers(peers, half=True)


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)                          # it may be a hard link to a file of another test
    path.write_text(json.dumps(values))


def write_small_files(folder, **scheduler):
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **scheduler})


@pytest.fixture(scope="module")
def plain(peers, tmp_path_factory):
    """The diffusers layout as diffusers and transformers write it today."""
    folder = tmp_path_factory.mktemp("plain")
    write_small_files(folder)
    for part in PARTS:
        getattr(peers, part).save_pretrained(folder / part)
    return folder


@pytest.fixture(scope="module")
def states(plain):
    """What diffusers and transformers call the tensors today: part -> state dict."""
    return {part: load_file(next((plain / part).glob("*.safetensors"))) for part in PARTS}


def of_2023(states):
    """The names of the released files, by diffusers' and transformers' own change logs: not by our rules."""
    vae, text = {}, {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for name, tensor in states["vae"].items():
        if ".attentions." in name:
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                name = name.replace(f".{new}.", f".{old}.")
        vae[name] = tensor
    text |= {name if name.startswith("text_model.") else f"text_model.{name}": tensor
             for name, tensor in states["text_encoder"].items()}
    return {"unet": states["unet"], "vae": vae, "text_encoder": text}


@pytest.fixture
def linked(plain, tmp_path):
    """A copy of `plain` to be changed: hard links, so replace files, do not write into them."""
    return shutil.copytree(plain, tmp_path / "model", copy_function=os.link)


def replace_weights(folder, states, name, save):
    """Every weight file of a folder goes; `states` take their place, as part/name[part]."""
    for part in PARTS:
        for path in [*(folder / part).glob("*.safetensors"), *(folder / part).glob("*.bin")]:
            path.unlink()
        save(states[part], folder / part / name[part])


PICKLES = {"unet": f"{STEM}.bin", "vae": f"{STEM}.bin", "text_encoder": "pytorch_model.bin"}


def halved(state):
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


# --- the layout of diffusers ---

def test_as_diffusers_writes_it_today(plain, exact):
    pipe = minit2v.load(plain, dtype="float64")
    check_answers(pipe, exact)
    config = pipe.config
    assert config.unet == replace(modelscope_1_7b().unet, channels=32, multipliers=(1, 1, 2, 2), head_dim=8,
                                  context_dim=WIDTH)
    assert (config.height, config.width, config.text.layers) == (64, 64, 3)
    assert config.diffusion == modelscope_1_7b().diffusion and config.autoencoder.scaling_factor == 0.18215
    clip = minit2v.load(plain)("a red circle", num_frames=1, num_inference_steps=1, progress=False)
    assert clip.shape == (1, 64, 64, 3)


def test_names_of_2023_in_pickles_stay_mapped(linked, states, exact):
    replace_weights(linked, of_2023(states), PICKLES, torch.save)
    pipe = minit2v.load(linked)
    check_answers(pipe, exact, tolerance=1e-4)
    before = (linked / "unet" / PICKLES["unet"]).read_bytes()
    with torch.no_grad():
        for p in pipe.unet.parameters():                              # can be trained, and the file stays
            p.add_(1)
    assert (linked / "unet" / PICKLES["unet"]).read_bytes() == before


def test_zeroscope(linked, states, rounded):
    """Only .bin, float16 without saying so, a few more settings, a scheduler file of its own."""
    replace_weights(linked, {part: halved(state) for part, state in of_2023(states).items()}, PICKLES, torch.save)
    write_json(linked / "unet" / "config.json",
               json.loads((linked / "unet" / "config.json").read_text()) | {
                   "downsample_padding": 1, "mid_block_scale_factor": 1, "_name_or_path": "x", "sample_size": [8, 16]})
    write_small_files(linked, _class_name="DPMSolverMultistepScheduler", timestep_spacing="leading",
                      rescale_betas_zero_snr=False, solver_order=2)
    pipe = minit2v.load(linked, dtype="float64")
    check_answers(pipe, rounded)
    assert (pipe.config.diffusion.spacing, pipe.config.height, pipe.config.width) == ("leading", 64, 128)
    pipe, seen = minit2v.load(linked), []
    options = {"num_frames": 1, "num_inference_steps": 3, "guidance_scale": 1.0, "progress": False, "width": 64,
               "on_step": lambda i, x0: seen.append(i)}
    pipe("", **options)
    assert len(seen) == 3                                             # "modelscope", which is usual, takes 4 for 3
    pipe("", spacing="modelscope", **options)
    assert len(seen) == 7                                             # what the caller says comes first


def test_shards(linked, peers, exact):
    for part in PARTS:
        for path in (linked / part).glob("*.safetensors"):
            path.unlink()
        getattr(peers, part).save_pretrained(linked / part, max_shard_size="100KB" if part == "text_encoder" else "2MB")
        assert len(list((linked / part).glob("*-of-*.safetensors"))) > 1
    index = json.loads((linked / "text_encoder" / "model.safetensors.index.json").read_text())["weight_map"]
    layers = {name: [file for key, file in index.items() if f"layers.{name}.self_attn" in key] for name in (0, 1)}
    assert any(len(set(files)) > 1 for files in layers.values())      # q, k, v of one layer in different files
    check_answers(minit2v.load(linked, dtype="float64"), exact)


def test_half_precision_takes_the_files_of_half_precision(linked, peers, exact, rounded):
    for part in PARTS:
        copy.deepcopy(getattr(peers, part)).half().save_pretrained(linked / part, variant="fp16")
        names = sorted(path.name for path in (linked / part).glob("*.safetensors"))
        assert len(names) == 2 and ".fp16.safetensors" in names[0], names
    half = minit2v.load(linked, dtype=torch.float16)
    assert half.dtype == torch.float16 and ".fp16." in str(layouts.open_model(linked, half=True).files)
    check_answers(half.to(dtype=torch.float64), rounded)
    assert ".fp16." not in str(layouts.open_model(linked).files)
    for path in [*linked.glob(f"*/{STEM}.safetensors"), linked / "text_encoder" / "model.safetensors"]:
        path.unlink()
    check_answers(minit2v.load(linked, dtype="float64"), rounded)     # half is better than nothing


def test_sharded_variant_is_found_as_diffusers_names_it(tmp_path, peers):
    copy.deepcopy(peers.vae).half().save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    files = layouts.find_weights(tmp_path, STEM, STEM, half=True)
    assert len(files) > 1 and sum(len(load_file(path)) for path in files) == len(peers.vae.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_number_types(plain, states, dtype):
    pipe = minit2v.load(plain, dtype=dtype)
    number_type = getattr(torch, dtype)
    for net in (pipe.unet, pipe.autoencoder, pipe.text_encoder):
        assert {p.dtype for p in net.parameters()} == {number_type} and not net.training
        assert all(p.requires_grad and p.device.type == "cpu" for p in net.parameters())
    assert torch.equal(pipe.unet.conv_in.weight, states["unet"]["conv_in.weight"].to(number_type))


def test_velocity_prediction_and_unknown_spacing(linked):
    write_small_files(linked, prediction_type="v_prediction", timestep_spacing="trailing", beta_end=0.02)
    with pytest.warns(UserWarning, match="'trailing'"):
        config = layouts.open_model(linked).config
    process = config.diffusion
    assert (process.prediction, process.spacing, process.beta_end) == ("velocity", None, 0.02)


# --- the layout of ModelScope ---

def modelscope_states(peers, states):
    """The three pickles' contents, by the tables of the released files."""
    rows = json.loads(gzip.decompress((DATA / "unet_names.json.gz").read_bytes()))
    unet = {ms: states["unet"][df].reshape(*states["unet"][df].shape, *[1] * (len(ms_shape) - len(df_shape)))
            for ms, ms_shape, df, df_shape in rows if df in states["unet"]}
    assert len(unet) == len(states["unet"])
    names = json.loads(gzip.decompress((DATA / "vae_text_names.json.gz").read_bytes()))
    vae = {}
    for ms, df in names["vae_modelscope_to_diffusers"].items():
        if df in states["vae"]:
            tensor = states["vae"][df]
            vae[f"first_stage_model.{ms}"] = tensor.reshape(*tensor.shape, *[1] * (
                len(names["vae_modelscope"][ms]) - tensor.ndim))
    assert len(vae) == len(states["vae"])
    vae |= {"model.diffusion_model.out.0.weight": torch.ones(3), "model_ema.num_updates": torch.tensor(7),
            "cond_stage_model.model.ln_final.weight": torch.ones(3), "betas": torch.ones(10)}
    clip = {**peers.tower.state_dict(), "logit_scale": torch.tensor(4.6), "visual.conv1.weight": torch.ones(4, 3, 2, 2),
            "visual.transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    assert "text_projection" in clip and "transformer.resblocks.2.ln_1.weight" in clip
    return {"unet": unet, "autoencoder": {"state_dict": vae}, "text_encoder": clip}


MODELSCOPE_NAMES = {"unet": "text2video_pytorch_model.pth", "autoencoder": "VQGAN_autoencoder.pth",
                    "text_encoder": "open_clip_pytorch_model.bin"}


def write_lightning(state, path, extra=None):
    """torch.save of what Lightning saves: a class and numpy numbers of modules that exist only while this runs."""
    def fake(name, **contents):
        module = types.ModuleType(name)
        for key, thing in contents.items():
            thing.__module__ = name
            setattr(module, key, thing)
        return module

    class ModelCheckpoint:
        pass

    def scalar(*args):
        pass

    class OldNumber:                                      # as numpy 1 pickled its numbers
        def __reduce__(self):
            return scalar, (np.dtype("float64"), np.float64(0.25).tobytes())

    ModelCheckpoint.__qualname__, scalar.__qualname__ = "ModelCheckpoint", "scalar"
    place = "pytorch_lightning.callbacks.model_checkpoint"
    modules = {"pytorch_lightning": fake("pytorch_lightning"),
               "pytorch_lightning.callbacks": fake("pytorch_lightning.callbacks"),
               place: fake(place, ModelCheckpoint=ModelCheckpoint),
               "numpy.core.multiarray": fake("numpy.core.multiarray", scalar=scalar)}
    best = ModelCheckpoint()
    best.score = OldNumber()
    notes = {"epoch": 3, "global_step": 875000, "lr_schedulers": [], "extra": extra,
             "callbacks": {ModelCheckpoint: {"best_model_score": OldNumber(), "now": np.float32(0.5), "best": best}}}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        torch.save({**notes, **state}, path)


@pytest.fixture(scope="module")
def modelscope(peers, states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modelscope")
    contents = modelscope_states(peers, states)
    write_json(folder / "configuration.json", MODELSCOPE)
    write_lightning(contents["autoencoder"], folder / MODELSCOPE_NAMES["autoencoder"])
    for part in ("unet", "text_encoder"):
        torch.save(contents[part], folder / MODELSCOPE_NAMES[part])
    return folder


def test_modelscope(modelscope, exact):
    with pytest.raises(pickle.UnpicklingError, match="pytorch_lightning"):        # as others fail on this file
        torch.load(modelscope / "VQGAN_autoencoder.pth", weights_only=True)
    with pytest.raises(ModuleNotFoundError, match="pytorch_lightning"):
        torch.load(modelscope / "VQGAN_autoencoder.pth", weights_only=False)
    pipe = minit2v.load(modelscope, dtype="float64")
    check_answers(pipe, exact, text="tower")
    assert pipe.config.num_frames == 3 and "pytorch_lightning" not in sys.modules
    assert pipe.config.unet == replace(modelscope_1_7b().unet, channels=32, multipliers=(1, 1, 2, 2), head_dim=8,
                                       context_dim=WIDTH)
    assert pipe.config.text == replace(modelscope_1_7b().text, width=WIDTH, heads=1, layers=3)
    check_answers(minit2v.load(modelscope), exact, text="tower", tolerance=1e-4)


def test_modelscope_in_half_precision_from_another_folder(peers, states, rounded, tmp_path):
    """As repacked: float16, no class of Lightning; and the autoencoder shared by several models."""
    folder = tmp_path / "model"
    folder.mkdir()
    contents = modelscope_states(peers, states)
    settings = copy.deepcopy(MODELSCOPE)
    settings["model"]["model_args"]["ckpt_autoencoder"] = "../VQGAN_autoencoder.pth"
    write_json(folder / "configuration.json", settings)
    for part in ("unet", "text_encoder"):
        torch.save(halved(contents[part]), folder / MODELSCOPE_NAMES[part])
    with pytest.raises(FileNotFoundError, match=r"ckpt|\.\./VQGAN_autoencoder.pth'.*put the file there"):
        minit2v.load(folder)
    torch.save({"state_dict": halved(contents["autoencoder"]["state_dict"])}, tmp_path / "VQGAN_autoencoder.pth")
    pipe = minit2v.load(folder, dtype="float16").to(dtype=torch.float64)
    check_answers(pipe, rounded, text="tower")


def test_pickles_from_before_torch_1_6(modelscope, peers, exact, tmp_path):
    folder = shutil.copytree(modelscope, tmp_path / "model", copy_function=os.link)
    (folder / MODELSCOPE_NAMES["text_encoder"]).unlink()
    torch.save(peers.tower.state_dict(), folder / MODELSCOPE_NAMES["text_encoder"],
               _use_new_zipfile_serialization=False)
    check_answers(minit2v.load(folder, dtype="float64"), exact, text="tower")


# --- memory ---

def peak(work):
    """What `work` returns, and by how many bytes this process grew meanwhile, at the most, as Linux counts them."""
    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")                     # the peak starts anew
    result = work()
    return result, status("VmHWM") - before


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are measured as Linux counts them")
def test_there_is_no_second_copy(tmp_path):
    """25 million weights: mapped, they take next to nothing; converted to half, their own 50 MB, not 50 + 100."""
    from minit2v import convert
    config = minit2v.modelscope_1_7b()
    config = replace(config, unet=replace(config.unet, channels=64, multipliers=(1, 3), attention=(True, False)),
                     autoencoder=replace(config.autoencoder, channels=32),
                     text=replace(config.text, width=64, heads=1, layers=3))
    with torch.device("meta"):
        networks = layouts.networks(config)
    folders = [tmp_path / "diffusers", tmp_path / "minit2v"]
    pickled = {part: convert.FILES["diffusers"][part].replace("safetensors", "bin") for part in layouts.NETWORKS}
    pickled["text_encoder"] = "text_encoder/pytorch_model.bin"
    for folder, files in zip(folders, (pickled, convert.FILES["minit2v"])):
        for name, network in networks.items():
            tensors = {key: torch.zeros(t.shape) for key, t in network.state_dict().items()}
            (folder / files[name]).parent.mkdir(parents=True, exist_ok=True)
            convert.write_tensors(folder / files[name], convert.released(tensors, name, folder.name, config))
        stored = layouts.Stored("minit2v", folder, config, networks, {})
        if folder.name == "minit2v":
            convert.write_settings(folder, stored, "minit2v")
        else:
            for place, values in convert.configfiles.diffusers_files(config).items():
                write_json(folder / place, values)
    def load(folder, dtype):
        stored = layouts.open_model(folder)
        return [stored.part(name).tensors(dtype) for name in layouts.NETWORKS]

    ctypes.CDLL(None).mallopt(-3, 2 ** 16)                # so that a tensor's memory is the system's as soon as freed
    try:
        for folder in folders:
            layouts.open_model(folder)                    # whatever is imported or made only once
            parts, mapped = peak(lambda: load(folder, torch.float32))
            assert sum(t.nbytes for part in parts for t in part.values()) > 90e6 > mapped
            del parts
            parts, converted = peak(lambda: load(folder, torch.float16))
            weights = sum(t.nbytes for part in parts for t in part.values())
            # A portion is 8 MB at the least, and to look at a tensor brings 64 kB around it: much here, little of 7 GB.
            assert weights < converted <= 1.1 * weights + 2 ** 24, (converted, weights)
            del parts
    finally:
        ctypes.CDLL(None).mallopt(-3, 2 ** 25)


# --- files that carry code ---

class Mine:
    """Unpickled as everybody else unpickles, it makes a file."""

    def __init__(self, marker, call=os.system):
        self.marker, self.call = marker, call

    def __reduce__(self):
        return self.call, (f"touch {self.marker}" if self.call is os.system else f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("where, call", [("diffusers", os.system), ("diffusers", exec), ("modelscope", eval),
                                         ("lightning", os.system), ("lightning", exec), ("old", os.system)])
def test_code_in_a_pickle_is_refused_and_not_run(plain, modelscope, tmp_path, where, call):
    marker = tmp_path / "was_run"
    mine = Mine(marker, call)
    folder = shutil.copytree(plain if where == "diffusers" else modelscope, tmp_path / "m", copy_function=os.link)
    if where == "diffusers":
        path = folder / "vae" / f"{STEM}.bin"
        (folder / "vae" / f"{STEM}.safetensors").unlink()
        torch.save({"conv_in.weight": torch.ones(1), "x": mine}, path)
    else:
        path = folder / MODELSCOPE_NAMES["autoencoder" if where == "lightning" else "unet"]
        path.unlink()
        if where == "lightning":
            write_lightning({"state_dict": {"first_stage_model.x": torch.ones(1)}}, path, extra=mine)
        else:
            torch.save({"x": mine}, path, _use_new_zipfile_serialization=where != "old")
    with pytest.raises(ValueError, match="(posix.system|exec|eval).*carries code.*Nothing of it was run.*safetensors"):
        minit2v.load(folder)
    assert not marker.exists()
    if where != "lightning":                              # the trap is real: another reader steps into it
        torch.load(path, weights_only=False)
        assert marker.exists()


# --- what is damaged, lost, swapped or of something else: one sentence that says which file, what and what to do ---

def edit(path, change):
    tensors = dict(load_file(path))
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def put(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def setting(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


def swap(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    put(a, second)
    put(b, first)


def shape_of(tensors, name, shape):
    tensors[name] = torch.zeros(shape)


W, V, T = f"unet/{STEM}.safetensors", f"vae/{STEM}.safetensors", "text_encoder/model.safetensors"
DAMAGE = [
    (lambda f: (f / "model_index.json").unlink(), FileNotFoundError, "no model in.*model_index.json.*Give the folder"),
    (lambda f: (f / "unet/config.json").unlink(), FileNotFoundError, "unet/config.json' is missing.*copy"),
    (lambda f: (f / "scheduler/scheduler_config.json").unlink(), FileNotFoundError, "r_config.json' is missing"),
    (lambda f: (f / V).unlink(), FileNotFoundError, f"no weights in.*vae'.*{STEM}.safetensors.*copy the whole"),
    (lambda f: put(f / "vae/config.json", b'{"act_fn": '), ValueError, "vae/config.json is not JSON"),
    (lambda f: put(f / "vae/config.json", b"\xff\xfe\x00"), ValueError, "vae/config.json is not JSON"),
    (lambda f: put(f / "vae/config.json", b"[" * 100000), ValueError, "vae/config.json is not JSON"),
    (lambda f: put(f / "vae/config.json", b"7"), ValueError, "vae/config.json is '7', but must be a JSON object"),
    (lambda f: put(f / "unet/config.json", b"{}"), ValueError, "unet/config.json has no block_out_channels"),
    (lambda f: setting(f / "unet/config.json", _class_name="UNet2DConditionModel"), ValueError,
     "unet/config.json.*'UNet2DConditionModel'; only 'UNet3DConditionModel' is known"),
    (lambda f: setting(f / "unet/config.json", block_out_channels=[32, 48]), ValueError, "all multiples of the first"),
    (lambda f: setting(f / "unet/config.json", layers_per_block=10 ** 9), ValueError, "layers_per_block is 1000000000"),
    (lambda f: setting(f / "unet/config.json", norm_num_groups=7), ValueError, "describes no model.*num_groups"),
    (lambda f: setting(f / "unet/config.json", cross_attention_dim=32), ValueError,
     "wrong shape:.*attn2.to_k.weight is .*64.*, expected .*32"),
    (lambda f: setting(f / "unet/config.json", layers_per_block=3), ValueError, "missing: down_blocks.0.resnets.2"),
    (lambda f: setting(f / "unet/config.json", down_block_types=["DownBlock3D"] * 4), ValueError, "must mirror"),
    (lambda f: setting(f / "text_encoder/config.json", hidden_act="quick_gelu"), ValueError, "only 'gelu' is known"),
    (lambda f: setting(f / "vae/config.json", scaling_factor="big"), ValueError, "scaling_factor is 'big'"),
    (lambda f: write_small_files(f, beta_schedule="linear"), ValueError, "beta_schedule is 'linear'"),
    (lambda f: write_small_files(f, prediction_type="sample"), ValueError, "prediction_type is 'sample'.*v_prediction"),
    (lambda f: put(f / W, b""), ValueError, f"unet/{STEM}.safetensors is damaged or cut short.*copy it again"),
    (lambda f: put(f / W, (f / W).read_bytes()[:-1]), ValueError, "unet.*is damaged or cut short"),
    (lambda f: put(f / W, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), ValueError, "git lfs pull"),
    (lambda f: put(f / W, b"<!DOCTYPE html><html>"), ValueError, "unet.*is a web page"),
    (lambda f: swap(f / W, f / V), ValueError, "unet.*does not fit.*\n  unexpected: decoder.*nearest"),
    (lambda f: edit(f / T, lambda t: t.pop("final_layer_norm.bias", t.pop("text_model.final_layer_norm.bias", None))),
     ValueError, r"text_encoder.*missing: (text_model\.)?final_layer_norm.bias \(64,\)"),
    (lambda f: edit(f / V, lambda t: t.update({"decoder.conv_ouT.bias": t.pop("decoder.conv_out.bias")})), ValueError,
     r"unexpected: decoder.conv_ouT.bias \(the nearest that is expected: decoder.conv_out.bias\)"),
    (lambda f: edit(f / V, lambda t: shape_of(t, "decoder.conv_in.bias", (63,))), ValueError,
     r"wrong shape: decoder.conv_in.bias is \(63,\), expected \(64,\)"),
    (lambda f: edit(f / V, lambda t: t.update({"decoder.conv_in.bias": torch.zeros(64, dtype=torch.int8)})), ValueError,
     "wrong number type: decoder.conv_in.bias is int8.*quantised"),
    (lambda f: (put(f / "vae" / f"{STEM}.bin", (f / V).read_bytes()), (f / V).unlink()), ValueError,
     f"vae/{STEM}.bin is damaged"),
    (lambda f: (torch.save([torch.ones(3)], f / "vae" / f"{STEM}.bin"), (f / V).unlink()), ValueError,
     "holds a list.*state_dict"),
    (lambda f: (torch.save({"decoder.conv_in.bias": "none", 7: torch.ones(1)}, f / "vae" / f"{STEM}.bin"),
                (f / V).unlink()), ValueError, "no plain tensor: decoder.conv_in.bias is a str"),
    (lambda f: (write_json(f / "vae" / f"{STEM}.safetensors.index.json", {"weight_map": {"a": "lost.safetensors"}}),
                (f / V).unlink()), FileNotFoundError, "vae/lost.safetensors' are missing"),
    (lambda f: (write_json(f / "vae" / f"{STEM}.safetensors.index.json", {"weight_map": {"a": "../unet/x"}}),
                (f / V).unlink()), ValueError, "index.json must list"),
    (lambda f: put(f / "tokenizer/merges.txt.gz", gzip.compress(b"#\na b")[:-6]), ValueError, "merges, is damaged"),
]


@pytest.mark.parametrize("damage, kind, message", DAMAGE, ids=range(len(DAMAGE)))
def test_what_is_wrong_is_named(linked, damage, kind, message):
    (linked / "tokenizer").mkdir()
    damage(linked)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        minit2v.load(linked)
    assert caught.type is kind and re.search(message, str(caught.value), re.DOTALL), str(caught.value)


NAMES = MODELSCOPE_NAMES
MODELSCOPE_DAMAGE = [
    (lambda f: put(f / "configuration.json", b"{}"), ValueError, "configuration.json has no model"),
    (lambda f: (f / NAMES["unet"]).unlink(), FileNotFoundError, "text2video.*pth' are missing.*put the file"),
    (lambda f: put(f / NAMES["unet"], (f / NAMES["unet"]).read_bytes()[:-100]), ValueError, "is damaged or cut short"),
    (lambda f: swap(f / NAMES["unet"], f / NAMES["text_encoder"]), ValueError, "has no (token_embedding|positional)"),
    (lambda f: swap(f / NAMES["autoencoder"], f / NAMES["text_encoder"]), ValueError, "has no first_stage_model"),
    (lambda f: write_json(f / "configuration.json", changed(unet_dim=64)), ValueError, "wrong shape: time_embed.0"),
    (lambda f: write_json(f / "configuration.json", changed(unet_dim="big")), ValueError, "unet_dim is 'big'"),
    (lambda f: write_json(f / "configuration.json", changed(unet_attn_scales=[1, 0.5])), ValueError,
     "unexpected: input_blocks.7.1"),
    (lambda f: write_json(f / "configuration.json", changed(mean_type="x0")), ValueError, "mean_type is 'x0'"),
    (lambda f: write_json(f / "configuration.json", changed(temporal_attention="False")), ValueError, "temporal"),
    (lambda f: pickled(f, "text_encoder", lambda t: without(t, ".resblocks.1.")), ValueError,
     r"open_clip_pytorch_model.bin is not.*transformer.resblocks.1 is missing, of 3 blocks"),
    (lambda f: pickled(f, "text_encoder", lambda t: t.update({f"transformer.resblocks.{10 ** 15}.x": torch.ones(1)})),
     ValueError, r"transformer.resblocks.3 is missing, of 1000000000000001 blocks"),
    (lambda f: pickled(f, "text_encoder", lambda t: t.update(positional_embedding=torch.ones(()))), ValueError,
     "open_clip_pytorch_model.bin is not of a model that is known"),
    (lambda f: pickled(f, "text_encoder", lambda t: t.update(positional_embedding=torch.ones(9))), ValueError,
     r"wrong shape: positional_embedding is \(9,\)"),
]


def pickled(folder, part, change):
    tensors = torch.load(folder / NAMES[part], weights_only=True)
    change(tensors)
    (folder / NAMES[part]).unlink()
    torch.save(tensors, folder / NAMES[part])


def without(tensors, what):
    for name in [name for name in tensors if what in name]:
        del tensors[name]


def changed(**values):
    settings = copy.deepcopy(MODELSCOPE)
    settings["model"]["model_cfg"].update(values)
    return settings


@pytest.mark.parametrize("damage, kind, message", MODELSCOPE_DAMAGE, ids=range(len(MODELSCOPE_DAMAGE)))
def test_what_is_wrong_in_modelscopes_layout_is_named(modelscope, tmp_path, damage, kind, message):
    folder = shutil.copytree(modelscope, tmp_path / "model", copy_function=os.link)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        minit2v.load(folder)
    assert caught.type is kind and re.search(message, str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize("kept, projection, layers", [(24, True, 24), (23, True, 24), (24, False, 24), (23, False, 24)])
def test_the_released_text_tower_is_known_by_its_width(kept, projection, layers):
    """Whatever a repack leaves out of what is not used: 23 blocks are read, not 22 and not 24."""
    shapes = {"token_embedding.weight": (49408, 1024), "positional_embedding": (77, 1024)}
    shapes |= {f"transformer.resblocks.{i}.ln_1.weight": (1024,) for i in range(kept)}
    shapes |= {"text_projection": (1024, 1024)} if projection else {}
    assert layouts.configfiles.modelscope_text(shapes) == modelscope_1_7b().text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Our own layout, and the autoencoder once more as a pickle: small enough to be damaged a hundred times."""
    folder = make_pipe(tmp_path_factory.mktemp("tiny")).save(tmp_path_factory.mktemp("saved"))
    torch.save(load_file(folder / "autoencoder.safetensors"), folder / "autoencoder.bin")
    return folder


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "autoencoder.bin", "config.json", "merges.gz"])
def test_damage_at_any_byte_ends_in_one_kind_of_error(tiny, tmp_path, name):
    folder = shutil.copytree(tiny, tmp_path / "model")
    stored = layouts.open_model(folder) if name.startswith("autoencoder") else None
    if stored is None:
        return damage(folder, name, lambda: layouts.open_model(folder))
    stored.files["autoencoder"] = [folder / name]
    damage(folder, name, lambda: stored.part("autoencoder").tensors(torch.float16))


def damage(folder, name, read):
    """Cut off, or one byte changed, anywhere: it loads (a number is another number), or it is a ValueError."""
    whole, draw, refused = (folder / name).read_bytes(), random.Random(0), 0
    tail = max(0, len(whole) - 400)                       # where a zip archive has its list of contents
    places = [*range(0, 16, 5), *(draw.randrange(min(3000, len(whole))) for _ in range(8)),
              *(draw.randrange(tail, len(whole)) for _ in range(8)), *(draw.randrange(len(whole)) for _ in range(4))]
    for place in places:
        flipped = bytes([whole[place] ^ draw.choice([1, 2, 16, 64, 255])])
        for data in (whole[:place], whole[:place] + flipped + whole[place + 1:]):
            (folder / name).write_bytes(data)
            try:
                read()
            except (ValueError, FileNotFoundError) as error:
                assert type(error) in (ValueError, FileNotFoundError) and folder.name in str(error)
                refused += 1
    assert refused >= len(places)                         # every truncation at the least


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A tiny model in both layouts of the released one, in which every kind of file comes: {layout: folder}."""
    from minit2v import convert
    like = modelscope_1_7b()
    config = replace(like, unet=replace(like.unet, channels=32, multipliers=(1,), attention=(True,), res_blocks=1,
                                        head_dim=4, context_dim=64),
                     autoencoder=replace(like.autoencoder, channels=32, multipliers=(1, 1), res_blocks=1),
                     text=replace(like.text, width=64, heads=1, layers=2, context_length=8, vocab_size=20))
    home, networks = tmp_path_factory.mktemp("released"), layouts.networks(config)
    states = {layout: {name: convert.released(network.state_dict(), name, layout, config)
                       for name, network in networks.items()} for layout in ("diffusers", "modelscope")}
    for place, values in convert.configfiles.diffusers_files(config).items():
        write_json(home / "diffusers" / place, values)
    for name, state in states["diffusers"].items():
        folder = home / "diffusers" / {"autoencoder": "vae"}.get(name, name)
        if name == "unet":                                # shards
            halves = [dict(list(state.items())[i::2]) for i in range(2)]
            index = {key: f"{i}.safetensors" for i, half in enumerate(halves) for key in half}
            write_json(folder / f"{STEM}.safetensors.index.json", {"weight_map": index})
            for i, half in enumerate(halves):
                save_file({key: t.contiguous() for key, t in half.items()}, folder / f"{i}.safetensors")
        else:
            torch.save(state, folder / {"autoencoder": f"{STEM}.bin", "text_encoder": "pytorch_model.bin"}[name])
    write_json(home / "modelscope" / "configuration.json", convert.configfiles.modelscope_configuration(config))
    for name, state in states["modelscope"].items():
        path = home / "modelscope" / MODELSCOPE_NAMES[name]
        if name == "autoencoder":
            write_lightning({"state_dict": state}, path)
        else:                                             # the UNet as torch wrote before 1.6
            torch.save(state, path, _use_new_zipfile_serialization=name != "unet")
    return home


@pytest.mark.parametrize("layout, name", [
    ("diffusers", "unet/config.json"), ("diffusers", "vae/config.json"), ("diffusers", "text_encoder/config.json"),
    ("diffusers", "scheduler/scheduler_config.json"), ("diffusers", f"unet/{STEM}.safetensors.index.json"),
    ("diffusers", "unet/1.safetensors"), ("diffusers", f"vae/{STEM}.bin"), ("modelscope", "configuration.json"),
    *(("modelscope", name) for name in MODELSCOPE_NAMES.values())])
def test_damage_at_any_byte_of_the_released_layouts(released, tmp_path, layout, name):
    folder = shutil.copytree(released / layout, tmp_path / "model")

    def read():
        stored = layouts.open_model(folder)
        return [stored.part(part).tensors(torch.float16) for part in layouts.NETWORKS]

    read()
    damage(folder, name, read)


# --- load, and the command ---

def test_only_what_looks_like_an_id_is_looked_for_on_the_hub(monkeypatch, plain, tmp_path):
    asked = []
    hub = types.ModuleType("minit2v.hub")
    hub.fetch = lambda hub_id, half: asked.append((hub_id, half)) or plain
    monkeypatch.setitem(sys.modules, "minit2v.hub", hub)
    monkeypatch.chdir(tmp_path)
    assert minit2v.load("some-body/a.model", dtype="float16").config.name == "some-body/a.model"
    assert asked == [("some-body/a.model", True)]
    for folder in ("nowhere", "a/b/c", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no model in"):
            minit2v.load(folder)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no model in.*empty"):            # a folder is a folder
        minit2v.load("owner/name")
    assert len(asked) == 1


def test_inspect(plain, modelscope, states, capsys):
    for folder, layout, text in ((plain, "diffusers", T), (modelscope, "modelscope", NAMES["text_encoder"])):
        assert cli.main(["inspect", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["layout"], found["whole"]) == (layout, True)
        unet, part = found["parts"][1], found["parts"][0]
        assert unet["tensors"] == len(states["unet"]) and unet["dtype"] == "float32"
        assert unet["parameters"] == sum(tensor.numel() for tensor in states["unet"].values())
        assert part["files"][0]["file"] == text and part["files"][0]["released"] == "no"
        assert part["files"][0]["bytes"] == (folder / text).stat().st_size
        assert found["bytes"] == sum(file["bytes"] for part in found["parts"] for file in part["files"])
        assert all(part["like_released"] < 1 for part in found["parts"])
    assert cli.main(["inspect", str(plain)]) == 0
    out = capsys.readouterr().out
    assert "layout diffusers" in out and "not the released file" in out and "float32" in out
    assert cli.main(["inspect"]) == 0 and "layout minit2v" in capsys.readouterr().out


def test_inspect_names_what_is_wrong_and_goes_on(linked, capsys):
    (linked / W).unlink()
    put(linked / "unet" / f"{STEM}.bin", b"none")
    assert cli.main(["inspect", str(linked)]) == 1
    out = capsys.readouterr().out
    assert f"unet: {linked}/unet/{STEM}.bin is damaged" in out and re.search("autoencoder: 24. tensors", out)
    assert cli.main(["inspect", str(linked / "none")]) == 1
    assert capsys.readouterr().err.startswith("minit2v: error: there is no model in")


def sparse(path, shapes, size=4):
    """A safetensors file without its numbers, a hole in the disk, as the library wrote it in 2023."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes, key=lambda name: (name.endswith("position_ids") < 1, name)):       # wide types first
        shape, width = shapes[name], 8 if name.endswith("position_ids") else size
        end = place + width * int(np.prod(shape))
        header[name] = {"dtype": {8: "I64", 4: "F32", 2: "F16"}[width], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)


def write_holes(folder, size):
    """The three released files of diffusers' layout with numbers of so many bytes."""
    rows = json.loads(gzip.decompress((DATA / "unet_names.json.gz").read_bytes()))
    names = json.loads(gzip.decompress((DATA / "vae_text_names.json.gz").read_bytes()))
    ending = "safetensors" if size == 4 else "fp16.safetensors"
    sparse(folder / "unet" / f"{STEM}.{ending}", {df: shape for _, _, df, shape in rows}, size)
    sparse(folder / "vae" / f"{STEM}.{ending}", names["vae_diffusers_2023"], size)
    sparse(folder / "text_encoder" / f"model.{ending}", names["text_hf_2023"], size)


def test_inspect_knows_the_released_model(tmp_path, capsys):
    """The released names, shapes and settings, at full size, in files full of holes; even their sizes are right."""
    write_holes(tmp_path, size=2)
    write_small_files(tmp_path)
    wide = {"block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 64, "cross_attention_dim": 1024,
            "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"], "layers_per_block": 2,
            "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3, "norm_num_groups": 32, "sample_size": 32}
    write_json(tmp_path / "unet" / "config.json", wide)
    write_json(tmp_path / "vae" / "config.json", {**VAE, "block_out_channels": [128, 256, 512, 512]})
    write_json(tmp_path / "text_encoder" / "config.json", {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
        "hidden_act": "gelu", "pad_token_id": 1})
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["like_released"] for part in found["parts"]] == [1, 1, 1] and found["parameters"] == 1_835_275_563
    assert [part["files"][0]["released"] for part in found["parts"]] == ["size"] * 3, found
    assert replace(layouts.open_model(tmp_path).config, name="modelscope-1.7b") == modelscope_1_7b()
    write_holes(tmp_path, size=4)
    files = list(tmp_path.glob("*/*.safetensors"))
    assert len(files) == 6 and {inventory.examine_file(path, tmp_path)["released"] for path in files} == {"size"}
    with files[0].open("ab") as file:
        file.write(b"x")
    assert inventory.examine_file(files[0], tmp_path)["released"] == "no"


def test_inspect_compares_hashes(tmp_path, monkeypatch):
    file, facts = tmp_path / "open_clip_pytorch_model.bin", tmp_path / "facts.json"
    file.write_bytes(b"weights")
    assert inventory.examine_file(file, tmp_path)["released"] == "no"
    digest = hashlib.sha256(b"weights").hexdigest()
    facts.write_text(json.dumps({"files": {file.name: {"sha256": "0"}},
                                 "other_versions": {file.name: [{"sha256": digest}]}}))
    monkeypatch.setattr(inventory, "RELEASED", facts)
    assert inventory.examine_file(file, tmp_path) == {"file": file.name, "bytes": 7, "sha256": digest,
                                                      "released": "yes"}
    monkeypatch.setattr(inventory, "SMALL", 3)
    assert inventory.examine_file(file, tmp_path)["released"] == "unknown"
    assert inventory.examine_file(file, tmp_path, hashed=True)["released"] == "yes"
    file.write_bytes(b"others!")
    assert inventory.examine_file(file, tmp_path, hashed=True)["released"] == "no"
