"""The configuration files that lie beside released weights, read as our configurations and written from them.

diffusers has a JSON file for each network and one for the noise schedule. ModelScope has one for the UNet, and has
written down the rest in its program: the sizes of its autoencoder and text tower are read off their tensors.
What a file says that we do not build (another activation, another schedule) is an error, not a surprise later.
"""

import json
import re
import warnings
from pathlib import Path

from minit2v.config import (
    LAYERS,
    LEVELS,
    WIDTH,
    AutoencoderConfig,
    DiffusionConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
)

PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity"}
SPACINGS = ("leading", "linspace")                       # of diffusers' timestep spacings, those that we know
TEXT_HEAD = 64                                           # width of a head in CLIP's text towers
MODELSCOPE_FILES = {"unet": ("ckpt_unet", "text2video_pytorch_model.pth"),
                    "autoencoder": ("ckpt_autoencoder", "VQGAN_autoencoder.pth"),
                    "text_encoder": ("ckpt_clip", "open_clip_pytorch_model.bin")}
DIFFUSERS_STEMS = {"unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),       # of .safetensors, of .bin
                   "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
                   "text_encoder": ("model", "pytorch_model")}
Shapes = dict[str, tuple[int, ...]]


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises FileNotFoundError, or ValueError for anything else than a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing, but belongs to the model; copy the whole folder, or "
                                "download it again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is {str(values)[:40]!r}, but must be a JSON object of settings; copy it again")
    return values


def parse(path: Path, reader, values: dict):
    """reader(values), with the file's name in what it raises: a ValueError, whatever is wrong."""
    try:
        return reader(values)
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}, which a model of this kind needs; "
                         "it is damaged, or belongs to another model") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not of a model that is known here: {error}") from error


def _whole(values: dict, key: str, default: int | None = None, most: int = WIDTH) -> int:
    value = values[key] if default is None else values.get(key, default)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{key} is {value!r}; it must be a whole number from 1 to {most}")
    return value


def _fixed(values: dict, **expected) -> None:
    for key, value in expected.items():
        if values.get(key, value) != value:
            raise ValueError(f"{key} is {values[key]!r}; only {value!r} is known")


