"""The released weight files: what they call the tensors that our modules hold.

The same numbers go by three sets of names: ours; diffusers' (`UNet3DConditionModel`); and those of the
original ModelScope release (`UNetSD`, whose files spell a word `temopral_conv`, so we must, too, but in
this file only). A layout is a short list of rules, each a pattern and its replacement, applied one after
the other to one of our names. The way back needs no second list: we know all of our names, so we know
all of theirs.
"""

import re

import torch
from torch import Tensor

from .config import ModelConfig, UNetConfig
from .unet import UNet

Rules = list[tuple]                                      # (pattern, replacement), both as `re.sub` takes them
Shape = tuple[int, ...]


def translate(name: str, rules: Rules) -> str:
    """One of our names in the words of a layout."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename(state: dict[str, Tensor], names: dict[str, tuple[str, Shape]], what: str) -> dict[str, Tensor]:
    """Gives every tensor of `state` its new name and shape, `names[old] = (new, shape)`; copies no numbers.

    Shapes may differ in axes of size 1: what is a linear layer (o, i) here can be a convolution (o, i, 1)
    there. `what` says in an error which file this is. Raises ValueError if a tensor is missing, unknown or
    of another shape.
    """
    for problem, keys in (("lacks", names.keys() - state.keys()), ("has unknown", state.keys() - names.keys())):
        if keys:
            raise ValueError(f"{what} {problem} tensors, {len(keys)} where {len(names)} are expected: "
                             f"{_first(keys)}. Is it this model, in this size and this layout?")
    wrong = [f"{old} is {tuple(state[old].shape)}, not {shape}" for old, (_, shape) in names.items()
             if [n for n in state[old].shape if n > 1] != [n for n in shape if n > 1]]
    if wrong:
        raise ValueError(f"{what} has {len(wrong)} tensors of another shape: {_first(wrong)}. "
                         "The configuration is not the one of the file.")
    return {new: state[old].reshape(shape) for old, (new, shape) in names.items()}


def _first(items, count: int = 3) -> str:
    return ", ".join(sorted(items)[:count]) + (", ..." if len(items) > count else "")


# ------------------------------------------------------------------------------------------------ UNet

# Transformers: both layouts keep a list of blocks (always of one), and name layers by place.
_TRANSFORMER: Rules = [
    (r"(transformer|transformer_in)\.block\.", r"\1.transformer_blocks.0."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.proj\.", ".ff.net.0.proj."),
    (r"\.ff\.out\.", ".ff.net.2."),
]

# diffusers keeps the four kinds of parts in four lists of their own.
UNET_DIFFUSERS: Rules = _TRANSFORMER + [
    (r"^time_embedding\.0\.", "time_embedding.linear_1."),
    (r"^time_embedding\.2\.", "time_embedding.linear_2."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2."),
    (r"^mid\.", "mid_block."),
    (r"\.(\d+)\.res\.", r".resnets.\1."),
    (r"\.(\d+)\.temporal_conv\.", r".temp_convs.\1."),
    (r"\.(\d+)\.spatial_transformer\.", r".attentions.\1."),
    (r"\.(\d+)\.temporal_transformer\.", r".temp_attentions.\1."),
    (r"\.time_proj\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
]


def unet_modelscope_rules(config: UNetConfig) -> Rules:
    """ModelScope numbers the blocks through, down- and upsampling included, and the parts in a block (0, 1, 2)."""
    blocks = config.res_blocks + 1                       # per level; on the way down the last one is the resampling

    def upsample(match) -> str:                          # stands behind the parts of its level's last block
        level = int(match[1])
        slot = 3 if config.attention[::-1][level] else 1
        return f"output_blocks.{level * blocks + config.res_blocks}.{slot}."

    return _TRANSFORMER + [
        (r"^time_embedding\.", "time_embed."),
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^transformer_in\.", "input_blocks.0.1."),
        (r"\.res\.norm1\.", ".res.in_layers.0."),
        (r"\.res\.conv1\.", ".res.in_layers.2."),
        (r"\.res\.time_proj\.", ".res.emb_layers.1."),
        (r"\.res\.norm2\.", ".res.out_layers.0."),
        (r"\.res\.conv2\.", ".res.out_layers.3."),
        (r"\.res\.shortcut\.", ".res.skip_connection."),
        (r"^down\.(\d+)\.blocks\.(\d+)\.", lambda m: f"input_blocks.{1 + int(m[1]) * blocks + int(m[2])}."),
        (r"^down\.(\d+)\.resample\.conv\.", lambda m: f"input_blocks.{(int(m[1]) + 1) * blocks}.op."),
        (r"^mid\.1\.res\.", "middle_block.3."),
        (r"^mid\.1\.temporal_conv\.", "middle_block.3.temopral_conv."),
        (r"^mid\.0\.", "middle_block."),
        (r"^up\.(\d+)\.blocks\.(\d+)\.", lambda m: f"output_blocks.{int(m[1]) * blocks + int(m[2])}."),
        (r"^up\.(\d+)\.resample\.", upsample),
        (r"\.res\.", ".0."),
        (r"\.temporal_conv\.", ".0.temopral_conv."),
        (r"\.spatial_transformer\.", ".1."),
        (r"\.temporal_transformer\.", ".2."),
        (r"^norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
    ]


def unet_names(config: UNetConfig, layout: str) -> dict[str, tuple[str, Shape, Shape]]:
    """Every tensor of a UNet of this size: our name -> (the layout's name, our shape, the layout's shape).

    layout: "diffusers" or "modelscope". Shapes differ in one case: the layers by which temporal transformers
    begin and end are Conv1d of kernel 1 in ModelScope's files, (o, i, 1), and linear elsewhere, (o, i).
    """
    if layout not in ("diffusers", "modelscope"):
        raise ValueError(f'layout is {layout!r}; it must be "diffusers" or "modelscope"')
    rules = UNET_DIFFUSERS if layout == "diffusers" else unet_modelscope_rules(config)
    with torch.device("meta"):                           # shapes without numbers: costs no memory
        tensors = UNet(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {name: (translate(name, rules), shape, released_shape(name, shape, "unet", layout))
            for name, shape in shapes.items()}


def unet_to_diffusers(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Our UNet's state dict as one of diffusers' UNet3DConditionModel. Raises ValueError as `rename` does."""
    return _unet_to("diffusers", state, config)


