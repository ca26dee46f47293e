# %% [markdown]
# # 10 · The released model
#
# You have built every class of this system, and trained it small. The model that ModelScope released in 2023 is the
# same classes with another configuration, and 1.8 billion numbers in them that somebody else's machines have found. In
# this chapter you take its measure before you lift it: how many numbers, how much memory, how much work, each computed
# by hand and then checked. Then you open the files in which these numbers come, and load them without ever holding
# them twice.

# %% [markdown]
# ## What you will build
#
# Not a single byte of the released weights is needed for that. Names and shapes are enough, and a network on PyTorch's
# *meta* device has nothing else: no memory, no numbers. The next cell builds the whole released model in this way and
# shows where its parameters are.

# %%
import json
import math
import re
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import minit2v
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from matplotlib.figure import Figure
from torch import Generator, nn
from torch.utils.flop_counter import FlopCounterMode

from minit2v.config import modelscope_1_7b
from minit2v.course import figures
from minit2v.diffusion import draw_noise
from minit2v.layouts import networks
from minit2v.unet import TemporalConv, UNet

config = modelscope_1_7b()
with torch.device("meta"):
    parts = networks(config)                                 # text_encoder, unet, autoencoder: shapes without numbers
big = parts["unet"]

# %%
KINDS = ("residual blocks", "temporal convolutions", "spatial transformers", "temporal transformers", "the rest")
MARKS = (r"\.res\.", "temporal_conv", "spatial_transformer", "temporal_transformer|transformer_in", "")
PLACES = ["entry", "down 0", "down 1", "down 2", "down 3", "middle", "up 0", "up 1", "up 2", "up 3", "exit"]


def home(name):
    """Where a tensor of the UNet belongs, and to which kind of part: (place, kind)."""
    kind = next(kind for kind, mark in zip(KINDS, MARKS) if re.search(mark, name))
    if level := re.match(r"(down|up)\.(\d)", name):
        return f"{level[1]} {level[2]}", kind
    return ("middle" if name.startswith("mid.") else "exit" if "_out" in name[:9] else "entry"), kind


counted = {}
for name, p in big.named_parameters():
    counted[home(name)] = counted.get(home(name), 0) + p.numel()

# %%
def bars(rows, kinds, alt, xlabel, size=(7.5, 3.6)):
    """Bars that lie on their sides, each made of pieces. rows: name -> {kind: length}."""
    figure = Figure(figsize=size, layout="constrained")
    axes, names = figure.subplots(), list(rows)
    left = torch.zeros(len(names))
    for kind, colour in zip(kinds, figures.LINES):
        lengths = torch.tensor([float(rows[name].get(kind, 0)) for name in names])
        axes.barh(names, lengths, left=left, color=figures.PALETTE[colour], label=kind)
        left += lengths
    axes.invert_yaxis()
    axes.set(xlabel=xlabel)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="x")
    return figures.picture(figure, alt)


rows = {place: {kind: counted.get((place, kind), 0) / 1e6 for kind in KINDS} for place in PLACES}
whole = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
rows |= {"autoencoder": {"the rest": whole["autoencoder"] / 1e6},
         "text encoder": {"the rest": whole["text_encoder"] / 1e6}}
bars(rows, KINDS, xlabel="millions of parameters",
     alt="Bars: the UNet is heaviest at its narrow bottom and on the way up; up 1 alone has over 400 million.")

# %% [markdown]
# Each bar above *autoencoder* is one stage of the UNet, from the entry through the middle to the exit. The maps grow
# smaller towards the middle, and the weights grow heavier; the heaviest stage of all, *up 1*, is on its way out again.
# (The last two bars are the two other networks, each as a whole.) Why that is so, and what it means for time and
# memory, is the first half of this chapter.
#
# **You need** chapter 07 for the blocks, and what a state dict is: a network's tensors, by name. The formulas count
# layers that you know from chapters 02, 03 and 05.
#
# **It takes** about 60 minutes to read and play with. All cells together run in about a minute, in 2 GB of memory, and
# nothing is downloaded. At Colab they run on the processor, too: the card, a T4, is only *reckoned* with here, and all
# seconds and GB that are named for it are computed. In chapter 11 it has its turn.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | parameters of the released UNet | 1,411,233,860 |
# | parameters of all three networks | 1,835,275,563 |
# | operations of one call of the UNet, 16 frames of 256 x 256, counted | 4.8 million million |
# | the same for a clip: 50 steps with guidance | 483 million million |
# | seconds for that on a T4, computed | 19 to 37 |
# | tensors in the UNet's file, and rules that rename all of them | 1480, 16 |
# | size of the released UNet's file, computed from names and shapes | 5,645,118,394 bytes |

# %% [markdown]
# ## 1 · Counting by hand
#
# A **linear layer** from $i$ to $o$ numbers has a matrix and, usually, a bias: $i\,o + o$ parameters. A convolution is
# a linear layer on each window: with $k$ places in its window, $i\,o\,k + o$. A norm has a scale and a shift a channel.
# That is all there is; everything else in the model is made of these.
#
# We write down two numbers for each layer: its parameters, and its **work**. Each weight is used once at every place
# that the layer visits, for one multiplication and one addition. So the work is twice the weights, times the places.
# These operations are counted in FLOP, floating-point operations.

# %%
def linear(i, o, places, window=1, bias=True):
    """A linear layer or a convolution: (parameters, FLOP)."""
    return torch.tensor([i * o * window + o * bias, 2 * i * o * window * places])


def norm(channels):
    return torch.tensor([2 * channels, 0])                   # its work is too little to count


def scores(queries, keys, width):
    """What attention does beside its linear layers: all queries with all keys, and the sums of the values."""
    return torch.tensor([0, 2 * 2 * queries * keys * width])

# %% [markdown]
# The four parts of a block follow from their classes in chapters 05 and 07. For $n$ frames of $p$ cells, the residual
# block visits $n\,p$ places with two 3 x 3 convolutions; four convolutions over three frames each visit the same
# places.

# %%
def residual(i, o, emb, frames, cells):
    at = frames * cells
    skip = linear(i, o, at) if i != o else 0
    return (norm(i) + linear(i, o, at, window=9) + linear(emb, o, frames)
            + norm(o) + linear(o, o, at, window=9) + skip)


def temporal_conv(c, frames, cells):
    return 4 * (norm(c) + linear(c, c, frames * cells, window=3))

# %% [markdown]
# A transformer has a linear layer in and one out, two attentions and a feed-forward. The spatial one compares the cells
# of each frame, then reads $L$ words of $D$ numbers; the temporal one compares the frames of each cell, twice. Words
# are projected once for the whole clip, not once a frame.

