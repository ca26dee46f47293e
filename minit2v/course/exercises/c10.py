"""Chapter 10, the released model: other names for the same tensors, strict loading, chunks, half precision."""

import re

import torch
from torch import Tensor

from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors
from minit2v.unet import TemporalConv

# 10.names

_THEIRS = {                                              # as they stand in the released diffusers file
    "conv_in.weight": "conv_in.weight",
    "time_embedding.2.bias": "time_embedding.linear_2.bias",
    "down.0.blocks.1.res.conv1.weight": "down_blocks.0.resnets.1.conv1.weight",
    "up.2.blocks.0.res.time_proj.weight": "up_blocks.2.resnets.0.time_emb_proj.weight",
    "up.1.blocks.2.res.shortcut.bias": "up_blocks.1.resnets.2.conv_shortcut.bias",
    "down.1.blocks.0.temporal_conv.conv4.3.weight": "down_blocks.1.temp_convs.0.conv4.3.weight",
    "down.2.resample.conv.weight": "down_blocks.2.downsamplers.0.conv.weight",
    "up.0.resample.conv.bias": "up_blocks.0.upsamplers.0.conv.bias",
    "mid.1.temporal_conv.conv1.0.weight": "mid_block.temp_convs.1.conv1.0.weight",
    "mid.0.spatial_transformer.block.attn2.to_k.weight":
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "up.3.blocks.1.temporal_transformer.block.attn1.to_out.bias":
        "up_blocks.3.temp_attentions.1.transformer_blocks.0.attn1.to_out.0.bias",
    "down.0.blocks.0.spatial_transformer.block.ff.proj.weight":
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    "transformer_in.block.ff.out.weight": "transformer_in.transformer_blocks.0.ff.net.2.weight",
    "transformer_in.proj_in.weight": "transformer_in.proj_in.weight",
    "norm_out.weight": "conv_norm_out.weight",
}
_PARTS = {"res": "resnets", "temporal_conv": "temp_convs", "spatial_transformer": "attentions",
          "temporal_transformer": "temp_attentions"}


def _names_cases(seed):
    return [(name,) for name in _THEIRS]


def _names(name, parts=_PARTS, blocks=r"\1_blocks.\2.{}.\3.", samplers=r"\1_blocks.\2.\1samplers.0.", out=".to_out.0.",
           ff=(".ff.net.0.proj.", ".ff.net.2."), whole=".block.", time=r"time_embedding.linear_\1."):
    name = re.sub(r"^time_embedding\.(\d)\.", lambda m: f"time_embedding.linear_{(int(m[1]) + 2) // 2}."
                  if time else m[0], name)
    name = re.sub(r"^norm_out\.", "conv_norm_out.", name)
    name = name.replace(whole, whole if whole != ".block." else ".transformer_blocks.0.").replace(".to_out.", out)
    name = name.replace(".ff.proj.", ff[0]).replace(".ff.out.", ff[1])
    name = re.sub(r"^(down|up)\.(\d+)\.resample\.", samplers, name)
    for ours, theirs in parts.items():
        name = re.sub(rf"^(down|up)\.(\d+)\.blocks\.(\d+)\.{ours}\.", blocks.format(theirs), name)
        name = re.sub(rf"^mid\.(\d+)\.{ours}\.", rf"mid_block.{theirs}.\1.", name)
    return name.replace(".time_proj.", ".time_emb_proj.").replace(".shortcut.", ".conv_shortcut.")


def _names_swapped(name):
    return _names(name, blocks=r"\1_blocks.\3.{}.\2.")


def _names_order(name):
    return _names(name, blocks=r"\1_blocks.\2.\3.{}.")


def _names_down(name):
    return _names(name, samplers=r"\1_blocks.\2.downsamplers.0.")


def _names_bare(name):
    return _names(name, out=".to_out.")


def _names_crossed(name):
    return _names(name, parts={**_PARTS, "spatial_transformer": "temp_attentions",
                               "temporal_transformer": "attentions"})


def _names_second(name):
    return _names(name, ff=(".ff.net.0.proj.", ".ff.net.1."))


def _names_block(name):
    return _names(name, whole="-")


def _names_letters(name):
    return _names(name).replace("downsamplers.0", "resnetsample").replace("upsamplers.0", "resnetsample")


def _names_zero(name):
    return _names(name, time=None)


def _draw_names():
    return figures.stations(
        [("ours", "", "down.0.blocks.1.temporal_conv.conv1.2.weight"),
         ("theirs", "", "down_blocks.0.temp_convs.1.conv1.2.weight")],
        ["the level keeps its place; the part comes before the number of the block"],
        alt="One name above the other: down, level 0, block 1, temporal_conv becomes down_blocks, level 0, temp_convs, "
            "number 1; what follows stays.")


