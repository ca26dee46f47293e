"""How the released files name the tensors of the autoencoder and of the text encoder.

Each rule is (pattern, replacement) for `re.sub`, tried in order on one of *our* names, all of them.
One direction is enough: a reader asks, for each tensor of our model, under which name it lies in the file;
a writer stores it under that name.

Three of our text tensors are more than one in HF files: in_proj holds q, k and v stacked along dimension 0.
`released_names` therefore returns a list, of one name or of three: ours = torch.cat of them. Where a shape
differs (1 x 1 convolutions in the ModelScope file, linear layers here) ours = theirs.reshape(our shape).
"""

import re

# The names of Stable Diffusion, which ModelScope's file shares (there with the prefix `first_stage_model.`).
# Its decoder counts levels from the finest; ours, in the order of the data, from the coarsest: {last} - i.
AUTOENCODER_MODELSCOPE = [
    (r"encoder\.levels\.(\d+)\.blocks\.", r"encoder.down.\1.block."),
    (r"encoder\.levels\.(\d+)\.resample\.", r"encoder.down.\1.downsample."),
    (r"decoder\.levels\.(\d+)\.blocks\.", lambda m, last: f"decoder.up.{last - int(m[1])}.block."),
    (r"decoder\.levels\.(\d+)\.resample\.", lambda m, last: f"decoder.up.{last - int(m[1])}.upsample."),
    (r"middle\.0\.", "mid.block_1."),
    (r"middle\.1\.to_out\.", "mid.attn_1.proj_out."),
    (r"middle\.1\.(?:to_)?", "mid.attn_1."),
    (r"middle\.2\.", "mid.block_2."),
    (r"\.skip\.", ".nin_shortcut."),
]

AUTOENCODER_DIFFUSERS = [
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
AUTOENCODER_DIFFUSERS_2023 = AUTOENCODER_DIFFUSERS + [
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
]

# Our names are open_clip's: the ModelScope file (open_clip_pytorch_model.bin) needs no rule. It holds more
# (the last block, text_projection, logit_scale, visual.*), which is left unread.
TEXT_OPEN_CLIP: list = []

TEXT_HF = [
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
TEXT_HF_2023 = TEXT_HF + [(r"^", "text_model.")]


def released_names(name: str, rules: list, levels: int = 4) -> list[str]:
    """The name or names under which the tensor that we call `name` lies in a released file.

    `levels` is len(AutoencoderConfig.multipliers); text rules do not use it.
    """
    for pattern, replacement in rules:
        if callable(replacement):
            name = re.sub(pattern, lambda match: replacement(match, levels - 1), name)
        else:
            name = re.sub(pattern, replacement, name)
    return [name.replace("{q,k,v}", part) for part in "qkv"] if "{q,k,v}" in name else [name]