# %%
def transformer(c, width, frames, cells, words=None):
    """c channels outside, `width` inside. words: (L, D) for a spatial one; None for a temporal one."""
    at = frames * cells
    square = linear(width, width, at, bias=False)
    length, groups = (cells, frames) if words else (frames, cells)       # tokens in a row, and rows
    here = groups * scores(length, length, width)
    first = 3 * square + here + linear(width, width, at)                             # q, k, v; the way out
    second = first if words is None else (
        square + 2 * linear(words[1], width, words[0], bias=False) + scores(at, words[0], width)
        + linear(width, width, at))
    feed_forward = linear(width, 8 * width, at) + linear(4 * width, width, at)
    return norm(c) + linear(c, width, at) + 3 * norm(width) + first + second + feed_forward + linear(width, c, at)

# %% [markdown]
# Worked out for a width of $C$, the squares alone: $18\,C^2$ for a residual block, $12\,C^2$ for a temporal
# convolution, $20\,C^2 + 2\,D\,C$ for a spatial transformer and $22\,C^2$ for a temporal one. Twice the width is four
# times the parameters. Here are the exact numbers at the widths that the released network has:

# %% tags=["nbval-check-output"]
print("width", *(f"{name:>20}" for name in ("residual block", "temporal convolution", "spatial transformer",
                                            "temporal transformer")))
for c in (320, 640, 1280):
    found = [residual(c, c, 1280, 1, 1), temporal_conv(c, 1, 1), transformer(c, c, 1, 1, (77, 1024)),
             transformer(c, c, 1, 1)]
    print(f"{c:5}", *(f"{int(numbers[0]):20,}" for numbers in found))

# %% [markdown]
# Now the whole U, walked in the order of the forward pass, as in chapter 05: on the way up each block also receives
# what its counterpart has put aside, and so its first convolution is wider.

# %%
def stages(config):
    """What stands in a UNet, in the order of the forward pass: (place, part, from, to, transformers, level)."""
    widths, c = [config.channels * m for m in config.multipliers], config.channels
    levels, skips = list(enumerate(zip(widths, config.attention))), [config.channels]
    last = len(widths) - 1
    for level, (o, attention) in levels:
        for _ in range(config.res_blocks):
            yield f"down {level}", "block", c, o, attention, level
            c = o
            skips.append(c)
        if level < last:
            yield f"down {level}", "resample", c, c, False, level + 1
            skips.append(c)
    for attention in (True, False):
        yield "middle", "block", c, c, attention, last
    for level, (o, attention) in levels[::-1]:
        for _ in range(config.res_blocks + 1):
            yield f"up {last - level}", "block", c + skips.pop(), o, attention, level
            c = o
        if level > 0:
            yield f"up {last - level}", "resample", c, c, False, level - 1

# %%
def count(config, frames=16, height=32, width=32, words=77):
    """(place, kind) -> (parameters, FLOP) of a UNet, for one clip of so many latent cells."""
    found, c, emb = {}, config.channels, 4 * config.channels

    def add(place, kind, numbers):
        found[place, KINDS[kind]] = found.get((place, KINDS[kind]), 0) + numbers

    cells = height * width
    add("entry", 4, linear(c, emb, frames) + linear(emb, emb, frames)
        + linear(config.latent_channels, c, frames * cells, window=9))
    add("entry", 3, transformer(c, config.input_heads * config.head_dim, frames, cells))
    for place, part, i, o, attention, level in stages(config):
        here = cells // 4 ** level                           # each level halves height and width
        if part == "resample":
            add(place, 4, linear(i, o, frames * here, window=9))
            continue
        add(place, 0, residual(i, o, emb, frames, here))
        add(place, 1, temporal_conv(o, frames, here))
        if attention:
            add(place, 2, transformer(o, o, frames, here, (words, config.context_dim)))
            add(place, 3, transformer(o, o, frames, here))
    add("exit", 4, norm(c) + linear(c, config.latent_channels, frames * cells, window=9))
    return found


ours = count(config.unet)

# %% tags=["nbval-check-output"]
print("every one of", len(counted), "entries is equal:", {at: int(n[0]) for at, n in ours.items()} == counted)
unet_count = sum(int(n[0]) for n in ours.values())
total = sum(whole.values())
print(f"UNet {unet_count:,}, all three {total:,}")
print(f"in units of 2^30: {total / 2 ** 30:.3f}; the UNet in units of 2^20: {unet_count / 2 ** 20:.1f}")
assert {at: int(n[0]) for at, n in ours.items()} == counted and unet_count == 1_411_233_860 and total == 1_835_275_563

# %% [markdown]
# Formula and model agree, stage by stage and kind by kind. And the last line solves a small riddle: everybody calls it
# the 1.7B model, and it has 1.84 billion parameters. Counted in units of $2^{30}$, as memory is, they are 1.71.
#
# Which parts see time?

# %% tags=["nbval-check-output"]
share = {kind: sum(n for (_, k), n in counted.items() if k == kind) for kind in KINDS}
for kind, n in share.items():
    print(f"{kind:24}{n:14,}  {n / unet_count:5.1%}")
in_time = share["temporal convolutions"] + share["temporal transformers"]
assert in_time == 545_323_136

# %% [markdown]
# The two kinds of transformers and the temporal convolutions have about a fifth each. The residual blocks have twice as
# much, because on the way up their first convolution takes the widened input. Convolutions and transformers along time
# have 545 million parameters together, 38.6 % of the network: the "0.5 billion" of the report's abstract.

# %% [markdown]
# ## 2 · Work
#
# PyTorch can count operations by itself while a network runs, and it does so on the meta device too, where nothing is
# computed. (With gradients on: without them the package merges some layers, `upsample.py`, and saves 2.5 %.)

# %% tags=["nbval-check-output"]
with torch.device("meta"), FlopCounterMode(display=False) as counter:
    big(torch.empty(1, 4, 16, 32, 32), torch.zeros(1), torch.empty(1, 77, 1024))
work = sum(int(n[1]) for n in ours.values())
print(f"by hand {work:,}\ncounted {counter.get_total_flops():,}")
assert work == counter.get_total_flops()

# %% [markdown]
# Equal to the last operation: 4.8 million million, or 4.8 TFLOP, for *one* question to the network. A clip takes fifty
# questions, each asked twice because of guidance:

# %% tags=["nbval-check-output"]
clip_work = 50 * 2 * work
print(f"a clip: {clip_work / 1e12:.0f} TFLOP")
assert round(clip_work / 1e12) == 483

# %% [markdown]
# How long is that? A graphics card of the kind that Colab lends for free, a T4, is sold with 65 TFLOP a second in half
# precision. No program reaches such a figure. Let us say a fifth to two fifths of it, and divide. *All times in this
# chapter and the next are computed in this way, and not measured.*

# %% tags=["nbval-check-output"]
def t4_seconds(flop):
    """A guess of what so many operations take on a T4 in half precision: (fast, slow)."""
    return flop / (0.4 * 65e12), flop / (0.2 * 65e12)


print("computed, for 50 steps with guidance: {:.0f} to {:.0f} seconds".format(*t4_seconds(clip_work)))
assert [round(seconds) for seconds in t4_seconds(clip_work)] == [19, 37]