def unet_from_diffusers(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The state dict of a UNet3DConditionModel as ours. Raises ValueError as `rename` does."""
    return _unet_from("diffusers", state, config)


def unet_to_modelscope(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Our UNet's state dict as that of text2video_pytorch_model.pth. Raises ValueError as `rename` does."""
    return _unet_to("modelscope", state, config)


def unet_from_modelscope(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The contents of text2video_pytorch_model.pth as our UNet's state dict. Raises ValueError as `rename` does."""
    return _unet_from("modelscope", state, config)


def _unet_to(layout: str, state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    names = unet_names(config, layout)
    return rename(state, {ours: (theirs, shape) for ours, (theirs, _, shape) in names.items()}, "the UNet")


def _unet_from(layout: str, state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    names = unet_names(config, layout)
    return rename(state, {theirs: (ours, shape) for ours, (theirs, shape, _) in names.items()},
                  f"the {layout} UNet file")


# ------------------------------------------------------------------------------------------------ autoencoder

def autoencoder_modelscope_rules(levels: int = 4) -> Rules:
    """The names of Stable Diffusion, which ModelScope's file shares (there with the prefix `first_stage_model.`).

    Its decoder counts levels from the finest; ours, in the order of the data, from the coarsest.
    """
    def up(match) -> str:
        part = "block" if match[2] == "blocks" else "upsample"
        return f"decoder.up.{levels - 1 - int(match[1])}.{part}."

    return [
        (r"encoder\.levels\.(\d+)\.blocks\.", r"encoder.down.\1.block."),
        (r"encoder\.levels\.(\d+)\.resample\.", r"encoder.down.\1.downsample."),
        (r"decoder\.levels\.(\d+)\.(blocks|resample)\.", up),
        (r"middle\.0\.", "mid.block_1."),
        (r"middle\.1\.to_out\.", "mid.attn_1.proj_out."),
        (r"middle\.1\.(?:to_)?", "mid.attn_1."),
        (r"middle\.2\.", "mid.block_2."),
        (r"\.skip\.", ".nin_shortcut."),
    ]


AUTOENCODER_DIFFUSERS: Rules = [
    (r"encoder\.levels\.(\d+)\.blocks\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.levels\.(\d+)\.resample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.levels\.(\d+)\.blocks\.", r"decoder.up_blocks.\1.resnets."),
    (r"decoder\.levels\.(\d+)\.resample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"middle\.0\.", "mid_block.resnets.0."),
    (r"middle\.1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"middle\.1\.to_out\.", "mid_block.attentions.0.to_out.0."),
    (r"middle\.1\.", "mid_block.attentions.0."),
    (r"middle\.2\.", "mid_block.resnets.1."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"norm_out\.", "conv_norm_out."),
]

# The released file is of 2023, when diffusers named the four layers of attention otherwise.
AUTOENCODER_DIFFUSERS_2023: Rules = AUTOENCODER_DIFFUSERS + [
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
]


# ------------------------------------------------------------------------------------------------ text encoder

# Our names are open_clip's: the ModelScope file (open_clip_pytorch_model.bin) needs no rule. It holds more
# (the last block, text_projection, logit_scale, visual.*), which is left unread.
TEXT_OPEN_CLIP: Rules = []

TEXT_HF: Rules = [
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.attn\.in_proj_(weight|bias)$", r".self_attn.{q,k,v}_proj.\1"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"^ln_final\.", "final_layer_norm."),
]

# The released file is of 2023: a prefix, and an int64 `text_model.embeddings.position_ids`, which is left unread.
TEXT_HF_2023: Rules = TEXT_HF + [(r"^", "text_model.")]


def released_names(name: str, rules: Rules) -> list[str]:
    """The name or names under which the tensor that we call `name` lies in a released file.

    Three of our text tensors are more than one in HF files: in_proj holds q, k and v stacked along dimension 0,
    so ours = torch.cat of the three. Where a shape differs (1 x 1 convolutions in the ModelScope file, linear
    layers here) ours = theirs.reshape(our shape).
    """
    name = translate(name, rules)
    return [name.replace("{q,k,v}", part) for part in "qkv"] if "{q,k,v}" in name else [name]


# ------------------------------------------------------------------------------------------------ whole models

def spellings(part: str, layout: str, config: ModelConfig) -> list[Rules]:
    """The rules by which the names of a part ("unet", "autoencoder", "text_encoder") go in a layout.

    More than one list where the years have changed them. The first is the one to write.
    """
    if layout == "minit2v":
        return [[]]
    if part == "unet":
        return [UNET_DIFFUSERS if layout == "diffusers" else unet_modelscope_rules(config.unet)]
    if part == "autoencoder":
        if layout == "diffusers":
            return [AUTOENCODER_DIFFUSERS, AUTOENCODER_DIFFUSERS_2023]
        return [autoencoder_modelscope_rules(len(config.autoencoder.multipliers)) + [(r"^", "first_stage_model.")]]
    return [TEXT_HF_2023, TEXT_HF] if layout == "diffusers" else [TEXT_OPEN_CLIP]


def unread(part: str, layout: str, config: ModelConfig) -> str:
    """A pattern for the tensors that a file of a part may hold besides, of which we make no use; "(?!)" for none."""
    if (part, layout) == ("autoencoder", "modelscope"):  # in there is all of Stable Diffusion 2.1
        return r"(?!first_stage_model\.)|first_stage_model\.loss\."
    if (part, layout) == ("text_encoder", "modelscope"):  # all of CLIP: its picture half, and the last block
        return (r"visual\.|text_projection$|logit_scale$|logit_bias$|attn_mask$|"
                rf"transformer\.resblocks\.{config.text.layers - 1}\.")
    if (part, layout) == ("text_encoder", "diffusers"):
        return r"(text_model\.)?embeddings\.position_ids$"
    return r"(?!)"


def released_shape(name: str, shape: Shape, part: str, layout: str) -> Shape:
    """The shape in a layout of the tensor that we call `name`: some linear layers here are convolutions there."""
    if layout == "modelscope" and name.endswith(".weight"):
        if part == "unet" and re.search(r"(temporal_transformer|transformer_in)\.proj_\w+\.weight", name):
            return (*shape, 1)                           # Conv1d of kernel 1
        if part == "autoencoder" and ".middle.1.to_" in name:
            return (*shape, 1, 1)                        # Conv2d of kernel 1
    return shape
