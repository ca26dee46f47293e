"""Chapter 02, the autoencoder: clouds and their price, half the size, one look at everything."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors

# 02.draw

def _draw_cases(seed):
    return [tuple(random_tensors(seed, (2, 8, 3, 5), (2, 4, 3, 5))),
            tuple(random_tensors(seed + 1, (1, 6, 2, 2), (1, 3, 2, 2)))]


def _draw_oracle(moments, noise):
    half = moments.shape[1] // 2
    normal = torch.distributions.Normal
    cloud = normal(moments[:, :half], moments[:, half:].exp().sqrt())
    return cloud.icdf(normal(0.0, 1.0).cdf(noise))          # as far up in its own cloud as the noise in N(0, 1)


def _draw_variance(moments, noise):
    mean, logvar = moments.chunk(2, dim=1)
    return mean + logvar.exp() * noise


def _draw_raw(moments, noise):
    mean, logvar = moments.chunk(2, dim=1)
    return mean + logvar * noise


def _draw_swapped(moments, noise):
    logvar, mean = moments.chunk(2, dim=1)
    return mean + (logvar / 2).exp() * noise


def _draw_dealt(moments, noise):
    return moments[:, 0::2] + (moments[:, 1::2] / 2).exp() * noise


def _draw_still(moments, noise):
    return moments.chunk(2, dim=1)[0]


def _draw_clouds(function=_draw_oracle):
    noise = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None, None, None]
    lines = {}
    for spread in (1.0, 0.5, 0.1):
        moments = torch.tensor([1.0, spread ** 2], dtype=torch.float64)
        moments[1] = moments[1].log()
        lines[f"spread {spread:g}"] = function(moments.view(1, 2, 1, 1).expand(41, 2, 1, 1), noise).flatten()
    return figures.plot(lines, x=noise.flatten(), xlabel="noise", ylabel="what is drawn",
                        alt="Three straight lines through 1 at noise 0; the larger the spread, the steeper.")


DRAW = Exercise(
    name="02.draw", target="draw", kind="build", title="A point of the cloud", minutes=10, cases=_draw_cases,
    oracle=_draw_oracle, gradients=True, celebrate=_draw_clouds,
    mistakes=(
        Mistake("variance for spread", _draw_variance, "You stretch the noise by the variance. What noise is stretched "
                "by is the spread, the standard deviation. (Chapter 02, the section on why the logarithm.)"),
        Mistake("logarithm for spread", _draw_raw, "You stretch the noise by the logarithm itself; a negative one even "
                "mirrors it. It has to become a spread first."),
        Mistake("halves swapped", _draw_swapped, "You took the two halves of the channels in the wrong order: first "
                "come the means, then the log-variances."),
        Mistake("dealt like cards", _draw_dealt, "You take means and log-variances in turns, channel by channel. They "
                "lie in two blocks, first all means."),
        Mistake("no dice", _draw_still, "That is the mean alone; `noise` is never used, and the decoder would learn no "
                "neighbourhood."),
    ),
    hints=(_draw_clouds, "Two steps: cut the channels into two halves; then stretch the noise and shift it.",
           "The second half holds log(sigma^2). What is sigma then?"),
)


# 02.kl

def _kl_cases(seed):
    one, two = random_tensors(seed, (4, 3, 5), (4, 3, 5))
    return [tuple(one), tuple(two), (*one[:2], torch.zeros_like(one[0]), torch.zeros_like(one[0]))]


def _kl_oracle(mean, logvar, goal_mean, goal_logvar):
    cloud, goal = (torch.distributions.Normal(m, v.exp().sqrt()) for m, v in ((mean, logvar), (goal_mean, goal_logvar)))
    return torch.distributions.kl_divergence(cloud, goal)


def _kl(mean, logvar, goal_mean, goal_logvar, spread=1.0, divide=True, half=0.5, sign=1.0):
    width, goal = (spread * logvar).exp(), (spread * goal_logvar).exp() if divide else torch.ones_like(goal_logvar)
    return half * (sign * (goal_logvar - logvar) + (width + (mean - goal_mean) ** 2) / goal - 1)


def _kl_turned(mean, logvar, goal_mean, goal_logvar):
    return _kl(goal_mean, goal_logvar, mean, logvar)


def _kl_deaf(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, 0 * goal_mean, 0 * goal_logvar)


def _kl_plain(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, goal_mean, goal_logvar, divide=False)


def _kl_spread(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, goal_mean, goal_logvar, spread=0.5)


def _kl_double(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, goal_mean, goal_logvar, half=1.0)


def _kl_sign(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, goal_mean, goal_logvar, sign=-1)


def _kl_whole(mean, logvar, goal_mean, goal_logvar):
    return _kl(mean, logvar, goal_mean, goal_logvar, sign=2.0)


def _draw_kl(function=_kl_oracle):
    means = torch.linspace(-2, 4, 61, dtype=torch.float64)
    one = torch.ones_like(means)
    lines = {f"spread {s:g}": function(means, one * 2 * torch.tensor(s, dtype=torch.float64).log(), one, -one)
             for s in (1.5, 0.6, 0.1)}
    return figures.plot(lines, x=means, xlabel="mean of the cloud (the goal's is 1)", ylabel="KL (nats)",
                        alt="Three parabolas, each lowest at mean 1; that of spread 0.6 touches zero there.")


KL = Exercise(
    name="02.kl", target="kl", kind="build", title="Two clouds", minutes=15, level=2, cases=_kl_cases,
    oracle=_kl_oracle, gradients=True, forbidden=("kl_divergence", "kl_div"), celebrate=_draw_kl,
    mistakes=(
        Mistake("turned round", _kl_turned, "That is the divergence of the goal from the cloud. The two are not the "
                "same: the cloud is the one whose samples you would get."),
        Mistake("deaf to the goal", _kl_deaf, "Whatever the goal is, you measure the way to N(0, 1). That is the last "
                "special case, not the whole."),
        Mistake("in plain metres", _kl_plain, "Distances should be measured in units of the goal's spread. Near a wide "
                "goal, being beside its middle costs little."),
        Mistake("spread for variance", _kl_spread, "In the formula stand variances; you put spreads in their place. "
                "(Chapter 02, the section on why the logarithm.)"),
        Mistake("twice as dear", _kl_double, "Your numbers are all twice as large as they should be."),
        Mistake("logarithm upside down", _kl_sign, "The logarithm has the wrong sign: with you a tiny cloud is cheap. "
                "It should be dear, because it says so much."),
        Mistake("logarithm twice", _kl_whole, "Your logarithm counts twice: it is one of variances, and the formula "
                "has that of a ratio of spreads."),
    ),
    hints=(_draw_kl, "log(sigma_q / sigma_p) is half a difference of two numbers that you are given.",
           "With goal_mean = 0 and goal_logvar = 0 it must become the formula of the chapter."),
)


# 02.half

def _half_cases(seed):
    return [tuple(random_tensors(seed, (2, 2, 8, 6))), tuple(random_tensors(seed + 1, (1, 2, 4, 4)))]


def _half_oracle(state, x):
    height, width = x.shape[2] // 2, x.shape[3] // 2
    room = x.new_zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
    room[:, :, :-1, :-1] = x
    total = state["conv.bias"].view(1, -1, 1, 1)
    for row in range(3):
        for column in range(3):
            seen = room[:, :, row:row + 2 * height - 1:2, column:column + 2 * width - 1:2]
            total = total + torch.einsum("ncij,dc->ndij", seen, state["conv.weight"][:, :, row, column])
    return total


class _Half(nn.Module):
    sides, how = (0, 1, 0, 1), "constant"

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, self.sides, mode=self.how))


class _HalfAll(_Half):
    sides = (1, 1, 1, 1)


class _HalfMended(_Half):
    sides = (0, 1, 1, 0)


class _HalfRight(_Half):
    sides = (0, 1)


class _HalfBare(_Half):
    sides = (0, 0)


class _HalfEdge(_Half):
    how = "replicate"


def _draw_half():
    places = torch.arange(8.0).expand(1, 1, 8, 8)
    copy = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))
    seen = F.conv2d(F.pad(places, (0, 1, 0, 1)), copy, stride=2)[0, 0, 0]
    return figures.plot({"pixel that the kernel's middle lies on": seen, "middle of the two pixels": 2 * torch.arange(4)
                         + 0.5}, xlabel="place in the small picture", ylabel="column of the large picture",
                        alt="Two rising lines of four points: the kernel's middle lies half a pixel above the true "
                            "middle everywhere.")


HALF = Exercise(
    name="02.half", target="HalfSize", kind="repair", title="A bad port", minutes=10, level=1, cases=_half_cases,
    init=(2,), parameters={"conv.weight": (2, 2, 3, 3), "conv.bias": (2,)}, oracle=_half_oracle, gradients=True,
    forbidden=("Downsample",),
    mistakes=(
        Mistake("all sides", _HalfAll, "Zeros lie above and to the left still. The shape fits, but each kernel stands "
                "one pixel further up and left than the original's. (Chapter 02, section 2.)"),
        Mistake("one axis mended", _HalfMended, "From left to right it is as in the original; from top to bottom your "
                "row of zeros lies at the wrong end. `F.pad` wants them in the order left, right, top, bottom."),
        Mistake("columns only", _HalfRight, "You have added a column and no row: your small picture is too low. "
                "`F.pad` takes two numbers for each axis, the last axis first."),
        Mistake("nothing added", _HalfBare, "Without any padding the last kernel does not fit in any more, and a row "
                "and a column are lost."),
        Mistake("edge repeated", _HalfEdge, "Your padding repeats the edge. The original's is zeros, and its weights "
                "have learnt to recognise them."),
    ),
    hints=(_draw_half, "Count for a row of 8 pixels: three wide, two a step, four places. How many pixels are "
           "missing, and at which end, if the first kernel stands on pixels 0, 1 and 2?"),
)


# 02.attention

def _attention_cases(seed):
    return [tuple(random_tensors(seed, (2, 4, 3, 5))), tuple(random_tensors(seed + 1, (1, 4, 2, 2)))]


def _attention_oracle(state, x):
    tokens = F.group_norm(x, 2, state["norm.weight"], state["norm.bias"], eps=1e-6).flatten(2).mT       # (N, HW, C)
    q, k, v = (F.linear(tokens, state[f"to_{name}.weight"], state[f"to_{name}.bias"]) for name in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v)
    return x + F.linear(mixed, state["to_out.weight"], state["to_out.bias"]).mT.reshape(x.shape)


class _Attention(nn.Module):
    skip, root, axis, normed, out, scrambled, turned = True, 0.5, -1, True, True, False, False

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        n, c, h, w = x.shape
        picture = self.norm(x) if self.normed else x
        tokens = picture.reshape(n, h * w, c) if self.scrambled else rearrange(picture, "n c h w -> n (h w) c")
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        q, k = (k, q) if self.turned else (q, k)
        weights = (torch.einsum("nic,njc->nij", q, k) / c ** self.root).softmax(self.axis)
        mixed = torch.einsum("nij,njc->nic", weights, v)
        mixed = self.to_out(mixed) if self.out else mixed
        mixed = mixed.reshape(n, c, h, w) if self.scrambled else rearrange(mixed, "n (h w) c -> n c h w", h=h)
        return x + mixed if self.skip else mixed


class _AttentionAlone(_Attention):
    skip = False


class _AttentionHot(_Attention):
    root = 0.0


class _AttentionCold(_Attention):
    root = 1.0


class _AttentionAnswered(_Attention):
    turned = True


class _AttentionTurned(_Attention):
    axis = 1


class _AttentionRaw(_Attention):
    normed = False


class _AttentionShort(_Attention):
    out = False


class _AttentionScrambled(_Attention):
    scrambled = True


ATTENTION = Exercise(
    name="02.attention", target="Attention", kind="build", title="One look at everything", minutes=20, points=3,
    level=3, cases=_attention_cases, init=(4, 2), oracle=_attention_oracle, gradients=True,
    parameters={"norm.weight": (4,), "norm.bias": (4,),
                **{f"to_{name}.{part}": (4, 4) if part == "weight" else (4,)
                   for name in ("q", "k", "v", "out") for part in ("weight", "bias")}},
    forbidden=("scaled_dot_product_attention", "MultiheadAttention", "PixelAttention"),
    mistakes=(
        Mistake("nothing is added", _AttentionAlone, "You return what the look around has brought, and the picture "
                "itself is lost. This layer, too, only says what to change."),
        Mistake("too sure", _AttentionHot, "Your scores are too large for so many channels, and the softmax listens to "
                "one place only. Something under the fraction bar is missing."),
        Mistake("too unsure", _AttentionCold, "Your scores are too small: they are divided by the number of channels "
                "itself, and the softmax listens to everybody."),
        Mistake("keys that ask", _AttentionAnswered, "With you the keys ask and the queries are asked. Trained weights "
                "know which of them is which."),
        Mistake("the other axis", _AttentionTurned, "Your weights add up to 1 over the places that ask. They should "
                "over the places that are asked."),
        Mistake("not normalised", _AttentionRaw, "`norm` is there and is not used: the places are compared as they "
                "come."),
        Mistake("the last map left out", _AttentionShort, "`to_out` is there and is not used: the mixture of values "
                "goes through one more linear map."),
        Mistake("pixels scrambled", _AttentionScrambled, "`reshape` or `view` alone does not move an axis: your "
                "tokens are made of numbers of different pixels. The channels must become the last axis first."),
    ),
    hints=(sketches.pixel_attention,
           "Normalise; make a row of H W places with C numbers each; ask, compare, mix; make a picture of it again; "
           "add.", "`rearrange` does the two turns. Compare every place i with every place j by einsum over c, as in "
           "section 2 of the chapter.", "The softmax goes over the places that are asked, j."),
)


# 02.shift

def _shift(halvings):
    copy = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))[:, :, 1]                          # a kernel of three, in 1-D
    right = wrong = torch.arange(4.0 * 2 ** halvings).view(1, 1, -1)
    for _ in range(halvings):
        right = F.conv1d(F.pad(right, (0, 1)), copy, stride=2)
        wrong = F.conv1d(F.pad(wrong, (1, 1)), copy, stride=2)
    return int((right - wrong)[0, 0, 1])


SHIFT = Exercise(
    name="02.shift", target="answer_shift", kind="explore", title="How far off?", minutes=10, points=1,
    options=lambda rng: {"halvings": rng.choice((4, 5, 6))}, oracle=_shift, tolerance=0,
    mistakes=(
        Mistake("a pixel each", lambda halvings: halvings, "One pixel a layer, yes. But a pixel of a small picture is "
                "several pixels of the frame wide."),
        Mistake("the last one only", lambda halvings: 2 ** (halvings - 1), "That is what the last layer adds; the "
                "layers before it add something too."),
        Mistake("a whole cell", lambda halvings: 2 ** halvings, "That is a whole cell of the latents. It is nearly as "
                "much."),
        Mistake("as in the chapter", 7, "Seven pixels are for three halvings, as in the chapter."),
    ),
    hints=(sketches.shift,
           "Try it on a row of numbers 0, 1, 2, .. with a kernel that copies the pixel in its middle: `F.conv1d`, with "
           "`F.pad(x, (0, 1))` and with `F.pad(x, (1, 1))`.",
           "In the chapter, three layers made 1 + 2 + 4 pixels."),
)

EXERCISES = [DRAW, KL, HALF, ATTENTION, SHIFT]