# %% [markdown]
# And where does the work go? Put the weights and the work of each stage beside one another, as shares of the whole:

# %%
def shares(column):
    sums = {place: sum(float(n[column]) for (p, _), n in ours.items() if p == place) for place in PLACES}
    return torch.tensor(list(sums.values())) / sum(sums.values()) * 100


figure = Figure(figsize=(7.5, 2.8), layout="constrained")
axes = figure.subplots()
for column, (label, colour, shift) in enumerate((("weights", "blue", -0.2), ("work", "orange", 0.2))):
    axes.bar(torch.arange(len(PLACES)) + shift, shares(column), 0.4, color=figures.PALETTE[colour], label=label)
axes.set(xticks=range(len(PLACES)), ylabel="per cent")
axes.set_xticklabels(PLACES, fontsize=9)
axes.legend()
figures.picture(figure, "Pairs of bars. Weights: low outside, high inside; work: high on the outer levels, low inside.")

# %% [markdown]
# They live in different places. Let us put numbers to it: for the bottom of the U, where a frame has 4 x 4 cells; for
# the level above it, with 8 x 8; and for the two outer levels, with 16 x 16 and 32 x 32:

# %% tags=["nbval-check-output"]
LEVELS = {"bottom": ("down 3", "middle", "up 0"), "above it": ("down 2", "up 1"),
          "outer levels": ("down 0", "down 1", "up 2", "up 3")}
part = {name: [float(shares(column)[[PLACES.index(place) for place in group]].sum()) for column in (0, 1)]
        for name, group in LEVELS.items()}
for name, (weights, done) in part.items():
    print(f"{name:13}{weights:3.0f} % of the weights,{done:3.0f} % of the work")
assert part["bottom"][0] > 30 and part["bottom"][1] < 10 < 50 < part["outer levels"][1]

# %% [markdown]
# At the bottom a weight is used at 16 cells a frame only. Outside there are few weights, and each of them has to visit
# up to 1,024 cells a frame. Twice the height and the width is four times the work at every stage, and not one
# parameter more. (Self-attention grows faster still, with the square of the cells. An exercise of chapter 11,
# `11.room`, is about that.)

# %% [markdown]
# ## 3 · Memory
#
# A number in `float32` takes 4 bytes, in `float16` and `bfloat16` 2. So the weights:

# %% tags=["nbval-check-output"]
GB = 2 ** 30
for dtype in (torch.float32, torch.float16):
    print(f"{str(dtype):14}", {name: round(n * dtype.itemsize / GB, 2) for name, n in whole.items()},
          f"together {total * dtype.itemsize / GB:.2f} GB")

# %% [markdown]
# That is the smaller question. The larger one is what a network needs while it works: each layer makes a new tensor,
# and some must be kept for later. How many there are *at once* is hard to say by looking. One can compute by hand what
# a single one takes. In the decoder, the first layer at full size gets 256 channels of 256 x 256 cells for 16 frames:

# %% tags=["nbval-check-output"]
print(f"{16 * 256 * 256 * 256 * 2 / GB:.2f} GB in float16, and it is not alone")

# %% [markdown]
# For the rest we let the code tell. The package's `memory.py` sends networks without numbers through their work and
# keeps a *ledger*: each tensor that comes to be is written in, and struck out when it is gone. The largest sum is what
# must be there. Here is the ledger itself:

# %%
import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode   # calls us for every operation, on any device
from torch.utils._pytree import tree_leaves

# %%
# from minit2v.memory import Ledger

# %% [markdown]
# A ledger can also be read line by line. We note the sum at every entry, and watch the decoder at work on 16 frames:
# all at once, four at a time (what the package does by itself), and one at a time.

# %%
from minit2v.memory import FusedAttention


class Diary(Ledger):
    """A ledger that remembers: `story` holds the bytes after every tensor that came."""

    def __init__(self, network):
        super().__init__(network)
        self.story = []

    def _enter(self, storage):
        super()._enter(storage)
        self.story.append(self.now)


def diary_of(network, run):
    """GB of tensors over the course of run(), weights aside: (n,)."""
    with torch.no_grad(), torch.device("meta"), Diary(network) as diary, FusedAttention():
        run()
    return torch.tensor(diary.story) / GB

# %%
vae = parts["autoencoder"].to(torch.float16).eval()
z = torch.empty(1, 4, 16, 32, 32, dtype=torch.float16, device="meta")
stories = {f"{n} at a time": diary_of(vae, lambda: vae.decode(z, chunk=n)) for n in (16, 4, 1)}

# %%
figure = Figure(figsize=(7.5, 2.8), layout="constrained")
axes = figure.subplots()
for (name, story), colour in zip(stories.items(), figures.LINES):
    axes.plot(torch.linspace(0, 100, len(story)), story, color=figures.PALETTE[colour], label=name, linewidth=1)
axes.set(xlabel="per cent of the way, counted in tensors", ylabel="GB of tensors, computed")
axes.legend()
figures.picture(figure, "One tall hill for 16 frames at once, four low hills, sixteen small ripples for one at a time.")

# %% tags=["nbval-check-output"]
peaks = {name: story.max().item() for name, story in stories.items()}
print("four at a time take less than a third of all at once:", peaks["4 at a time"] < peaks["16 at a time"] / 3)
print("one at a time less than a tenth:", peaks["1 at a time"] < peaks["16 at a time"] / 10)
assert peaks["4 at a time"] < peaks["16 at a time"] / 3 and peaks["1 at a time"] < peaks["16 at a time"] / 10

# %% [markdown]
# The frames are decoded one by one in any case, for the decoder knows nothing of time. Doing four of them at a time
# gives the same clip and needs a quarter of the room. It is the cheapest saving there is, and ModelScope's own program
# does not make it: it decodes all frames in one batch.
#
# Two more savings, now for the whole model. **Half precision** halves all. **Offloading** lets weights wait in the
# processor's memory and brings them to the card when their turn has come: network by network (*parts*), or the UNet
# even block by block (*blocks*), which moves 2.6 GB at every step and is slow, but leaves hardly anything on the card.

# %%
from minit2v.memory import needs, on_device

half_need, full_need = (needs(config, dtype, 16, 256, 256) for dtype in (torch.float16, torch.float32))


def decoding(chunk):
    """What float16 needs if so many frames are decoded at a time, from the diaries above."""
    return half_need | {"autoencoder": (half_need["autoencoder"][0], peaks[f"{chunk} at a time"] * GB)}

# %%
ways = {"float32": (full_need, None), "float16": (half_need, None),
        "float16, all frames decoded at once": (decoding(16), None),
        "float16, one frame at a time": (decoding(1), None), "float16, parts": (half_need, "parts"),
        "float16, blocks": (half_need, "blocks"), "float16, blocks, one frame": (decoding(1), "blocks")}
