"""Chapter 07, into time: the convolution over frames, the folds, attention along time, starting as nothing."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minit2v.attention import TransformerBlock
from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.compare import difference
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import group_norm, random_tensors

# 07.frame_conv

def _frame_cases(seed):
    return [(x,) for x in random_tensors(seed, (2, 4, 5, 3), (1, 4, 1, 2))]       # a clip may have a single frame


def _call_frame(module, x):
    """What the module makes of x with the given weights; if that is right, whether a new one begins as all zero."""
    found, right = module(x), _frame_oracle(module.state_dict(), x)["with weights"]
    return {"with weights": found, "a weight that begins as zero": not difference(found, right, 1e-4)
            and not type(module)(4).weight.any()}


def _frame_oracle(state, x):
    return {"with weights": F.conv3d(x[..., None], state["weight"], state["bias"], padding=(1, 0, 0))[..., 0],
            "a weight that begins as zero": False}


class _Frame(nn.Module):
    sum, first = "oc,bcfp->bofp", 1.0                    # what its weight begins with

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, channels, 3, 1, 1), self.first))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        parts = [torch.einsum(self.sum, self.weight[:, :, k, 0, 0], part) for k, part in enumerate(self.taps(x))]
        return parts[0] + parts[1] + parts[2] + self.bias[:, None, None]

    def taps(self, x):
        return self.three(F.pad(x, (0, 0, 1, 1)))

    def three(self, padded):
        return [padded[:, :, k:padded.shape[2] - 2 + k] for k in range(3)]


class _FrameCausal(_Frame):
    def taps(self, x):
        return self.three(F.pad(x, (0, 0, 2, 0)))


class _FrameRound(_Frame):
    def taps(self, x):
        return [x.roll(1 - k, dims=2) for k in range(3)]


class _FrameHeld(_Frame):
    def taps(self, x):
        return self.three(torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2))


class _FrameFlipped(_Frame):
    def taps(self, x):
        return super().taps(x)[::-1]


class _FrameCrossed(_Frame):
    sum = "co,bcfp->bofp"


class _FrameSideways(_Frame):
    def taps(self, x):
        padded = F.pad(x, (1, 1))
        return [padded[..., k:x.shape[3] + k] for k in range(3)]


class _FrameZero(_Frame):
    first = 0.0


def _draw_frames(hand_in=_Frame):
    x = torch.zeros(1, 1, 9, 3, dtype=torch.float64)
    for pixel, frame in enumerate((0, 4, 8)):
        x[0, 0, frame, pixel] = 1
    module = hand_in(1).double()
    module.load_state_dict({"weight": torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1), "bias": torch.zeros(1)})
    return figures.heat(module(x)[0, 0].T, values=True, digits=0, columns=[str(f) for f in range(9)], size=3.4,
                        rows=["a flash in frame 0", "a flash in frame 4", "a flash in frame 8"],
                        titles=["through the kernel 1, 2, 3"],
                        alt="What a kernel of 1, 2, 3 makes of a single flash, frame after frame. A flash in "
                        "frame 4 gives 3, 2, 1 in the frames 3, 4, 5; one in frame 0 gives 2, 1 in the frames 0, 1; "
                        "one in frame 8 gives 3, 2 in the frames 7, 8.")


FRAME_CONV = Exercise(
    name="07.frame_conv", target="FrameConv", kind="build", title="A convolution over frames", minutes=20, points=3,
    level=2, cases=_frame_cases, init=(4,), call=_call_frame, oracle=_frame_oracle, gradients=True,
    celebrate=_draw_frames,
    parameters={"weight": (4, 4, 3, 1, 1), "bias": (4,)},
    forbidden=("conv1d", "conv2d", "conv3d", "Conv1d", "Conv2d", "Conv3d", "convolution"),
    mistakes=(
        Mistake("only the past", _FrameCausal, "Your frame sees itself and the two before it. The three neighbours are "
                "the frame before, the frame itself and the one after: one frame of zeros at each end, not two in "
                "front. (Chapter 07, section 1.)"),
        Mistake("round in a circle", _FrameRound, "Your clip is a circle: its first frame sees the last. Beyond the "
                "ends of a clip there is nothing, that is, zeros."),
        Mistake("ends held", _FrameHeld, "Beyond its ends your clip stands still. Here there are zeros, and that "
                "matters: by them the model knows where a clip begins."),
        Mistake("back in time", _FrameFlipped, "Your kernel runs backwards: its first entry should meet the frame "
                "*before*. What moves right would move left."),
        Mistake("channels crossed", _FrameCrossed, "The channels that come in and those that go out have changed "
                "places in the weight. As in every layer of torch, the outputs come first: (out, in, 3, 1, 1)."),
        Mistake("across pixels", _FrameSideways, "You slide over the pixels. Frames are the third axis of "
                "(B, C, F, P); the pixels should not see one another at all."),
        Mistake("zero for ever", _FrameZero, "With trained weights it is right. But the weight of a new one is all "
                "zero. Put several of them one behind the other, as in 07.zero, and none of their weights would ever "
                "get a slope."),
    ),
    hints=(_draw_frames, "Three matrices, `weight[:, :, k, 0, 0]` for k = 0, 1, 2: one for the frame before, one for "
           "the frame itself, one for the frame after. Each acts on the channels.",
           "Put a frame of zeros at both ends; then three cuts of F frames, each one frame later than the last, have "
           "everything in its place. `torch.einsum` applies a matrix to any axis."),
)


# 07.fold

def _layer(images, emb):
    """Something that is done to single pictures: what it does depends on their pixels' order and on their time."""
    return (images.cumsum(-1) + images.flip(1)) * (1 + emb[:, :, None, None])


