# %% [markdown]
# # 10 · Exercises: the released model
#
# Five exercises on chapter 10, about 80 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("10.names")` helps, a little more each time. Nothing is downloaded.

# %%
import re

import torch
from torch import Tensor

from minit2v.config import modelscope_1_7b
from minit2v.course import check, hint, progress, solution, task

# %% [markdown]
# ## 10.names · Other words for the same thing
#
# *Build · medium · 25 minutes · 3 points.* Why it matters: the released UNet is 1,480 tensors with names. Who cannot
# translate the names cannot load it.
#
# Translate our name of one of the UNet's tensors into the name in diffusers' file. What occurs:
#
# | ours | theirs |
# |---|---|
# | `down.1.blocks.0.res.norm1.weight` | `down_blocks.1.resnets.0.norm1.weight` |
# | `up.3.blocks.2.res.time_proj.bias` | `up_blocks.3.resnets.2.time_emb_proj.bias` |
# | `up.0.blocks.1.res.shortcut.weight` | `up_blocks.0.resnets.1.conv_shortcut.weight` |
# | `down.2.blocks.1.temporal_conv.conv1.2.weight` | `down_blocks.2.temp_convs.1.conv1.2.weight` |
# | `up.1.blocks.2.spatial_transformer.norm.weight` | `up_blocks.1.attentions.2.norm.weight` |
# | `mid.0.temporal_transformer.proj_in.weight` | `mid_block.temp_attentions.0.proj_in.weight` |
# | `...transformer.block.norm1.weight` | `...transformer_blocks.0.norm1.weight` |
# | `....attn1.to_out.weight` | `....attn1.to_out.0.weight` |
# | `....ff.proj.weight`, `....ff.out.weight` | `....ff.net.0.proj.weight`, `....ff.net.2.weight` |
# | `down.0.resample.conv.weight` | `down_blocks.0.downsamplers.0.conv.weight` |
# | `up.2.resample.conv.weight` | `up_blocks.2.upsamplers.0.conv.weight` |
# | `mid.1.res.conv1.weight` | `mid_block.resnets.1.conv1.weight` |
# | `time_embedding.0.weight`, `time_embedding.2.weight` | `time_embedding.linear_1.weight`, `....linear_2.weight` |
# | `norm_out.weight` | `conv_norm_out.weight` |
#
# The transformer at the input, `transformer_in`, keeps its name, and its block is renamed like the others. All else
# stays as it is. A dozen rules with `re.sub` are enough.