room = {}
for name, (needed, offload) in ways.items():
    resting = on_device({part: (w, 0) for part, (w, _) in needed.items()}, offload)
    room[name] = {"weights": resting / GB, "working memory": (on_device(needed, offload) - resting) / GB}
bars(room, ("weights", "working memory"), size=(7.5, 3.0), xlabel="GB on the card, computed",
     alt="Bars: float32 is longest, float16 half of it; offloading by parts and by blocks shortens it to under 1 GB.")

# %% [markdown]
# As numbers, *computed, not measured on a card*, and beside the sizes in which cards are sold. (We take one GB of a
# card for its driver and for libraries, which is a guess. The T4 is sold with 16 GB, and Colab shows 15 of them.)

# %%
for name, pieces in room.items():
    gb = sum(pieces.values())
    fits = next((f"{card} GB" for card in (2, 4, 6, 8, 12, 16) if gb + 1 <= card), "more")
    print(f"{name:38}{gb:5.1f}   fits a card of {fits}")

# %% tags=["nbval-check-output"]
gb = {name: sum(pieces.values()) for name, pieces in room.items()}
print("half precision takes half:", 0.4 < gb["float16"] / gb["float32"] < 0.6)
print("decoding all at once costs a GB more:", 0.8 < gb["float16, all frames decoded at once"] - gb["float16"] < 1.4)
print("block by block, a fifth is left:", gb["float16, blocks"] < gb["float16"] / 5)
assert 0.4 < gb["float16"] / gb["float32"] < 0.6 and gb["float16, blocks"] < gb["float16"] / 5

# %% [markdown]
# Two things are to be seen. Decoding fewer than four frames at a time saves hardly anything more, for then it is the
# UNet that works hardest. And with *blocks* the largest thing on the card is the text encoder, which still comes in one
# piece.
# ModelScope's model card asks for 16 GB of the processor's memory and for 16 GB on the graphics card. The networks
# themselves need a quarter of that.

# %% [markdown]
# ## 4 · Whose names?
#
# A file of weights is a dictionary: names, and tensors. The numbers of the released UNet go about under three sets of
# names. There are ours; those of ModelScope's program; and those of diffusers, the library through which most people
# have met this model. To load the files, we must know which is which, for 1480 tensors.
#
# One could write a table of 1480 lines. But names are made by rules (a list in a class, a loop over levels), and so a
# few rules undo it. A rule is a pattern and its replacement, and a name passes through all of them:

# %%
from minit2v.checkpoints import _TRANSFORMER, UNET_DIFFUSERS, Rules, unet_names      # the next cells read them
from minit2v.config import UNetConfig

# %%
# from minit2v.checkpoints import translate

# %% [markdown]
# For diffusers these are all the rules there are. Read a few: *time_proj* is called *time_emb_proj* there, and the four
# kinds of parts, which we keep in blocks, lie in four lists.

# %% tags=["nbval-check-output"]
for pattern, replacement in UNET_DIFFUSERS:
    print(f"{pattern:42} {replacement}")
assert len(UNET_DIFFUSERS) == 16

# %% [markdown]
# ModelScope counts all blocks through from front to back, down- and upsampling included, and the parts of a block are
# number 0, 1 and 2. Here some replacements have to compute:

# %%
# from minit2v.checkpoints import unet_modelscope_rules

# %% [markdown]
# There it is, the word `temopral_conv`. Somebody mistyped it in 2023, it went into the files, and since then every
# program that reads them has to misspell it too. The same tensor in the three languages:

# %% tags=["nbval-check-output"]
theirs = unet_modelscope_rules(config.unet)
for name in ("down.1.blocks.0.temporal_conv.conv1.2.weight", "mid.0.spatial_transformer.block.attn2.to_k.weight",
             "up.2.blocks.2.res.conv1.weight", "up.2.resample.conv.bias"):
    print(name, translate(name, theirs), translate(name, UNET_DIFFUSERS), sep="\n    ")

# %% [markdown]
# Are the rules right? A mistake in them would not show in a picture of our own. We check them by a second way. From
# ModelScope's names one can compute diffusers' names directly, by arithmetic and without a thought of ours: entry $n$
# of `input_blocks` belongs to level $\lfloor (n-1) / 3 \rfloor$ and is number $(n-1) \bmod 3$ there. If ours to
# ModelScope to diffusers ends where ours to diffusers ends, 1480 times, then all three agree.

# %%
INNER = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
         "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}                # in a residual block
ENDS = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "out.0": "conv_norm_out",
        "input_blocks.0.0": "conv_in", "input_blocks.0.1": "transformer_in", "out.2": "conv_out"}

# %%
def across(name):
    """ModelScope's name of a tensor -> diffusers', by counting."""
    for old, new in ENDS.items():
        if name.startswith(old + "."):
            return new + name[len(old):]
    side, *rest = re.match(r"(input|output|middle)_block(?:s\.(\d+))?\.(.+)", name).groups()
    if side == "middle":
        slot, rest = rest[1].split(".", 1)
        home, n = "mid_block", {"0": 0, "1": 0, "2": 0, "3": 1}[slot]
        slot = {"3": "0"}.get(slot, slot)
    else:
        n = int(rest[0]) - (side == "input")
        home, n = f"{'down' if side == 'input' else 'up'}_blocks.{n // 3}", n % 3
        slot, rest = rest[1].split(".", 1)
    if slot == "op" or re.match(r"conv\.(weight|bias)$", rest):                      # to the next level
        return f"{home}.{'down' if slot == 'op' else 'up'}samplers.0.conv.{rest.split('.')[-1]}"
    if rest.startswith("temopral_conv."):
        return f"{home}.temp_convs.{n}.{rest.partition('.')[2]}"
    if slot == "0":
        inner, _, end = rest.rpartition(".")
        return f"{home}.resnets.{n}.{INNER[inner]}.{end}"
    return f"{home}.{'attentions' if slot == '1' else 'temp_attentions'}.{n}.{rest}"

# %% tags=["nbval-check-output"]
to_ms, to_df = (unet_names(config.unet, layout) for layout in ("modelscope", "diffusers"))
print(len(to_ms), "tensors;", len({name for name, *_ in to_ms.values()}), "different names at ModelScope,",
      len({name for name, *_ in to_df.values()}), "at diffusers")
agree = sum(across(to_ms[name][0]) == to_df[name][0] for name in to_ms)
print("the two ways to diffusers' names agree for", agree)
print("names with the typo:", sum("temopral" in name for name, *_ in to_ms.values()))
other = [name for name, (_, mine, shape) in to_ms.items() if mine != shape]
print("tensors of another shape:", len(other), "for example", other[0], to_ms[other[0]][1:])
assert agree == len(to_ms) == 1480 and len(other) == 34