NAMES = Exercise(
    name="10.names", target="diffusers_name", kind="build", title="Other words for the same thing", minutes=25, level=2,
    points=3, cases=_names_cases, oracle=lambda name: _THEIRS[name],
    forbidden=("translate", "UNET_DIFFUSERS", "unet_names", "released_names"),
    mistakes=(
        Mistake("level and block exchanged", _names_swapped, "The numbers of the level and of the block have changed "
                "places. Where both are 0 nobody notices; elsewhere weights go to another floor."),
        Mistake("part behind the number", _names_order, "In their names the *part* comes first and the block's number "
                "behind it: each part has a list of its own. (Chapter 10, the rules that map names.)"),
        Mistake("always down", _names_down, "On the way up there is a downsampler with you. Which word it is depends "
                "on the way that the name begins with."),
        Mistake("a list of one", _names_bare, "Their output layer of an attention is a list, of the layer and of a "
                "dropout. So its name has a number more."),
        Mistake("space and time exchanged", _names_crossed, "The two transformers are exchanged. Most of their weights "
                "would even fit, in the wrong place."),
        Mistake("the next layer", _names_second, "In their feed-forward, `net.1` is a dropout without weights. The "
                "layer that comes out of it is one later."),
        Mistake("the block itself", _names_block, "`block` is still called so. Theirs is a list of blocks, which has "
                "only one."),
        Mistake("letters for words", _names_letters, "You replace letters, not whole words: `res` is also the "
                "beginning of `resample`. A dot on either side makes the difference."),
        Mistake("numbers for names", _names_zero, "The two layers of the time embedding are counted 0 and 2 by us (the "
                "SiLU is 1). They are called linear_1 and linear_2 there."),
    ),
    hints=(_draw_names, "A list of rules, one after the other, each a pattern and what takes its place, for `re.sub`. "
           "`\\d+` is a number, brackets keep it, `\\1` brings it back, `^` is the beginning; a real dot is `\\.`.",
           "First the words inside of a transformer, which stand where they stand. Then the way down and up: keep the "
           "level and the block's number, and put the part between them.",
           "Go through the table of examples row by row, and after each new rule through all of them again: some rules "
           "must come before others."),
)


# 10.load

def _load_cases(seed):
    return [tuple(random_tensors(seed, (4, 3, 1), (4,)))]


def _told(hand_in, stored, expected, name):
    """What a hand-in makes of a file that does not fit."""
    try:
        hand_in(stored, expected)
    except ValueError as error:
        return "told" if name in str(error) else "a ValueError that does not name it"
    except Exception as error:
        return f"{type(error).__name__} in the place of a ValueError"
    return "nothing was told"


def _taken(hand_in, stored, expected):
    try:
        return hand_in(stored, expected)
    except ValueError:
        return "refused"


def _call_load(hand_in, weight, bias):
    stored = {"proj.weight": weight, "proj.bias": bias}
    expected = {"proj.bias": (4,), "proj.weight": (4, 3)}
    fits = hand_in(dict(stored), dict(expected))
    return {"what fits": {name: fits.get(name) for name in sorted(fits)} if isinstance(fits, dict) else fits,
            "one axis more": _taken(hand_in, {"scale": bias}, {"scale": (1, 4, 1)}),
            "one missing": _told(hand_in, {"proj.weight": weight}, expected, "proj.bias"),
            "one too much": _told(hand_in, {**stored, "scale": bias}, expected, "scale"),
            "one too long": _told(hand_in, {**stored, "proj.bias": torch.cat([bias, bias])}, expected, "proj.bias"),
            "one turned": _told(hand_in, {**stored, "proj.weight": weight.transpose(0, 1)}, expected, "proj.weight")}


def _load_oracle(weight, bias):
    return {"what fits": {"proj.bias": bias, "proj.weight": torch.einsum("oik->oi", weight)},
            "one axis more": {"scale": bias[None, :, None]},
            **{what: "told" for what in ("one missing", "one too much", "one too long", "one turned")}}


