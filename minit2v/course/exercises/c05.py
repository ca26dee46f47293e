"""Chapter 05, the image UNet: attention, heads, the gate, the residual block."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import group_norm, random_tensors

# 05.attention

def _attention_cases(seed):
    return [tuple(random_tensors(seed, *shapes)) for shapes in (((2, 5, 8), (2, 3, 8), (2, 3, 8)), 3 * ((1, 4, 4),))]


def _attention_oracle(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def _attention_unscaled(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def _attention_small(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1]).softmax(-1) @ v


def _attention_columns(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-2) @ v


def _attention_keys(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ k


def _attention_early(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(-1) / q.shape[-1] ** 0.5 @ v


def _draw_attention(function=_attention_oracle):
    places = torch.linspace(-3, 3, 25, dtype=torch.float64)
    q = torch.stack([places, torch.ones_like(places)], dim=1)[None]                       # (1, 25, 2)
    k = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]], dtype=torch.float64)
    weights = function(q, k, torch.eye(3, dtype=torch.float64)[None])[0]                  # (25, 3)
    return figures.heat(weights.T, alt="Three rows of weights: the last key wins on the left, the middle one in the "
                        "middle, the first on the right; each column sums to one.", limits=(0, 1))


ATTENTION = Exercise(
    name="05.attention", target="attention", kind="build", title="Attention", minutes=15, points=3, level=2,
    cases=_attention_cases, oracle=_attention_oracle, gradients=True, celebrate=_draw_attention,
    forbidden=("scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward", "attend"),
    mistakes=(
        Mistake("no scale", _attention_unscaled, "The scores are not scaled. With 64 numbers a head they would be "
                "eight times too large, and the softmax would pick a single key. (Chapter 05, section 1.)"),
        Mistake("scaled by d", _attention_small, "You divide by the width of the head. A sum of d products grows only "
                "like its root."),
        Mistake("softmax over the queries", _attention_columns, "Your weights sum to one over the queries. Each query "
                "shares its attention among the *keys*."),
        Mistake("keys for values", _attention_keys, "What is averaged are the values; you average the keys."),
        Mistake("scaled too late", _attention_early, "You scale after the softmax, so the weights of a query no longer "
                "sum to one."),
    ),
    hints=(_draw_attention, "Scores: every query with every key, (B, Q, K). Then weights, then a weighted mean of the "
           "values.", "The softmax makes each row of (Q, K) sum to one: which axis of the tensor is that?"),
)


# 05.cross_attention

def _cross_cases(seed):
    return [tuple(random_tensors(seed, (2, 5, 8), (2, 3, 6)))]


def _cross_oracle(state, x, context):
    q, k, v = (torch.einsum("nlc,dc->nld", part, state[f"to_{name}.weight"])
               for name, part in (("q", x), ("k", context), ("v", context)))
    parts = [F.scaled_dot_product_attention(*(t[..., i:i + 4] for t in (q, k, v))) for i in (0, 4)]
    return F.linear(torch.cat(parts, dim=-1), state["to_out.weight"], state["to_out.bias"])


class _Cross(nn.Module):
    split, join, halves = "n l (h d) -> n h l d", "n h l d -> n l (h d)", True

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.heads = heads if self.halves else 1
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, context):
        q, k, v = (rearrange(t, self.split, h=self.heads)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(rearrange(self.weights(q, k) @ v, self.join))

    def weights(self, q, k):
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


class _CrossMixed(_Cross):
    split = "n l (d h) -> n h l d"


class _CrossTorn(_Cross):
    join = "n h l d -> n l (d h)"


class _CrossSingle(_Cross):
    halves = False


class _CrossWide(_Cross):
    def weights(self, q, k):
        return (q @ k.transpose(-2, -1) * (q.shape[-1] * q.shape[1]) ** -0.5).softmax(-1)


class _CrossReshaped(_Cross):
    def forward(self, x, context):
        q, k, v = (t.reshape(len(t), self.heads, t.shape[1], -1)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(rearrange(self.weights(q, k) @ v, self.join))


class _CrossUnmoved(_Cross):
    def forward(self, x, context):
        q, k, v = (rearrange(t, self.split, h=self.heads)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out((self.weights(q, k) @ v).reshape(x.shape))


class _CrossExchanged(_Cross):
    def forward(self, x, context):
        q, v, k = (rearrange(t, self.split, h=self.heads)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(rearrange(self.weights(q, k) @ v, self.join))


class _CrossResidual(_Cross):
    def forward(self, x, context):
        return x + super().forward(x, context)


CROSS = Exercise(
    name="05.cross_attention", target="CrossAttention", kind="build", title="Words for pixels", minutes=25, points=3,
    level=3, cases=_cross_cases, init=(8, 2, 6), oracle=_cross_oracle, gradients=True,
    parameters={"to_q.weight": (8, 8), "to_k.weight": (8, 6), "to_v.weight": (8, 6), "to_out.weight": (8, 8),
                "to_out.bias": (8,)},
    forbidden=("MultiheadAttention", "multi_head_attention_forward"),
    mistakes=(
        Mistake("heads dealt out", _CrossMixed, "You deal the numbers out to the heads like cards. A head owns a block "
                "of neighbours, the first head the first block; the trained weights rely on it."),
        Mistake("heads joined crosswise", _CrossTorn, "The heads are split right and joined in another order. Join "
                "with the very brackets that split."),
        Mistake("reshaped at once", _CrossReshaped, "Your reshape cuts across pixels: the numbers of one head come "
                "from several of them. Split the last axis first, then move it."),
        Mistake("joined without moving", _CrossUnmoved, "The heads are split right, but joined without moving their "
                "axis back behind the pixels."),
        Mistake("keys for values", _CrossExchanged, "Keys and values have changed places."),
        Mistake("one head", _CrossSingle, "There is only one head, as wide as everything. Each head should have its "
                "own weights over the words."),
        Mistake("scale of the whole width", _CrossWide, "You scale by the root of the whole width. A dot product sums "
                "over the numbers of one head."),
        Mistake("with the input", _CrossResidual, "You add the input to the result. The block around does that; the "
                "attention itself only answers."),
    ),
    hints=(sketches.cross_attention,
           "Queries come from the pixels x, keys and values from the words: (N, L, C) and (N, K, D) go in.",
           "Cut the last axis into heads, then move the heads in front of the pixels: (N, L, C), then (N, L, h, C / "
           "h), then (N, h, L, C / h). A single `reshape` to that last shape would mix the pixels.",
           "Only `to_out` has a bias. The four names are those in the task."),
)


# 05.geglu

def _geglu_cases(seed):
    return [tuple(random_tensors(seed, (3, 5, 4), (12, 4), (12,)))]


def _geglu_oracle(x, weight, bias):
    half = weight.shape[0] // 2
    value = torch.einsum("...c,dc->...d", x, weight[:half]) + bias[:half]
    gate = torch.einsum("...c,dc->...d", x, weight[half:]) + bias[half:]
    return value * gate * 0.5 * (1 + torch.erf(gate / 2 ** 0.5))


def _geglu(x, weight, bias, turned=False, act=F.gelu):
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return gate * act(value) if turned else value * act(gate)


def _geglu_turned(x, weight, bias):
    return _geglu(x, weight, bias, turned=True)


def _geglu_sigmoid(x, weight, bias):
    return _geglu(x, weight, bias, act=torch.sigmoid)


def _geglu_tanh(x, weight, bias):
    return _geglu(x, weight, bias, act=lambda gate: F.gelu(gate, approximate="tanh"))


def _geglu_silu(x, weight, bias):
    return _geglu(x, weight, bias, act=F.silu)


GEGLU = Exercise(
    name="05.geglu", target="geglu", kind="repair", title="The gate on the wrong side", minutes=10, level=2,
    cases=_geglu_cases, oracle=_geglu_oracle, gradients=True,
    mistakes=(
        Mistake("gate first", _geglu_turned, "The two halves have changed roles: what should be the value goes through "
                "the gate's function."),
        Mistake("a sigmoid", _geglu_sigmoid, "That is GLU, with a sigmoid for a gate. The E in GEGLU says otherwise."),
        Mistake("rounded gelu", _geglu_tanh, "Nearly: that is the tanh approximation of gelu. The original uses the "
                "exact one; over a thousand layers and steps the difference adds up."),
        Mistake("silu", _geglu_silu, "That is SwiGLU, with silu for a gate. Later models use it, this one does not."),
    ),
    hints=(sketches.geglu,
           "The layer makes twice as many numbers as are needed. Which half comes first, in the original?",
           "Shazeer (2020) writes gelu(x W) times (x V), so W makes the gate. The released layer stores the rows of "
           "the values first, and those of the gates after them."),
)


# 05.resblock

def _resblock_cases(seed):
    return [tuple(random_tensors(seed, (2, 4, 6, 6), (2, 7)))]


def _call_resblock(module, x, emb):
    """Beside the result: what goes around where the width stays, and what is left when everything is dropped."""
    dropping = type(module)(4, 6, 7, 2, 1.0).to(x.dtype).train()
    dropping.load_state_dict(module.state_dict())
    return {"output": module(x, emb), "parameters of `shortcut` where the number of channels stays":
            sum(p.numel() for p in type(module)(4, 4, 7, 2, 0.0).shortcut.parameters()),
            "with a dropout of 1": dropping(x, emb)}


def _resblock_oracle(state, x, emb):
    def norm(h, name):
        return group_norm(h, state[f"{name}.weight"], state[f"{name}.bias"], groups=2, eps=1e-5)

    def silu(h):
        return h / (1 + torch.exp(-h))

    def conv(h, name, around=1):
        columns = F.unfold(h, 1 + 2 * around, padding=around)
        out = torch.einsum("ok,nkp->nop", state[f"{name}.weight"].flatten(1), columns)
        return out.unflatten(2, h.shape[2:]) + state[f"{name}.bias"][:, None, None]

    h = conv(silu(norm(x, "norm1")), "conv1")
    h = h + (silu(emb) @ state["time_proj.weight"].T + state["time_proj.bias"])[:, :, None, None]
    around = conv(x, "shortcut", 0)
    return {"output": around + conv(silu(norm(h, "norm2")), "conv2"),
            "parameters of `shortcut` where the number of channels stays": 0,
            "with a dropout of 1": around + state["conv2.bias"][:, None, None]}


class _Res(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, emb):
        return self.shortcut(x) + self.conv2(self.middle(self.conv1(self.before(x)), self.clock(emb)))

    def before(self, x):
        return F.silu(self.norm1(x))

    def clock(self, emb):
        return self.time_proj(F.silu(emb))[:, :, None, None]

    def middle(self, h, clock):
        return self.dropout(F.silu(self.norm2(h + clock)))


class _ResLate(_Res):
    def middle(self, h, clock):
        return self.dropout(F.silu(self.norm2(h)) + clock)


class _ResBetween(_Res):
    def middle(self, h, clock):
        return self.dropout(F.silu(self.norm2(h) + clock))


class _ResLinear(_Res):
    def clock(self, emb):
        return self.time_proj(emb)[:, :, None, None]


class _ResPost(_Res):
    def before(self, x):
        return self.norm1(F.silu(x))


class _ResTimeless(_Res):
    def clock(self, emb):
        return 0


class _ResBare(_Res):
    def forward(self, x, emb):
        return self.conv2(self.middle(self.conv1(self.before(x)), self.clock(emb)))


class _ResAlways(_Res):
    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, dropout: float):
        super().__init__(in_channels, out_channels, emb_channels, groups, dropout)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)


class _ResUndropped(_Res):
    def middle(self, h, clock):
        return F.silu(self.norm2(h + clock))


class _ResShrinking(_Res):
    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, groups: int, dropout: float):
        super().__init__(in_channels, out_channels, emb_channels, groups, dropout)
        self.conv1.padding = self.conv2.padding = (0, 0)


RESBLOCK = Exercise(
    name="05.resblock", target="ResBlock", kind="build", title="The residual block", minutes=25, points=3, level=3,
    cases=_resblock_cases, init=(4, 6, 7, 2, 0.0), call=_call_resblock, oracle=_resblock_oracle, gradients=True,
    parameters={"norm1.weight": (4,), "norm1.bias": (4,), "conv1.weight": (6, 4, 3, 3), "conv1.bias": (6,),
                "time_proj.weight": (6, 7), "time_proj.bias": (6,), "norm2.weight": (6,), "norm2.bias": (6,),
                "conv2.weight": (6, 6, 3, 3), "conv2.bias": (6,), "shortcut.weight": (6, 4, 1, 1),
                "shortcut.bias": (6,)},
    mistakes=(
        Mistake("time behind the norm", _ResBetween, "The time comes in between the second norm and its activation. It "
                "belongs in front of the norm, right behind the first convolution."),
        Mistake("time after the norm", _ResLate, "The time comes in too late: after the second norm and its "
                "activation. It belongs right behind the first convolution."),
        Mistake("time without its activation", _ResLinear, "The time goes into its layer as it is. It should pass the "
                "activation first, as everything in this block does."),
        Mistake("norm after the activation", _ResPost, "You activate, then normalise. Here the norm comes first "
                "(\"pre-activation\")."),
        Mistake("no time", _ResTimeless, "The block does not look at the clock: every time gives the same answer."),
        Mistake("a layer where none is needed", _ResAlways, "Where the number of channels stays, nothing should stand "
                "in the way around: `shortcut` is a convolution only where it changes."),
        Mistake("nothing is dropped", _ResUndropped, "`dropout` is made, perhaps, but never used."),
        Mistake("shrinking", _ResShrinking, "Your convolutions shrink the picture. A kernel of 3 x 3 needs a border of "
                "zeros, one wide, to keep its size."),
        Mistake("no way around", _ResBare, "Only the branch comes out. What is residual about it is the input added at "
                "the end, through `shortcut`."),
    ),
    hints=(sketches.resblock,
           "Norm, activation, convolution; the time is added; norm, activation, dropout, convolution; and the input "
           "goes around it all.", "The time is one number a channel: give it the two axes of the picture.",
           "Where the number of channels stays, `shortcut` is an `nn.Identity()`, else a convolution of 1 x 1."),
)


# 05.words

def _words(rng):
    return {"width": rng.choice((320, 640, 1280)), "context_width": rng.choice((512, 768, 1024))}


WORDS = Exercise(
    name="05.words", target="answer_words", kind="explore", title="What a sentence costs", minutes=10, points=1,
    options=_words, tolerance=0,
    oracle=lambda width, context_width: 2 * width * width + 2 * width * context_width + width,
    mistakes=(
        Mistake("no bias", lambda width, context_width: 2 * width * width + 2 * width * context_width, "The last of "
                "the four layers has a bias."),
        Mistake("self-attention", lambda width, context_width: 4 * width * width + width, "That is self-attention. "
                "Here two of the layers read words."),
        Mistake("biases everywhere", lambda width, context_width: 2 * width * (width + context_width + 2),
                "Only one of the four layers has a bias."),
    ),
    hints=(sketches.words,
           "Four matrices. Two of them make something of a pixel's numbers, two of a word's."),
)

EXERCISES = [ATTENTION, CROSS, GEGLU, RESBLOCK, WORDS]