def _widths(widths: list[int], key: str) -> tuple[int, tuple[int, ...]]:
    """Widths of the levels as (the first, all as multiples of the first)."""
    if not (isinstance(widths, (list, tuple)) and 1 <= len(widths) <= LEVELS
            and all(type(w) is int and 1 <= w <= WIDTH and w % widths[0] == 0 for w in widths)):
        raise ValueError(f"{key} is {widths!r}; it must be a list of widths, all multiples of the first")
    return widths[0], tuple(w // widths[0] for w in widths)


# ------------------------------------------------------------------------------------------------ diffusers, read

def weight_names(stem: str, pickle_stem: str, half: bool) -> list[tuple[str, str]]:
    """The names that a network's weights may have in its folder, best first: (the single file, an index of shards).

    The number type comes first (float16 before float32 where `half`), then safetensors before pickles.
    """
    return [(f"{name}{variant}.{ending}", f"{name}.{ending}.index{variant}.json")
            for variant in ((".fp16", "") if half else ("", ".fp16"))
            for name, ending in ((stem, "safetensors"), (pickle_stem, "bin"))]



def diffusers_unet(values: dict) -> UNetConfig:
    """unet/config.json. `attention_head_dim` is the width of a head; the input transformer has eight, always."""
    _fixed(values, _class_name="UNet3DConditionModel", act_fn="silu", norm_eps=1e-5, downsample_padding=1,
           mid_block_scale_factor=1, time_cond_proj_dim=None, num_attention_heads=None)
    channels, multipliers = _widths(values["block_out_channels"], "block_out_channels")
    attention = tuple(kind == "CrossAttnDownBlock3D" for kind in values["down_block_types"])
    if [kind == "CrossAttnUpBlock3D" for kind in values["up_block_types"]] != list(attention[::-1]):
        raise ValueError(f"up_block_types is {values['up_block_types']}, which must mirror down_block_types")
    _fixed(values, out_channels=_whole(values, "in_channels", 4))
    return UNetConfig(latent_channels=_whole(values, "in_channels", 4), channels=channels, multipliers=multipliers,
                      res_blocks=_whole(values, "layers_per_block", 2, LAYERS), attention=attention,
                      head_dim=_whole(values, "attention_head_dim", 64), input_heads=8,
                      context_dim=_whole(values, "cross_attention_dim", 1024),
                      norm_groups=_whole(values, "norm_num_groups", 32))


def diffusers_size(values: dict) -> tuple[int, int]:
    """unet/config.json -> (height, width) of a clip in latent cells, if nothing else is asked for."""
    size = values.get("sample_size") or 32
    height, width = size if isinstance(size, list) else (size, size)
    return _whole({"sample_size": height}, "sample_size"), _whole({"sample_size": width}, "sample_size")


def diffusers_autoencoder(values: dict) -> AutoencoderConfig:
    """vae/config.json."""
    _fixed(values, _class_name="AutoencoderKL", act_fn="silu", in_channels=3, out_channels=3, shift_factor=None,
           use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=True, latents_mean=None)
    channels, multipliers = _widths(values["block_out_channels"], "block_out_channels")
    if {*values["down_block_types"]} != {"DownEncoderBlock2D"} or {*values["up_block_types"]} != {"UpDecoderBlock2D"}:
        raise ValueError("down_block_types and up_block_types must be DownEncoderBlock2D and UpDecoderBlock2D alone")
    factor = values.get("scaling_factor", AutoencoderConfig.scaling_factor)
    if not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
        raise ValueError(f"scaling_factor is {factor!r}; it must be a number above 0")
    return AutoencoderConfig(channels=channels, multipliers=multipliers, scaling_factor=factor,
                             res_blocks=_whole(values, "layers_per_block", 1, LAYERS),
                             latent_channels=_whole(values, "latent_channels", 4),
                             norm_groups=_whole(values, "norm_num_groups", 32))


def diffusers_text(values: dict) -> TextConfig:
    """text_encoder/config.json, from which transformers leaves out what it takes for granted."""
    width = _whole(values, "hidden_size", 512)
    _fixed({"hidden_act": "quick_gelu", "intermediate_size": 2048, **values}, hidden_act="gelu",
           layer_norm_eps=1e-5, intermediate_size=4 * width)
    return TextConfig(width=width, heads=_whole(values, "num_attention_heads", 8),
                      layers=_whole(values, "num_hidden_layers", 12, LAYERS) + 1,        # the one that is not used
                      context_length=_whole(values, "max_position_embeddings", 77),
                      vocab_size=_whole(values, "vocab_size", 49408))


def diffusers_process(values: dict) -> DiffusionConfig:
    """scheduler/scheduler_config.json, of whatever sampler: only the noise schedule is read, and the spacing."""
    _fixed(values, beta_schedule="scaled_linear", trained_betas=None, rescale_betas_zero_snr=False)
    prediction, spacing = values.get("prediction_type", "epsilon"), values.get("timestep_spacing")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type is {prediction!r}; it must be one of {', '.join(PREDICTIONS)}")
    for key in ("beta_start", "beta_end"):
        if not isinstance(values[key], float) or not 0 < values[key] < 1:
            raise ValueError(f"{key} is {values[key]!r}; it must lie between 0 and 1")
    if spacing is not None and spacing not in SPACINGS:
        warnings.warn(f"the model wants its times spaced {spacing!r}, which is not known here; each sampler spaces "
                      "them as it is used to", stacklevel=2)
        spacing = None
    return DiffusionConfig(timesteps=_whole(values, "num_train_timesteps", 1000), beta_start=values["beta_start"],
                           beta_end=values["beta_end"], prediction=PREDICTIONS[prediction], spacing=spacing)


# ------------------------------------------------------------------------------------------------ ModelScope, read

def modelscope_unet(values: dict) -> UNetConfig:
    """configuration.json. `attn_scales` lists the resolutions that have transformers: 1, 1/2, 1/4, ..."""
    values = values["model"]["model_cfg"]
    _fixed(values, mean_type="eps", unet_out_dim=_whole(values, "unet_in_dim", 4))
    if str(values.get("temporal_attention", True)) != "True":           # a string, in the released file
        raise ValueError(f"temporal_attention is {values['temporal_attention']!r}; only 'True' is known")
    multipliers, scales = values["unet_dim_mult"], values["unet_attn_scales"]
    channels = _whole(values, "unet_dim")
    if not isinstance(multipliers, list) or not isinstance(scales, list):
        raise ValueError(f"unet_dim_mult and unet_attn_scales are {multipliers!r} and {scales!r}; both must be lists")
    return UNetConfig(latent_channels=_whole(values, "unet_in_dim", 4), channels=channels,
                      multipliers=tuple(_whole({"unet_dim_mult": m}, "unet_dim_mult") for m in multipliers[:LEVELS]),
                      res_blocks=_whole(values, "unet_res_blocks", most=LAYERS),
                      attention=tuple(2.0 ** -level in scales for level in range(len(multipliers[:LEVELS]))),
                      head_dim=_whole(values, "unet_head_dim"), input_heads=_whole(values, "unet_num_heads"),
                      context_dim=_whole(values, "unet_context_dim"), dropout=values.get("unet_dropout", 0.1))


def modelscope_process(values: dict) -> DiffusionConfig:
    """configuration.json. The betas stand in ModelScope's program, not in the file."""
    return DiffusionConfig(timesteps=_whole(values["model"]["model_cfg"], "num_timesteps", 1000))


def modelscope_frames(values: dict) -> int:
    """configuration.json -> frames of a clip."""
    return _whole(values["model"].get("model_args", {}), "max_frames", 16)


def modelscope_file(values: dict, part: str) -> str:
    """configuration.json -> the name of a network's file, which may lead out of the folder ("../VQGAN...")."""
    key, usual = MODELSCOPE_FILES[part]
    name = values["model"].get("model_args", {}).get(key, usual)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{key} is {name!r}; it must be the name of a file")
    return name


def modelscope_autoencoder(shapes: Shapes) -> AutoencoderConfig:
    """The tensors' shapes of VQGAN_autoencoder.pth, by name."""
    prefix = "first_stage_model."
    channels = shapes[prefix + "encoder.conv_in.weight"][0]
    blocks = {}                                          # (level, block) -> width
    for name, shape in shapes.items():
        place = re.fullmatch(re.escape(prefix) + r"encoder\.down\.(\d+)\.block\.(\d+)\.conv2\.weight", name)
        if place:
            blocks[int(place[1]), int(place[2])] = shape[0]
    levels = len({level for level, _ in blocks})
    _, multipliers = _widths([channels, *(blocks.get((level, 0)) for level in range(levels))], "widths of the levels")
    return AutoencoderConfig(channels=channels, multipliers=multipliers[1:],
                             res_blocks=len({block for _, block in blocks}),
                             latent_channels=shapes[prefix + "post_quant_conv.weight"][0])


def modelscope_text(shapes: Shapes) -> TextConfig:
    """The tensors' shapes of open_clip_pytorch_model.bin, by name.

    The released tower is known by its width, and whatever of its blocks is missing is missed later. Of another one,
    the file has to tell: all of CLIP has `text_projection`, and a last block that we do not use; a file without it,
    such as `minit2v convert` writes, was cut before that block. Raises ValueError if a block in the middle is missing.
    """
    vocab_size, width = shapes["token_embedding.weight"]
    blocks = {int(name.split(".")[2]) for name in shapes if name.startswith("transformer.resblocks.")}
    if width % TEXT_HEAD:
        raise ValueError(f"its text is {width} wide, which must be a multiple of {TEXT_HEAD}, the width of a head")
    count = max(blocks, default=0) + 1
    if len(blocks) != count:
        missing = next(i for i in range(count) if i not in blocks)       # not all of them: a damaged number is large
        raise ValueError(f"transformer.resblocks.{missing} is missing, of {count} blocks")
    released = width == TextConfig.width
    layers = TextConfig.layers if released else len(blocks) + ("text_projection" not in shapes)
    return TextConfig(width=width, heads=width // TEXT_HEAD, layers=layers,
                      context_length=shapes["positional_embedding"][0], vocab_size=vocab_size)


# ------------------------------------------------------------------------------------------------ both, written

def diffusers_files(config: ModelConfig) -> dict[str, dict]:
    """The JSON files of the diffusers layout, by their place in the folder (the tokenizer's are in `convert`)."""
    unet, vae, text, process = config.unet, config.autoencoder, config.text, config.diffusion
    version, attention = {"_diffusers_version": "0.15.0"}, unet.attention
    names = {"scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet3DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    levels = len(vae.multipliers)
    sizes = [config.height // vae.downscale, config.width // vae.downscale]
    spacing = {} if process.spacing is None else {"timestep_spacing": process.spacing}
    return {
        "model_index.json": {"_class_name": "TextToVideoSDPipeline", **version, **names},
        "unet/config.json": {
            "_class_name": "UNet3DConditionModel", **version, "act_fn": "silu", "attention_head_dim": unet.head_dim,
            "block_out_channels": [unet.channels * m for m in unet.multipliers],
            "cross_attention_dim": unet.context_dim,
            "down_block_types": ["CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attention],
            "in_channels": unet.latent_channels, "layers_per_block": unet.res_blocks, "norm_eps": 1e-5,
            "norm_num_groups": unet.norm_groups, "out_channels": unet.latent_channels,
            "sample_size": sizes[0] if sizes[0] == sizes[1] else sizes,
            "up_block_types": ["CrossAttnUpBlock3D" if a else "UpBlock3D" for a in attention[::-1]]},
        "vae/config.json": {
            "_class_name": "AutoencoderKL", **version, "act_fn": "silu",
            "block_out_channels": [vae.channels * m for m in vae.multipliers],
            "down_block_types": ["DownEncoderBlock2D"] * levels, "in_channels": 3,
            "latent_channels": vae.latent_channels, "layers_per_block": vae.res_blocks,
            "norm_num_groups": vae.norm_groups, "out_channels": 3, "sample_size": max(config.height, config.width),
            "scaling_factor": vae.scaling_factor, "up_block_types": ["UpDecoderBlock2D"] * levels},
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu",
            "hidden_size": text.width, "intermediate_size": 4 * text.width, "layer_norm_eps": 1e-5,
            "max_position_embeddings": text.context_length, "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers - 1, "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2, "eos_token_id": text.vocab_size - 1, "pad_token_id": 0},
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler", **version, "beta_end": process.beta_end, "beta_schedule": "scaled_linear",
            "beta_start": process.beta_start, "clip_sample": False, "num_train_timesteps": process.timesteps,
            "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == process.prediction),
            "set_alpha_to_one": False, "steps_offset": 1, "thresholding": False, "trained_betas": None, **spacing},
    }


def modelscope_configuration(config: ModelConfig) -> dict:
    """configuration.json of the ModelScope layout."""
    unet, task = config.unet, "text-to-video-synthesis"
    return {
        "framework": "pytorch", "task": task,
        "model": {
            "type": f"latent-{task}",
            "model_args": {**dict(MODELSCOPE_FILES.values()), "max_frames": config.num_frames, "tiny_gpu": 1},
            "model_cfg": {
                "unet_in_dim": unet.latent_channels, "unet_dim": unet.channels, "unet_y_dim": 768,
                "unet_context_dim": unet.context_dim, "unet_out_dim": unet.latent_channels,
                "unet_dim_mult": list(unet.multipliers), "unet_num_heads": unet.input_heads,
                "unet_head_dim": unet.head_dim, "unet_res_blocks": unet.res_blocks,
                "unet_attn_scales": [2.0 ** -level for level, has in enumerate(unet.attention) if has],
                "unet_dropout": unet.dropout, "temporal_attention": "True", "num_timesteps": config.diffusion.timesteps,
                "mean_type": "eps", "var_type": "fixed_small", "loss_type": "mse"}},
        "pipeline": {"type": f"latent-{task}"},
    }