# %% [markdown]
# Names agree for all. Shapes do for all but 34: ModelScope wrote the entrance and the exit of its temporal transformers
# as convolutions over a single frame, `(o, i, 1)`, which are linear layers by another name.
#
# ### To the byte
#
# How do we know that these names and shapes are really those of the released files, if we have not opened any? By
# arithmetic. The format *safetensors* is simple: eight bytes say how long the table is, then comes the table (for each
# name the type, the shape and the place), then the numbers. Names and shapes fix every byte of it but the numbers
# themselves, and so they fix the **size of the file**. The sizes are published.

# %%
def file_size(shapes, kind="F32", size=4):
    """Bytes of a safetensors file with these tensors, {name: shape}, as the library wrote it in 2023."""
    table, place = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        end = place + size * math.prod(shapes[name])
        table[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [place, end]}
        place = end
    head = len(json.dumps(table, separators=(",", ":")))
    return 8 + head + head % 8 + place                       # the library of that year filled up with blanks

# %% tags=["nbval-check-output"]
from minit2v.inventory import RELEASED

published = json.loads(RELEASED.read_text(encoding="utf-8"))["files"]
shapes = {name: shape for name, _, shape in to_df.values()}
for kind, size, variant in (("F32", 4, ""), ("F16", 2, ".fp16")):
    found = file_size(shapes, kind, size)
    known = published[f"unet/diffusion_pytorch_model{variant}.safetensors"]["bytes"]
    print(f"{kind}: computed {found:,}, published {known:,}")
    assert found == known

# %% [markdown]
# Change one letter in one name, and the sum would be off. (The autoencoder's and the text encoder's files come out
# right as well, but only under the names that diffusers and transformers used in 2023. They have renamed some tensors
# since: the lists that end in `_2023` in `checkpoints.py`.)

# %% [markdown]
# ## 5 · A stand-in
#
# From here on we want real files. The released ones have 3.7 GB (diffusers' layout in half precision) to 14.8 GB
# (ModelScope's, with much in it that nobody reads), so the chapter makes a **stand-in**: the same levels, blocks and
# names, all 1480 of them, with widths ten times smaller and random numbers. It draws noise. But whatever is true of its
# files (names, order, layout) is true of the large ones.

# %%
small = replace(config, name="stand-in", height=64, width=64,
                unet=replace(config.unet, channels=32, head_dim=8, context_dim=64),
                autoencoder=replace(config.autoencoder, channels=32), text=replace(config.text, width=64, heads=1))


@torch.no_grad()
def at_random(config, seed=0):
    """The three networks of a model with random numbers everywhere, in zero-initialised layers too."""
    generator = Generator().manual_seed(seed)
    with torch.device("meta"):
        made = networks(config)
    for network in made.values():
        network.to_empty(device="cpu").eval()
        for name, p in network.named_parameters():
            drawn = torch.randn(p.shape, generator=generator)
            p.copy_(drawn / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * drawn + name.endswith("weight"))
    return made


original = minit2v.TextToVideo(small, **at_random(small))

# %% [markdown]
# It is written in our own layout first. `convert` then writes the two layouts in which the released model is to be had:
# the same numbers under other names, in other files.

# %% tags=["nbval-check-output"]
from minit2v.convert import convert

scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)                   # goes when the kernel ends
folder = Path(scratch.name)
original.save(folder / "ours")
for layout in ("diffusers", "modelscope"):
    convert(folder / "ours", folder / layout, layout)
    print(layout)
    for path in sorted(folder.glob(f"{layout}/**/*.*")):
        print(f"    {path.relative_to(folder / layout).as_posix():45}{path.stat().st_size / 1e6:8.1f} MB")

# %% [markdown]
# Two very different ideas of a model. In the first, a folder for each part, with its settings beside it. In the second,
# three files and one `configuration.json`: ModelScope has written most settings down in its program. `load` looks which
# it is, and reads either.

# %%
noise = draw_noise((1, 4, 8, 8, 8), Generator().manual_seed(1))                      # (B, 4, F, h, w)
how = {"latents": noise, "num_inference_steps": 4, "sampler": "dpm++", "progress": False}
clips = [minit2v.load(folder / layout)("a panda eats bamboo", **how) for layout in ("ours", "diffusers", "modelscope")]

# %% tags=["nbval-check-output"]
off = max((clip.int() - clips[0].int()).abs().max().item() for clip in clips)        # of 255
print("the same clip from all three:", off <= 1)
assert off <= 1

# %%
figures.strip(clips[0], scale=2, alt="Eight frames of coloured noise: what a model with random numbers draws.")

# %% [markdown]
# Noise, as promised, and the same noise three times. (Where a weight lies in memory decides in which order a processor
# adds, so a last digit may be rounded otherwise; hence the 1.)

# %% [markdown]
# ## 6 · Loading without a second copy
#
# The usual way to load a network goes like this: build it, which fills it with random numbers; read the file; copy the
# file's numbers over the random ones. For a moment there are two of everything. At 7 GB that is 14, where 12 is
# what Colab's free machine has, and the program dies before it has made a single frame. (It is among the commonest
# complaints about this model.)
#
# Three ideas do away with the copy. The **meta device** builds the network without numbers. A **memory map** lets the
# operating system show a file as if it were memory: a page is fetched from disk when somebody looks at it, and not
# before. And `load_state_dict(..., assign=True)` puts the file's own tensors in the place of the empty ones, instead of
# copying out of them. In the package these are three lines:

# %%
from minit2v.layouts import open_model

stored = open_model(folder / "diffusers")                    # reads the settings; networks on the meta device
tensors = stored.part("unet").tensors()                      # maps the file; our names
lazy = stored.networks["unet"]
print(lazy.load_state_dict(tensors, strict=True, assign=True))

# %% [markdown]
# Is it true? If a parameter *is* a piece of the mapped file, then parameters must lie in memory exactly as their
# tensors lie in the file: as far apart, and in the same order. The file's table tells the places, `data_ptr` the
# addresses.

# %% tags=["nbval-check-output"]
path = folder / "diffusers" / "unet" / "diffusion_pytorch_model.safetensors"
with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    table = json.loads(file.read(length))
places = {name: entry["data_offsets"][0] for name, entry in table.items() if name != "__metadata__"}
print(len(places), "tensors in the table of the file")

# %% tags=["nbval-check-output"]
names_here = unet_names(small.unet, "diffusers")
addresses = {names_here[name][0]: p.data_ptr() for name, p in lazy.named_parameters()}
origin = {addresses[name] - place for name, place in places.items()}
print("all parameters are at their place in the file:", len(origin) == 1)
assert len(origin) == 1

# %% [markdown]
# Address minus place is the same number for all 1480: the address where the file begins. The network has no memory
# of its own. To see what that saves, ask the operating system how much memory this process calls its own, before and
# after (on Linux; elsewhere the cell says so):

# %%
import gc


def resident():
    """Bytes of memory of this process's own, mapped files aside; None where Linux does not tell."""
    status = Path("/proc/self/status")
    told = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return None if told is None else int(told[1]) * 1024