def _fold_cases(seed):
    return [tuple(random_tensors(seed, *shapes)) for shapes in (((2, 3, 4, 2, 5), (2, 3)), ((3, 2, 2, 2, 2), (3, 2)))]


def _call_fold(hand_in, x, emb):
    return hand_in(x, emb, _layer)


def _fold_oracle(x, emb):
    clips = [torch.stack([_layer(x[b:b + 1, :, f], emb[b:b + 1])[0] for f in range(x.shape[2])], dim=1)
             for b in range(len(x))]
    return torch.stack(clips)


def _fold(x, emb, layer, times=None, back="(b f)"):
    frames = x.shape[2]
    images = rearrange(x, "b c f h w -> (b f) c h w")
    out = layer(images, emb.repeat_interleave(frames, dim=0) if times is None else times)
    return rearrange(out, f"{back} c h w -> b c f h w", f=frames)


def _fold_broken(x, emb, layer):
    return _fold(x, emb, layer, times=emb.repeat(x.shape[2], 1), back="(f b)")


def _fold_times(x, emb, layer):
    return _fold(x, emb, layer, times=emb.repeat(x.shape[2], 1))


def _fold_frames(x, emb, layer):
    return _fold(x, emb, layer, back="(f b)")


def _fold_torn(x, emb, layer):
    images = x.reshape(-1, x.shape[1], *x.shape[3:])
    return layer(images, emb.repeat_interleave(x.shape[2], dim=0)).reshape(x.shape)


def _fold_first(x, emb, layer):
    return _fold(x, emb, layer, times=emb[:1].repeat(x.shape[0] * x.shape[2], 1))


def _fold_once(x, emb, layer):
    return _fold(x, emb, layer, times=emb)


def _draw_fold(function=_fold):
    x = torch.arange(6, dtype=torch.float64).view(1, 1, 6, 1, 1).expand(2, 1, 6, 1, 1)
    emb = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    out = function(x, emb, lambda images, emb: images + emb[:, :, None, None])
    return figures.heat(out[:, 0, :, 0, 0], rows=["clip 0", "clip 1"], columns=[f"{f}" for f in range(6)],
                        values=True, digits=0, titles=["frames 0 to 5, plus 0 or 10"],
                        alt="Two clips of six frames that hold their own numbers, and a layer "
                        "that adds the time, 0 and 10: the first clip reads 0 to 5, the second 10 to 15.")


FOLD = Exercise(
    name="07.fold", target="frame_by_frame", kind="repair", title="Two clips, mixed up", minutes=10, level=1,
    cases=_fold_cases, call=_call_fold, oracle=_fold_oracle, gradients=True, celebrate=_draw_fold,
    mistakes=(
        Mistake("as it came", _fold_broken, "The clips still exchange frames, and times too. In what order do the "
                "pictures lie after the first line? Everything that follows has to keep to it."),
        Mistake("times dealt out", _fold_times, "The frames are in their places now, but their times are dealt out "
                "like cards: the second frame of the first clip has the time of the second clip."),
        Mistake("frames exchanged", _fold_frames, "The times are right now. But on the way back the clips still "
                "exchange frames: you unfold in another order than you folded."),
        Mistake("channels torn", _fold_torn, "A reshape moves nothing in memory: in (B, C, F, H, W) the channels come "
                "before the frames, so your pictures are made of one channel of several frames."),
        Mistake("one time for all", _fold_first, "All clips are given the time of the first. Each has its own."),
        Mistake("times of clips", _fold_once, "There are as many times as clips, and the layer wants one for each "
                "picture."),
    ),
    hints=(_draw_fold, "Two clips of three frames, folded with the clips outside, lie as a0 a1 a2 b0 b1 b2. In what "
           "order do their six times lie? Print both.",
           "There are two faults, and either can hide behind the other. `repeat` and `repeat_interleave` differ just "
           "as the two orders in a bracket do."),
)