def _load(stored, expected, missing=True, unknown=True, shapes="sizes", name=True, kind=ValueError, reshape=True):
    def fail(key):
        raise kind(f"{key} does not fit" if name else "the file does not fit")

    found = {}
    for key, shape in expected.items():
        if key not in stored:
            if missing:
                fail(key)
            continue
        tensor = stored[key]
        sizes = tuple(tensor.shape) if shapes == "exact" else tuple(n for n in tensor.shape if n > 1)
        if shapes == "count" and tensor.numel() != torch.Size(shape).numel():
            fail(key)
        wanted = tuple(n for n in shape if n > 1) if shapes == "sizes" else tuple(shape)
        if shapes in ("sizes", "exact", "one way") and sizes != wanted:
            fail(key)
        found[key] = tensor.reshape(shape) if reshape else tensor
    for key in stored:
        if key not in expected and unknown:
            fail(key)
    return found


def _load_lenient(stored, expected):
    return _load(stored, expected, missing=False)


def _load_deaf(stored, expected):
    return _load(stored, expected, unknown=False)


def _load_count(stored, expected):
    return _load(stored, expected, shapes="count")


def _load_exact(stored, expected):
    return _load(stored, expected, shapes="exact")


def _load_one_way(stored, expected):
    return _load(stored, expected, shapes="one way")


def _load_mute(stored, expected):
    return _load(stored, expected, name=False)


def _load_key(stored, expected):
    return _load(stored, expected, kind=KeyError)


def _load_loose(stored, expected):
    return _load(stored, expected, shapes=None, reshape=False)


LOAD = Exercise(
    name="10.load", target="fit", kind="build", title="Nothing missing, nothing left over", minutes=20, level=2,
    points=3, cases=_load_cases, call=_call_load, oracle=_load_oracle, forbidden=("rename", "check_tensors"),
    mistakes=(
        Mistake("holes", _load_lenient, "A tensor that is missing in the file is not told. The layer would keep its "
                "random numbers, and the clips would look a little worse, nobody knows why."),
        Mistake("leftovers", _load_deaf, "A tensor too much is not told. Mostly it means that the file is of another "
                "model, or that a rule for a name is wrong."),
        Mistake("only counted", _load_count, "You compare how *many* numbers there are. A matrix that lies on its side "
                "has as many, and would be read in the wrong order."),
        Mistake("too strict", _load_exact, "What fits is refused: a convolution over one place, (4, 3, 1), is the same "
                "as a linear layer, (4, 3). Axes of length 1 should make no difference."),
        Mistake("one way only", _load_one_way, "An axis of length 1 may be left out, with you, but not put in: where "
                "the network expects one that the file has not, you refuse what fits."),
        Mistake("which one?", _load_mute, "You say that something does not fit, but not what. Among a thousand tensors "
                "the name is all that helps."),
        Mistake("another error", _load_key, "You raise a KeyError. Whoever calls this waits for a ValueError, which "
                "says that the *file* is wrong."),
        Mistake("shapes not looked at", _load_loose, "Nobody looks at the shapes: what is (4, 3, 1) stays so, and what "
                "is too long goes through."),
    ),
    hints=(sketches.load,
           "Three questions: which names are expected and not there, which are there and not expected, and which "
           "tensors have other shapes? Ask all of them before you give anything back.",
           "Names of dicts behave like sets: `a.keys() - b.keys()`. To compare shapes, leave out the axes of length 1 "
           "on both sides; the order of the others counts.",
           "`tensor.reshape(shape)` is safe once you know that only axes of length 1 differ."),
)


# 10.chunks

def _chunks_cases(seed):
    return [(*random_tensors(seed, (2, 4, 7, 2, 3)), 3), (*random_tensors(seed + 1, (1, 4, 6, 2, 2)), 2),
            (*random_tensors(seed + 2, (2, 4, 3, 2, 2)), 5)]


def _decode(x):
    """A decoder of formulas: each frame by itself, twice as large, in three colours."""
    colours = (x[:, :3] * x[:, 3:] + x[:, 1:4].flip(-1)).cumsum(-2)                                   # (N, 3, F, h, w)
    return colours.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def _call_chunks(hand_in, latents, size):
    asked = []

    def decode(x):
        asked.append(x.shape[2])
        return _decode(x)

    return {"frames": hand_in(decode, latents, size), "most at a time": max(asked, default=0)}


def _chunks_oracle(latents, size):
    frames = [torch.stack([_decode(clip[None, :, f:f + 1])[0, :, 0] for f in range(clip.shape[1])], dim=1)
              for clip in latents]
    return {"frames": torch.stack(frames), "most at a time": min(size, latents.shape[2])}