# %%
def diffusers_name(name: str) -> str:
    """Our name of a tensor of the UNet, as diffusers' UNet3DConditionModel calls it."""
    ### BEGIN SOLUTION
    rules = [
        (r"transformer(_in)?\.block\.", r"transformer\1.transformer_blocks.0."),
        (r"\.to_out\.", ".to_out.0."),
        (r"\.ff\.proj\.", ".ff.net.0.proj."),
        (r"\.ff\.out\.", ".ff.net.2."),
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
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
    ### END SOLUTION


diffusers_name("up.1.blocks.2.temporal_transformer.block.ff.out.bias")

# %% tags=["nbval-check-output"]
check("10.names", diffusers_name)

# %% [markdown] tags=["solution"]
# Inside of a transformer, words are exchanged where they stand. Outside, the files are sorted otherwise: we keep all
# parts of a block together, they keep all blocks of a part together, so the part moves in front of the block's number.
# A list of rules can be read and tested; a table of a thousand lines can only be trusted.

# %% [markdown]
# ## 10.load · Nothing missing, nothing left over
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: `strict=False` makes every error go away, and the model too.
#
# `stored` is what a file holds, `expected` the shapes that the network needs, both by our names. Return the expected
# tensors in the expected shapes. Shapes may differ in axes of length 1, for in one file a linear layer is a convolution
# over one place, and in no other way. If a tensor is missing, too much, or of another shape, raise a `ValueError` whose
# message has its name in it.

# %%
def fit(stored: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, all accounted for: {name: tensor}, in the shapes of `expected`."""
    ### BEGIN SOLUTION
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} is unknown" for name in stored.keys() - expected.keys()]
    for name in stored.keys() & expected.keys():
        there, wanted = ([n for n in shape if n > 1] for shape in (stored[name].shape, expected[name]))
        if there != wanted:
            problems.append(f"{name} is {tuple(stored[name].shape)}, not {expected[name]}")
    if problems:
        raise ValueError("; ".join(sorted(problems)))
    return {name: stored[name].reshape(shape) for name, shape in expected.items()}
    ### END SOLUTION


tuple(fit({"proj.weight": torch.zeros(4, 3, 1)}, {"proj.weight": (4, 3)})["proj.weight"].shape)       # (4, 3)

# %% tags=["nbval-check-output"]
check("10.load", fit)

# %% [markdown] tags=["solution"]
# All questions are asked before anything is given back, so an error loses nothing, and it lists all that is wrong
# instead of the first thing. Comparing sizes in order, those of 1 left out, lets (4, 3, 1) pass for (4, 3) and refuses
# (3, 4).

# %% [markdown]
# ## 10.chunks · A few frames at a time
#
# *Build · easy · 10 minutes · 2 points.* Why it matters: of all steps, decoding 16 frames at once needs the most
# memory, and a small GPU has not so much.
#
# `decode` makes frames of latents, each frame by itself. Call it for `size` frames at a time (for fewer at the end, if
# their number cannot be divided) and put the results together, so that nobody notices.

# %%
def in_chunks(decode, latents: Tensor, size: int) -> Tensor:
    """decode(latents), `size` frames at a time. latents: (B, 4, F, h, w); returns (B, 3, F, H, W)."""
    ### BEGIN SOLUTION
    return torch.cat([decode(part) for part in latents.split(size, dim=2)], dim=2)
    ### END SOLUTION


tuple(in_chunks(lambda x: x[:, :3], torch.zeros(2, 4, 16, 8, 8), size=5).shape)                   # (2, 3, 16, 8, 8)

# %% tags=["nbval-check-output"]
check("10.chunks", in_chunks)

# %% [markdown] tags=["solution"]
# The decoder knows no time, so cutting along time changes nothing. (The UNet cannot be cut like this: its frames see
# one another.)

# %% [markdown]
# ## 10.half · Too large for half
#
# *Repair · medium · 15 minutes · 2 points.* Why it matters: in float16 the largest number is 65504, and a network that
# was trained in float32 does not know that.
#
# `normalised` shifts and stretches each row to mean 0 and spread 1. In float32 it works. In float16, rows of large
# numbers come out as zeros and rows of small ones as infinities. Mend it; the result stays in float16. No row is
# constant, so nothing has to be added against dividing by zero.

# %%
def normalised(x: Tensor) -> Tensor:
    """Each row with mean 0 and spread 1, in the type of x. x: (N, C); returns (N, C)."""
    ### BEGIN SOLUTION
    wide = x.float()
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)                       # (N, 1)
    return (centred / variance.sqrt()).to(x.dtype)
    ### END SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)                                      # broken, from here on
    variance = (centred * centred).mean(dim=-1, keepdim=True)                       # (N, 1)
    return centred / variance.sqrt()


normalised(torch.tensor([[1.0, 2.0, 3.0], [1000.0, 2000.0, 3000.0]], dtype=torch.float16))         # twice the same row

# %% tags=["nbval-check-output"]
check("10.half", normalised)

# %% [markdown] tags=["solution"]
# Squares have twice the exponent: above 256 they are too large for float16, below 0.0002 too small. So the numbers are
# widened before they are squared, and made narrow again when they have an ordinary size. The package's norms do that.

# %% [markdown]
# ## 10.count · What time costs
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: a good third of the 1.4 billion parameters of the released
# UNet was added for the sake of time.
#
# How many parameters has a `TemporalConv` of the width that `task` gives you? Four parts, each a group norm, SiLU and a
# convolution over three frames, (3, 1, 1), with bias. Compute it by hand, all included.

# %%
task("10.count")

# %%
### BEGIN SOLUTION
channels = task("10.count")["channels"]
answer_count = 4 * (2 * channels + 3 * channels * channels + channels)
### END SOLUTION
check("10.count", answer_count)

# %% [markdown] tags=["solution"]
# A norm has two numbers for each channel, a kernel 3 x channels x channels, and a bias one for each channel. The
# squares are nearly all of it: twice the width, four times the parameters.

# %% [markdown]
# ## All names at once
#
# No points, but the best moment: your translation against the one in the package, for every tensor of the released
# UNet.

# %%
from minit2v.checkpoints import unet_names

# mine = your function itself, without brackets
### BEGIN SOLUTION
mine = diffusers_name
### END SOLUTION
theirs = {ours: name for ours, (name, *_) in unet_names(modelscope_1_7b().unet, "diffusers").items()}
wrong = [ours for ours, name in theirs.items() if mine(ours) != name]
assert not wrong, f"{len(wrong)} names are not right yet, for example {wrong[0]}: {theirs[wrong[0]]}"
print(f"{len(theirs)} tensors: all of their names are right. You could load all 1.4 billion numbers now.")

# %% [markdown]
# ## What you have now

# %%
progress()