# 07.temporal_attention

_TIME_INIT = (4, 6, 3, 2)                                # channels, width, head_dim, groups
_TIME_SHAPES = {"norm.weight": (4,), "norm.bias": (4,), "proj_in.weight": (6, 4), "proj_in.bias": (6,),
                **{f"block.{name}": tuple(value.shape)
                   for name, value in TransformerBlock(6, 2).state_dict().items()},
                "proj_out.weight": (4, 6), "proj_out.bias": (4,)}


def _time_cases(seed):
    return [(x,) for x in random_tensors(seed, (2, 4, 5, 3, 2), (1, 4, 2, 2, 2))]


def _time_oracle(state, x):
    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, h):
        return F.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(name, h):                              # of the F frames of a single pixel, (F, 6), head by head
        q, k, v = (linear(f"{name}.to_{part}", h) for part in "qkv")
        heads = [F.scaled_dot_product_attention(*(t[None, :, i:i + 3] for t in (q, k, v)))[0] for i in (0, 3)]
        return linear(f"{name}.to_out", torch.cat(heads, dim=-1))

    normed, out = group_norm(x, state["norm.weight"], state["norm.bias"], 2, 1e-6), torch.empty_like(x)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (x.shape[0], *x.shape[3:]))).tolist():
        h = linear("proj_in", normed[b, :, :, i, j].T)                                   # (F, 6)
        h = h + attention("block.attn1", norm("block.norm1", h))
        h = h + attention("block.attn2", norm("block.norm2", h))
        value, gate = linear("block.ff.proj", norm("block.norm3", h)).chunk(2, dim=-1)
        h = h + linear("block.ff.out", value * F.gelu(gate))
        out[b, :, :, i, j] = linear("proj_out", h).T
    return x + out