def grown(load):
    """What load() returns, and by how many times the file's size the process has grown since."""
    gc.collect()
    before = resident()
    result = load()
    return result, None if before is None else (resident() - before) / path.stat().st_size

# %%
def the_usual_way():
    from safetensors.torch import load

    network = UNet(small.unet)                               # random numbers,
    state = load(path.read_bytes())                          # the file's numbers,
    network.load_state_dict({name: state[names_here[name][0]] for name in names_here})
    return network, state                                    # both still there when the loading ends


def the_lazy_way():
    fresh = open_model(folder / "diffusers")
    fresh.networks["unet"].load_state_dict(fresh.part("unet").tensors(), strict=True, assign=True)
    return fresh.networks["unet"]


for way in (the_usual_way, the_lazy_way):
    kept, times = grown(way)
    print(f"{way.__name__:14}", "not measured on this system" if times is None else
          "more than one and a half times the file" if times > 1.5 else "less than a fifth of the file"
          if times < 0.2 else f"{times:.1f} times the file")

# %% [markdown]
# With half precision a conversion is needed where the files hold `float32`; then the package makes one tensor after the
# other and closes and reopens the file on its way, since only closing a map gives back what was looked at. There is
# never a second copy of the whole. (A test measures it: `test_layouts.py`.)
#
# ### Strictly
#
# `strict=True` is the other half of loading. Every name must be there, none may be left over, and each shape must fit.
# The package asks this *before* it reads a single number, and says what it misses. Here somebody has corrected the
# typo:

# %%
from minit2v.tensorfiles import read

ms_file = folder / "modelscope" / "text2video_pytorch_model.pth"
corrected = {name.replace("temopral", "temporal"): tensor.clone() for name, tensor in read(ms_file).items()}
kept = ms_file.read_bytes()
torch.save(corrected, ms_file)

# %%
try:
    minit2v.load(folder / "modelscope")
except ValueError as error:
    told = str(error).replace(str(folder), "...").replace("\\", "/")
ms_file.write_bytes(kept)
print("\n".join(told.splitlines()[:3]), "  ...", told.splitlines()[-1], sep="\n")

# %% tags=["nbval-check-output"]
print("does not fit its configuration" in told, "temopral_conv" in told, "the nearest that is expected" in told)
assert "does not fit its configuration" in told and "temopral_conv" in told

# %% [markdown]
# What happens to somebody who writes `strict=False` instead, section 10 shows.

# %% [markdown]
# ## 7 · A file that runs
#
# ModelScope's three files are *pickles*. A pickle is not a table of numbers, it is a little program for building Python
# objects, and building may mean calling any function at all. Here is a file that looks like weights. Python's own
# reader does what it says:

# %% tags=["nbval-check-output"]
class Weights:
    def __reduce__(self):                                    # "to build me again, call exec with this text"
        return exec, ("print('  I could have done anything, with your rights.')",)


torch.save({"conv_in.weight": torch.zeros(3), "surprise": Weights()}, folder / "free_weights.bin")
print("somebody opens it without care:")
content = torch.load(folder / "free_weights.bin", weights_only=False)

# %% [markdown]
# That line of text was not printed by us. It came out of the file, while it was *opened*: nobody had called anything in
# it. The package has one reader for pickles, torch's restricted one, which builds tensors and calls nothing. What asks
# for more is refused:

# %%
try:
    read(folder / "free_weights.bin")
except ValueError as error:
    told = str(error).replace(str(folder), "...").replace("\\", "/")
print(told)

# %% tags=["nbval-check-output"]
print("refused:", "carries code" in told, " and not run:", "Nothing of it was run" in told)
assert "carries code" in told and "Nothing of it was run" in told

# %% [markdown]
# The released files carry no such thing, but one of them stumbles over the same rule. `VQGAN_autoencoder.pth` is no
# VAE, it is the *whole* checkpoint of Stable Diffusion 2.1 base, with text tower and image UNet (1.2 billion of its
# parameters are read by nobody here). Among its notes on training there are objects of a library named
# `pytorch_lightning`. With `weights_only=True` it is refused; with `False`, it asks you to install a training library
# in order to read a decoder. The package names the few classes of these notes and gives an empty one for each, which
# swallows what it is given:

# %%
# from minit2v.tensorfiles import Note

# %% tags=["nbval-check-output"]
from minit2v.tensorfiles import NOTES

print("\n".join(NOTES))

# %% [markdown]
# A safetensors file cannot run: there is nothing in it that could be called. Where you have the choice, take it.

# %% [markdown]
# ## 8 · The same numbers as others
#
# Weights that load into all their places can still mean something else there: a norm with another epsilon, a gate that
# is a value, frames where pixels should be. So numbers must be compared with somebody who wrote the network
# independently. We do it twice.
#
# First with a network that consists of *nothing but the file*. The names in ModelScope's file say what each part is:
# where there are `in_layers`, there is a residual block; where `proj_in` has three axes, time is meant; `op` goes down.
# So let us walk along the names, with plain functions, and none of our classes.

# %%
W = read(ms_file)                                            # ModelScope's names


def layer(x, p):
    return x @ W[f"{p}.weight"].flatten(1).T + W.get(f"{p}.bias", 0)