def _chunks_lost(decode, latents, size):
    starts = range(0, max(1, latents.shape[2] // size) * size, size)
    return torch.cat([decode(latents[:, :, i:i + size]) for i in starts], dim=2)


def _chunks_joined(decode, latents, size):
    return torch.cat([decode(part) for part in latents.split(size, dim=2)])


def _chunks_single(decode, latents, size):
    return torch.cat([decode(part) for part in latents.split(1, dim=2)], dim=2)


def _chunks_count(decode, latents, size):
    return torch.cat([decode(part) for part in latents.chunk(size, dim=2)], dim=2)


def _chunks_whole(decode, latents, size):
    return decode(latents)


def _chunks_overlap(decode, latents, size):
    return torch.cat([decode(latents[:, :, i:i + size]) for i in range(0, latents.shape[2], max(1, size - 1))], dim=2)


CHUNKS = Exercise(
    name="10.chunks", target="in_chunks", kind="build", title="A few frames at a time", minutes=10, level=1, points=2,
    cases=_chunks_cases, call=_call_chunks, oracle=_chunks_oracle, gradients=True,
    mistakes=(
        Mistake("the end is lost", _chunks_lost, "The last frames are missing where their number cannot be divided: "
                "the last chunk may be shorter."),
        Mistake("joined at the wrong end", _chunks_joined, "Your chunks are lined up as more *clips*. They are pieces "
                "of time."),
        Mistake("one by one", _chunks_single, "The frames are right, but you decode them one by one: `size` of them "
                "go at a time. Fewer calls are faster."),
        Mistake("number for size", _chunks_count, "You cut the clip into `size` pieces. It should be pieces of `size` "
                "frames."),
        Mistake("all at once", _chunks_whole, "The frames are right, and all of them are decoded at once: memory is as "
                "full as before."),
        Mistake("frames twice", _chunks_overlap, "Some frames come out twice: each chunk begins with the last frame of "
                "the one before."),
    ),
    hints=(sketches.chunks,
           "The frames are the third axis of (B, 4, F, h, w) and of (B, 3, F, H, W), too.",
           "Torch can cut a tensor along an axis into pieces of a given length, the last one being what is left, and "
           "it can lay them side by side again."),
)


# 10.half

def _half_cases(seed):
    large, small, usual = random_tensors(seed, (3, 64), (3, 64), (2, 32))
    return [((1000 * large + 200).half(),), ((1e-4 * small).half(),), (usual.half(),), ((usual + 300).half(),)]


def _call_half(hand_in, x):
    out = hand_in(x)
    if not isinstance(out, Tensor):
        return out
    return {"values": out.double(), "type": str(out.dtype), "type, of float32": str(hand_in(x.float()).dtype)}


def _half_oracle(x):
    rows = torch.stack([(row - row.sum() / len(row)) / (row - row.sum() / len(row)).norm() * len(row) ** 0.5
                        for row in x.double()])
    return {"values": rows.half().double(), "type": "torch.float16", "type, of float32": "torch.float32"}


def _half(x, wide=torch.float32, eps=0.0, less=0):
    wide = x.to(wide)
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = (centred * centred).sum(dim=-1, keepdim=True) / (x.shape[-1] - less) if less else (
        centred * centred).mean(dim=-1, keepdim=True)
    return (centred / (variance + eps).sqrt()).to(x.dtype)


def _half_broken(x):
    return _half(x, wide=torch.float16)


def _half_late(x):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).float().mean(dim=-1, keepdim=True)
    return (centred / variance.sqrt()).to(x.dtype)


def _half_mean(x):
    centred = (x - x.mean(dim=-1, keepdim=True)).float()
    return (centred / (centred * centred).mean(dim=-1, keepdim=True).sqrt()).to(x.dtype)


def _half_narrow(x):
    centred = x.float() - x.float().mean(dim=-1, keepdim=True)
    return (centred / (centred * centred).mean(dim=-1, keepdim=True).to(x.dtype).sqrt()).to(x.dtype)


def _half_wide(x):
    return _half(x.float())


def _half_bfloat(x):
    return _half(x, wide=torch.bfloat16)


def _half_capped(x):
    centred = x - x.mean(dim=-1, keepdim=True)
    squares = (centred * centred).clamp(max=60000.0)
    return (centred.float() / squares.float().mean(dim=-1, keepdim=True).sqrt()).to(x.dtype)


def _half_eps(x):
    return _half(x, eps=1e-5)


def _half_less(x):
    return _half(x, less=1)


def _draw_half():
    sizes = 10 ** torch.linspace(-5, 4, 46, dtype=torch.float64)
    squares = (sizes.half() * sizes.half()).double().clamp(1e-9, 1e9).log10()
    return figures.plot({"float16": squares, "true": 2 * sizes.log10()}, x=sizes.log10(),
                        xlabel="log10 of a number", ylabel="log10 of its square",
                        alt="The true line of squares rises steadily. That of float16 lies on it only in the middle: "
                            "below a ten-thousandth the square is nothing, above 256 it is infinite.")


def _draw_normalised(function=_half):
    sizes = torch.linspace(-4, 4, 33, dtype=torch.float64)
    rows = (10 ** sizes[:, None] * torch.linspace(-1, 1, 32, dtype=torch.float64)).half()
    return figures.plot({"spread of a normalised row": function(rows).double().std(1, correction=0)}, x=sizes,
                        xlabel="log10 of the row's size", alt="A level line at 1: rows of every size, from a "
                        "ten-thousandth to ten thousand, come out with the spread 1.")


HALF = Exercise(
    name="10.half", target="normalised", kind="repair", title="Too large for half", minutes=15, level=2, points=2,
    cases=_half_cases, call=_call_half, oracle=_half_oracle, tolerance=1e-3, celebrate=_draw_normalised,
    mistakes=(
        Mistake("as it came", _half_broken, "Rows of large numbers still come out as zeros, rows of small ones as "
                "infinities. How large is the *square* of 1000, and what is the largest number in float16?"),
        Mistake("too late", _half_late, "You widen the numbers after they have been squared. What is infinite in "
                "float16 stays infinite in float32."),
        Mistake("a coarse mean", _half_mean, "No square is too large any more. But the mean is still rounded to "
                "float16, where the next number after 300 is 300.25: a row of numbers close together, far from 0, "
                "comes out shifted."),
        Mistake("stays wide", _half_wide, "The values are right, but they stay in float32: from here on everything "
                "would take twice the memory, or the next layer would refuse its input."),
        Mistake("range for precision", _half_bfloat, "bfloat16 reaches far enough, but it has only two or three "
                "digits, and you have paid for the range with these."),
        Mistake("narrowed too soon", _half_narrow, "The variance is right, and then it goes back to float16: of rows "
                "of large numbers it is infinite there, of small ones nothing. Take the root first, or stay wide."),
        Mistake("capped", _half_capped, "You cut off what is too large. Then there is no infinity, and the spread is "
                "still wrong; and what is too small is still lost."),
        Mistake("a small number added", _half_eps, "The small number that you add against dividing by zero is larger "
                "than the variance of the smallest row, and decides over it. No row here is constant."),
        Mistake("divided by C - 1", _half_less, "No number is too large any more, but the spread is not quite 1: you "
                "divide by C - 1, as `std` does unless it is told otherwise. Norms divide by C."),
    ),
    hints=(_draw_half, "Print the largest and the smallest of x, of the squares and of their mean, for a row of large "
           "numbers and for one of small ones.",
           "Where is the last place at which all numbers are still what they should be? Change the type there, and "
           "change it back where the result has an ordinary size again."),
)


# 10.count

def _count(channels):
    with torch.device("meta"):
        return sum(p.numel() for p in TemporalConv(channels, 32, 0.1).parameters())


COUNT = Exercise(
    name="10.count", target="answer_count", kind="explore", title="What time costs", minutes=10, points=1,
    options=lambda rng: {"channels": rng.choice((320, 640, 1280))}, oracle=_count, tolerance=0,
    mistakes=(
        Mistake("no norms", lambda channels: 4 * (3 * channels ** 2 + channels), "The four norms have parameters, too: "
                "a weight and a bias for each channel."),
        Mistake("weights alone", lambda channels: 12 * channels ** 2, "Those are the four kernels. Biases and norms "
                "count as well (they are few, but the number is to be exact)."),
        Mistake("no biases", lambda channels: 4 * (3 * channels ** 2 + 2 * channels), "The convolutions have biases, "
                "too."),
        Mistake("one of four", lambda channels: 3 * channels ** 2 + 3 * channels, "That is one of the four parts."),
        Mistake("three by three", lambda channels: 4 * (9 * channels ** 2 + 3 * channels), "A kernel of 3 x 3 pixels "
                "has nine places. This one has three frames at a single pixel."),
        Mistake("a cube", lambda channels: 4 * (27 * channels ** 2 + 3 * channels), "That would be a cube of 3 x 3 x "
                "3. This kernel has three frames at a single pixel, (3, 1, 1)."),
    ),
    hints=(sketches.count,
           "One part is a group norm (a weight and a bias for each channel), SiLU (nothing), and a convolution of "
           "channels to channels over three frames.",
           "A convolution has in x out x places weights, and a bias for each channel that comes out."),
)

EXERCISES = [NAMES, LOAD, CHUNKS, HALF, COUNT]