class _Time(nn.Module):
    fold, unfold = "b c f h w -> (b h w) f c", "(b h w) f c -> b c f h w"

    def __init__(self, channels: int, width: int, head_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width)
        self.block = TransformerBlock(width, width // head_dim)
        self.proj_out = nn.Linear(width, channels)

    def forward(self, x):
        return x + self.branch(x)

    def branch(self, x):
        sizes = {name: size for name, size in zip("bcfhw", x.shape) if name in self.unfold.partition("->")[0]}
        return rearrange(self.tokens(rearrange(self.normed(x), self.fold)), self.unfold, **sizes)

    def normed(self, x):
        return self.norm(x)

    def tokens(self, h):
        return self.proj_out(self.block(self.proj_in(h)))


class _TimePixels(_Time):
    fold, unfold = "b c f h w -> (b f) (h w) c", "(b f) (h w) c -> b c f h w"


class _TimeClips(_Time):
    fold, unfold = "b c f h w -> (h w) (b f) c", "(h w) (b f) c -> b c f h w"


class _TimeAll(_Time):
    fold, unfold = "b c f h w -> b (f h w) c", "b (f h w) c -> b c f h w"


class _TimeMisplaced(_Time):
    unfold = "(h w b) f c -> b c f h w"


class _TimeReshaped(_Time):
    def branch(self, x):
        b, channels, frames, height, width = x.shape
        return self.tokens(self.norm(x).reshape(b * height * width, frames, channels)).reshape(x.shape)


class _TimeBare(_Time):
    def forward(self, x):
        return self.branch(x)


class _TimeSingle(_Time):
    def normed(self, x):
        return rearrange(self.norm(rearrange(x, "b c f h w -> (b f) c h w")), "(b f) c h w -> b c f h w", b=len(x))


TEMPORAL_ATTENTION = Exercise(
    name="07.temporal_attention", target="TemporalTransformer", kind="build", title="Along its own history",
    minutes=25, points=3, level=3, cases=_time_cases, init=_TIME_INIT, oracle=_time_oracle, gradients=True,
    parameters=_TIME_SHAPES,
    mistakes=(
        Mistake("pixels instead", _TimePixels, "In your version the pixels of a frame look at one another: that is the "
                "spatial transformer. Here the frames do, at each pixel by itself. (Chapter 07, section "
                "3.)"),
        Mistake("clips see clips", _TimeClips, "Your rows hold the frames of *all* clips, so one person's clip depends "
                "on whose else is in the batch. The batch belongs to the rows' number, not to their length."),
        Mistake("everything at once", _TimeAll, "You put the whole clip into one row: every pixel of every frame sees "
                "every other. That is a model, too, but for 16 frames of 32 x 32 a thousand times as expensive."),
        Mistake("unfolded otherwise", _TimeMisplaced, "The attention is right, but its answers go to other places: "
                "you unfold in another order than you folded."),
        Mistake("reshaped", _TimeReshaped, "You reshape where axes have to move. The shapes fit, but a row then holds "
                "whatever happens to lie next to each other in memory, not the frames of one pixel."),
        Mistake("no way around", _TimeBare, "Only the branch comes out. It should be added to what went in."),
        Mistake("frames normed singly", _TimeSingle, "The norm takes its statistics of each frame by itself, so a "
                "frame that is brighter than its neighbours no longer is. Here a clip is normed as a whole."),
    ),
    hints=(sketches.temporal_attention,
           "A token is a frame of one pixel, and a row is all of them: how many rows are there, and how long is each?",
           "The block takes (rows, tokens, numbers). So the numbers of a token, its channels, must come last; the "
           "layers in front of and behind the block act on the last axis, too.",
           "Norm, fold, three layers, unfold, add. The bracket that unfolds is the one that folded."),
)


# 07.zero

_ZERO_INIT = (4, 2, 0.0)                                 # channels, groups, dropout
_CONVS = ("conv1.2", "conv2.3", "conv3.3", "conv4.3")
_ZERO_SHAPES = {key: shape for conv in _CONVS for key, shape in (
    (f"{conv[:5]}.0.weight", (4,)), (f"{conv[:5]}.0.bias", (4,)), (f"{conv}.weight", (4, 4, 3, 1, 1)),
    (f"{conv}.bias", (4,)))}


def _zero_cases(seed):
    return [(x,) for x in random_tensors(seed, (2, 4, 5, 3, 2))]


def _call_zero(module, x):
    """What the module makes of x with the given weights, and how a new one begins."""
    fresh, here = type(module)(*_ZERO_INIT).to(x.dtype), x.detach()
    parameters = dict(fresh.named_parameters())
    with torch.no_grad():                                # whatever biases the layers of a learner begin with
        for conv in _CONVS[:-1]:
            if parameters[f"{conv}.weight"].any():
                parameters[f"{conv}.bias"].copy_(torch.linspace(-1, 1, 4))
    out = fresh(here)
    if out.requires_grad:
        out.square().sum().backward()
    slope = parameters[f"{_CONVS[-1]}.weight"].grad
    zero = ", ".join(name for name, p in parameters.items() if name.endswith("weight") and not p.any())
    return {"with weights": module(x), "changing nothing at first": torch.allclose(out, here),
            "able to learn": slope is not None and bool(slope.any()), "weights that begin as zero": zero}


def _zero_oracle(state, x):
    h = x
    for conv in _CONVS:
        h = group_norm(h, state[f"{conv[:5]}.0.weight"], state[f"{conv[:5]}.0.bias"], 2, 1e-5)
        h = h / (1 + torch.exp(-h))
        rows = F.pad(h, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1)                              # (B, C, F, H, W, 3)
        h = torch.einsum("bcfhwk,ock->bofhw", rows, state[f"{conv}.weight"][..., 0, 0])
        h = h + state[f"{conv}.bias"][:, None, None, None]
    return {"with weights": x + h, "changing nothing at first": True, "able to learn": True,
            "weights that begin as zero": f"{_CONVS[-1]}.weight"}


class _Branch(nn.Module):
    def __init__(self, channels: int, groups: int, dropout: float):
        super().__init__()

        def conv():
            return nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

        self.conv1 = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), conv())
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout), conv()) for _ in range(3))
        for layer in self.nothing():
            for p in layer.parameters():
                nn.init.zeros_(p)

    def nothing(self):
        return [self.conv4[-1]]

    def forward(self, x):
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class _BranchLoud(_Branch):
    def nothing(self):
        return []


class _BranchDead(_Branch):
    def nothing(self):
        return [part[-1] for part in (self.conv1, self.conv2, self.conv3, self.conv4)]