def conv(x, p, stride=1):
    weight = W[f"{p}.weight"]
    return F.conv2d(x, weight, W[f"{p}.bias"], stride, padding=weight.shape[-1] // 2)


def normed(x, p, eps=1e-5):
    return F.group_norm(x, 32, W[f"{p}.weight"], W[f"{p}.bias"], eps)

# %% [markdown]
# The residual block and the temporal convolution, as they were in chapters 05 and 07:

# %%
def res_part(x, emb, p):                                     # x: (F, C, h, w)
    h = conv(F.silu(normed(x, f"{p}.in_layers.0")), f"{p}.in_layers.2")
    h = h + layer(F.silu(emb), f"{p}.emb_layers.1")[..., None, None]
    h = conv(F.silu(normed(h, f"{p}.out_layers.0")), f"{p}.out_layers.3")
    return h + (conv(x, f"{p}.skip_connection") if f"{p}.skip_connection.weight" in W else x)

# %%
def time_part(x, p):                                         # the famous temopral_conv
    h = rearrange(x, "f c h w -> 1 c f h w")
    for i, place in enumerate((2, 3, 3, 3), start=1):        # from the second on, a dropout stands in between
        last = f"{p}.conv{i}.{place}"
        h = F.conv3d(F.silu(normed(h, f"{p}.conv{i}.0")), W[f"{last}.weight"], W[f"{last}.bias"], padding=(1, 0, 0))
    return x + rearrange(h, "1 c f h w -> f c h w")

# %% [markdown]
# Attention from its formula, and the two kinds of transformers, which differ in what stands in a row:

# %%
def heads(x, p):
    return rearrange(layer(x, p), "n l (h d) -> n h l d", d=small.unet.head_dim)


def attention_part(x, context, p):                           # x: (N, L, C)
    q, k, v = heads(x, f"{p}.to_q"), heads(context, f"{p}.to_k"), heads(context, f"{p}.to_v")
    mixed = einsum(q, k, "n h i d, n h j d -> n h i j") / q.shape[-1] ** 0.5
    mixed = einsum(mixed.softmax(-1), v, "n h i j, n h j d -> n h i d")
    return layer(rearrange(mixed, "n h l d -> n l (h d)"), f"{p}.to_out.0")

# %%
def transformer_part(x, words, p):                           # x: (F, C, h, w), words: (1, L, D)
    in_time = W[f"{p}.proj_in.weight"].ndim == 3             # a Conv1d at its door: this one sees time
    if in_time:
        clip = normed(rearrange(x, "f c h w -> 1 c f h w"), f"{p}.norm", 1e-6)
        tokens = rearrange(clip, "1 c f h w -> (h w) f c")
    else:
        tokens = rearrange(normed(x, f"{p}.norm", 1e-6), "f c h w -> f (h w) c")
    h, b = layer(tokens, f"{p}.proj_in"), f"{p}.transformer_blocks.0"

    def ln(x, i):
        return F.layer_norm(x, x.shape[-1:], W[f"{b}.norm{i}.weight"], W[f"{b}.norm{i}.bias"])

    h = h + attention_part(ln(h, 1), ln(h, 1), f"{b}.attn1")
    h = h + attention_part(ln(h, 2), ln(h, 2) if in_time else words.expand(len(h), -1, -1), f"{b}.attn2")
    value, gate = layer(ln(h, 3), f"{b}.ff.net.0.proj").chunk(2, dim=-1)
    h = layer(h + layer(value * F.gelu(gate), f"{b}.ff.net.2"), f"{p}.proj_out")
    return x + rearrange(h, "(h w) f c -> f c h w" if in_time else "f (h w) c -> f c h w", h=x.shape[2])

# %% [markdown]
# And the walk: whatever the file lists under a number is done in its order. On the way down each result is put aside,
# on the way up it is taken back.

# %%
def walk(x, emb, words, p):
    """Everything that stands in the file under the prefix p, one after the other."""
    for slot in sorted({name[len(p) + 1:].split(".")[0] for name in W if name.startswith(f"{p}.")}):
        at = f"{p}.{slot}"
        if f"{at}.in_layers.0.weight" in W:
            x = time_part(res_part(x, emb, at), f"{at}.temopral_conv")
        elif f"{at}.proj_in.weight" in W:
            x = transformer_part(x, words, at)
        elif f"{at}.conv.weight" in W:
            x = conv(F.interpolate(x, scale_factor=2.0), f"{at}.conv")
        else:                                                # "op" halves; the very first one only convolves
            x = conv(x, at, stride=2 if slot == "op" else 1)
    return x

# %%
@torch.no_grad()
def from_the_file(latents, timestep, words):
    """latents: (1, 4, F, h, w), words: (1, L, D) -> the predicted noise, shaped as the latents."""
    waves = timestep * 10000 ** (-torch.arange(small.unet.channels // 2) / (small.unet.channels // 2))
    emb = layer(F.silu(layer(torch.cat([waves.cos(), waves.sin()]), "time_embed.0")), "time_embed.2")
    x, aside = rearrange(latents, "1 c f h w -> f c h w"), []
    for n in range(12):
        x = walk(x, emb, words, f"input_blocks.{n}")
        aside.append(x)
    x = walk(x, emb, words, "middle_block")
    for n in range(12):
        x = walk(torch.cat([x, aside.pop()], dim=1), emb, words, f"output_blocks.{n}")
    return rearrange(conv(F.silu(normed(x, "out.0")), "out.2"), "f c h w -> 1 c f h w")

# %% tags=["nbval-check-output"]
words = draw_noise((1, 77, small.unet.context_dim), Generator().manual_seed(2))
unet = minit2v.load(folder / "modelscope").unet
with torch.no_grad():
    expected = from_the_file(noise, 981, words)
    found = unet(noise, torch.tensor([981]), words)
print("spread of the answer is more than 0.1:", bool(expected.std() > 0.1))
print("our class gives the same:", bool((found - expected).abs().max() < 1e-4 * expected.abs().max()))
assert expected.std() > 0.1 and (found - expected).abs().max() < 1e-4 * expected.abs().max()

# %% [markdown]
# Not seventy lines and a dictionary, and it is the network of 1,411,233,860 parameters, whenever `W` is the large file.
# (It is slow, and needs all the memory that the package saves. As a proof it will do.)
#
# Second, with **diffusers** itself, if it is installed here: its own classes load the folder that we wrote, and its own
# pipeline makes a clip from the same noise.

# %%
def compare_with_diffusers():
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    theirs = diffusers.TextToVideoSDPipeline.from_pretrained(folder / "diffusers")
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        answer = theirs.unet(noise, torch.tensor([981]), words).sample
    print("the UNet's answers are equal:", bool((answer - found).abs().max() < 1e-4 * found.abs().max()))
    how = {"num_inference_steps": 4, "guidance_scale": 9.0, "latents": noise}
    frames = theirs("a panda", num_frames=8, height=64, width=64, output_type="pt", **how).frames[0]
    clip = minit2v.load(folder / "diffusers")("a panda", progress=False, **how)
    apart = ((frames.permute(0, 2, 3, 1) * 255).round() - clip.float()).abs().max()
    print("the clips differ by at most 1 of 255:", bool(apart <= 1))


if find_spec("diffusers") and find_spec("transformers"):
    compare_with_diffusers()
else:
    print("diffusers is not installed here: pip install diffusers transformers, and run this cell again")

# %% [markdown]
# The package's tests go further: against ModelScope's own class, its sampling loop and its decoder, in single and
# double precision, and for all three networks one by one (`test_modelscope.py`, `test_layouts.py`).

# %% [markdown]
# ## 9 · What the original does
#
# ModelScope's class `TextToVideoSynthesis` builds its UNet on the processor, reads the whole of
# `text2video_pytorch_model.pth` into memory and calls `load_state_dict(..., strict=True)`: two copies for a moment, and
# strictness. For the text it builds *all* of CLIP and then deletes the half that sees pictures. The setting
# `tiny_gpu: 1` in `configuration.json` is our `offload="parts"`: the networks take turns on the card. It decodes all
# frames at once.
#
# Two slips in its files are worth knowing. `temporal_attention` is the *text* `"True"` there, and the program compares
# with the text, so an honest `true` without quotes would be taken for no. And, as chapter 03 found, the tokenizer on
# the Hub names `!` as its padding, which has the number 0; in open_clip, with which the model was trained, padding is
# 0 as well, but `!` is a token of its own. So a prompt with an exclamation mark means one thing to diffusers and
# another to the original:

# %% tags=["nbval-check-output"]
from minit2v.text import HubTokenizer, Tokenizer

for kind in (Tokenizer, HubTokenizer):
    print(f"{kind.__name__:14}", kind(config.text).encode("a panda!"))

# %% [markdown]
# The **report** says 1.7 billion parameters "in three parts", half a billion of them for time (abstract). Its figures
# agree with ours if a million is $2^{20}$: a summary of its tables gives 1345M for the UNet, and you have seen that
# number come out of section 1. (We know the tables from that summary only, not from the page itself.)

# %% [markdown]
# ## 10 · What can go wrong
#
# Strict loading finds a wrong name and a wrong shape. It cannot find a right name on the wrong numbers. Five mistakes
# in a converter, each a few characters long; which of them does it let pass?

# %%
state = unet.state_dict()


def exchanged(a, b):
    """A converter that takes each name with a in it for the one with b, and the other way round."""
    turn = {a: b, b: a}
    return {re.sub(f"{a}|{b}", lambda m: turn[m[0]], name): tensor for name, tensor in state.items()}


def reshaped(pattern, change):
    return {name: change(tensor) if re.search(pattern, name) else tensor for name, tensor in state.items()}

# %%
mistakes = {
    "the typo corrected": {name.replace("temporal_conv", "temopral_conv"): t for name, t in state.items()},
    "levels of the way up reversed": exchanged("up.0.", "up.3."),
    "queries and keys exchanged": exchanged("attn1.to_q", "attn1.to_k"),
    "gate and value exchanged": reshaped("ff.proj", lambda t: torch.cat(t.chunk(2)[::-1])),
    "Conv1d read as (in, out)": reshaped("temporal_transformer.proj_(in|out).weight", lambda t: t.T),
}

# %% tags=["nbval-check-output"]
words_and_time = (torch.tensor([981]), words)
for name, wrong in mistakes.items():
    with torch.device("meta"):
        suspect = UNet(small.unet).eval()
    try:
        suspect.load_state_dict(wrong, strict=True, assign=True)
    except RuntimeError:
        print(f"{name:32} refused")
        continue
    with torch.no_grad():
        off = (suspect(noise, *words_and_time) - found).abs().max() / found.abs().max()
    print(f"{name:32} LOADS, and the answer is {'the same' if off < 1e-4 else 'another one'}")
    assert off > 1e-2

# %% [markdown]
# Three of five load without a word and compute something else. No exception, no wrong shape; with released weights you
# would get a clip, and it would be mush, or perhaps only a little worse than it ought to be. Only a comparison with
# somebody else's numbers finds them, and that is why section 8 is as long as it is.
#
# **`strict=False`.** The first mistake was refused. The internet's usual advice, when `load_state_dict` complains, is
# to switch the complaint off:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
hushed = UNet(small.unet).eval()
missing, unexpected = hushed.load_state_dict(mistakes["the typo corrected"], strict=False)
print("it loads; left as they were born:", len(missing), "tensors")

# %% tags=["nbval-check-output"]
class NoTime(TemporalConv):
    def forward(self, x):
        return x


deaf = minit2v.load(folder / "modelscope").swap(TemporalConv=NoTime).unet
with torch.no_grad():
    same = torch.allclose(hushed(noise, *words_and_time), deaf(noise, *words_and_time), atol=1e-5)
print("exactly the network without temporal convolutions:", same)
assert same and len(missing) == sum("temopral" in name for name in mistakes["the typo corrected"])

# %% [markdown]
# All temporal convolutions stayed as they were born, and they are born as nothing (chapter 07). So the network runs,
# and is exactly the one that does not know the order of its frames. You would look for the mistake in the training.
#
# **Too large for half.** `float16` ends at 65,504. `bfloat16` reaches as far as `float32`, and is coarser:

# %% tags=["nbval-check-output"]
for value in (65504.0, 70000.0, 1.001):
    print(value, "->", *(float(torch.tensor(value).to(dtype)) for dtype in (torch.float16, torch.bfloat16)))

# %% [markdown]
# One number beyond the end is infinite, the next norm makes it "not a number", and the layer after that spreads it over
# the whole clip, which comes out black. The autoencoder is the usual place. Here is a decoder whose weights are too
# strong, in half precision; the pipeline looks at its own numbers and says where it happened:

# %%
broken = minit2v.load(folder / "modelscope", vae_dtype="float16")
with torch.no_grad():
    broken.autoencoder.post_quant_conv.weight *= 1e6
try:
    broken("a panda", **how)
except ValueError as error:
    print(str(error).partition(".")[0], "...", str(error).partition(". ")[2], sep="\n")

# %% [markdown]
# The symptoms, in short:
#
# | what you see | where to look |
# |---|---|
# | missing and unexpected names | the rules; the year of the file; the typo |
# | loads, and draws mush | a right name on the wrong numbers: compare with another implementation |
# | fine pictures that do not move | temporal parts left unloaded: `strict=False` |
# | killed while loading | a second copy: meta device, map, assign |
# | a black clip, or an error that names NaN | float16 overflow: `vae_dtype="float32"` |

# %% [markdown]
# ## Recap
#
# 1. Parameters, work and memory follow from a few formulas; the released UNet has 1,411,233,860, and 4.8 TFLOP a call.
# 2. Weights sit low in the U, work on its outer levels; half precision, chunks and offloading save memory.
# 3. A layout is names and shapes: a few rules translate them, and file sizes prove them right to the byte.
# 4. Meta device, memory map and assign load without a second copy; a pickle is a program, so it is read with
#    restrictions.
# 5. Strict loading finds wrong names, and only a comparison of numbers finds right names on the wrong tensors.
#
# What you now own: the released model, as far as it can be owned without having it. Chapter 11 puts it to work.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/10_the_released_model](../exercises/10_the_released_model.ipynb).
#
# 1. **Other words for the same thing** (build). Translate our names of the UNet's tensors into diffusers', by rules.
# 2. **Nothing missing, nothing left over** (build). Load strictly, and tell by name what does not fit.
# 3. **A few frames at a time** (build). Decode in chunks; the frames must be the same.
# 4. **Too large for half** (repair). A normalisation that overflows and underflows in float16. Mend it.
# 5. **What time costs** (explore). Predict the parameters of a temporal convolution of the released width.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The model whose parts are
#   counted here.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022, arXiv:2112.10752. Where the
#   image half and the autoencoder come from.
# - J. Hoffmann et al., *Training Compute-Optimal Large Language Models*, 2022, arXiv:2203.15556. Appendix F counts
#   the operations of a transformer layer by layer, as section 1 does.
# - P. Micikevicius et al., *Mixed Precision Training*, 2018, arXiv:1710.03740. What float16 can hold and what it
#   cannot.
# - NVIDIA, *T4 Tensor Core GPU* data sheet, 2019. The 65 TFLOP a second, and 16 GB.
# - *safetensors*, format description in the library's README. Eight bytes, a table, the numbers.