class _BranchNorm(_Branch):
    def nothing(self):
        return [self.conv4]


class _BranchFirst(_Branch):
    def nothing(self):
        return [self.conv1[-1]]


class _BranchBias(_Branch):
    def __init__(self, channels: int, groups: int, dropout: float):
        super().__init__(channels, groups, dropout)
        nn.init.ones_(self.conv4[-1].bias)


class _BranchBare(_Branch):
    def forward(self, x):
        return super().forward(x) - x


class _BranchOff(_Branch):
    def nothing(self):
        return []

    def forward(self, x):
        return x + 0 * (super().forward(x) - x)


class _BranchSingle(_Branch):
    def forward(self, x):
        h = x
        for part in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = part[0](rearrange(h, "b c f h w -> (b f) c h w"))
            h = part[1:](rearrange(h, "(b f) c h w -> b c f h w", b=len(x)))
        return x + h


ZERO = Exercise(
    name="07.zero", target="TemporalConv", kind="build", title="It starts as nothing", minutes=20, points=3, level=2,
    cases=_zero_cases, init=_ZERO_INIT, call=_call_zero, oracle=_zero_oracle, gradients=True, parameters=_ZERO_SHAPES,
    mistakes=(
        Mistake("loud from the start", _BranchLoud, "With trained weights it is right. But a new one changes its "
                "input: put into an image model, it would spoil every picture that the model knows. (Chapter 07, "
                "section 6.)"),
        Mistake("nothing for ever", _BranchDead, "A new one changes nothing, and will never learn more than a "
                "shift of its channels: all convolutions are zero. A weight learns by the product of what comes in and "
                "what comes back; here both are zero. How few zeros are enough? (Chapter 07, section 6.)"),
        Mistake("the norm too", _BranchNorm, "You set more to zero than the convolution: the norm in front of it, too. "
                "Then nothing comes into the convolution, and its weight never learns."),
        Mistake("the first one", _BranchFirst, "The first convolution is zero, and that does not help: what the next "
                "ones add still comes out. Which one has the last word?"),
        Mistake("the bias is left", _BranchBias, "The weight is zero, the bias is not: every channel is shifted a "
                "little from the start."),
        Mistake("no way around", _BranchBare, "Only the branch comes out. With a branch of zeros the picture is gone."),
        Mistake("switched off", _BranchOff, "You multiply the branch by zero, and that no training can undo: trained "
                "weights have no effect. It must be the *parameters* that begin as zero."),
        Mistake("frames normed singly", _BranchSingle, "The norms take their statistics of each frame by itself, so a "
                "frame that is brighter than its neighbours no longer is. Here a clip is normed as a whole."),
    ),
    hints=(sketches.zero,
           "The sum x + f(x) is x where f is zero. f ends in a convolution: what do its parameters have to be?",
           "And then: whose slopes are zero at the first step, and whose are not? One layer that learns is enough; "
           "after its first step the others learn, too.",
           "`torch.nn.init` has a function for it. It is needed for two tensors."),
)


# 07.reach

REACH = Exercise(
    name="07.reach", target="answer_reach", kind="explore", title="How far a frame sees", minutes=5, points=1,
    options=lambda rng: {"layers": rng.choice((4, 5, 6, 7, 12))}, oracle=lambda layers: 2 * layers + 1, tolerance=0,
    mistakes=(
        Mistake("itself forgotten", lambda layers: 2 * layers, "Nearly: those are the others that it sees. Its own "
                "frame counts, too."),
        Mistake("one side", lambda layers: layers + 1, "That is one side only. A convolution with zeros at both ends "
                "sees the past and the future."),
        Mistake("a layer, a frame", lambda layers: layers, "That is how far it sees to one side. To how many sides, "
                "and what is in the middle?"),
        Mistake("kernels in a row", lambda layers: 3 * layers, "You lay the kernels side by side. But they overlap: "
                "each of the three frames that the second layer reads has seen three, and most of these are the same "
                "ones."),
        Mistake("powers", lambda layers: 3 ** layers, "It would be so if no two kernels overlapped, as with dilated "
                "convolutions. Here neighbours have neighbours in common."),
    ),
    hints=(sketches.reach,
           "Draw it for two layers: one frame below, three above it, and above each of these three again three.",
           "How many frames farther, to each side, does one more layer reach?"),
)

EXERCISES = [FRAME_CONV, FOLD, TEMPORAL_ATTENTION, ZERO, REACH]
