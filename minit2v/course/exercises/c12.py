"""Chapter 12, fine-tuning: LoRA, its merging, the weight of each noise level, which layers know time, forgetting."""

import copy
from functools import cache

import torch
from torch import nn

from minit2v.config import mini
from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors
from minit2v.unet import TemporalConv, TemporalTransformer, UNet

# 12.lora

_RANK, _ALPHA = 2, 6.0


def _lora_init():
    return nn.utils.skip_init(nn.Linear, 4, 3), _RANK, _ALPHA


def _lora_cases(seed):
    return [tuple(random_tensors(seed, (5, 4))), tuple(random_tensors(seed + 1, (2, 3, 4)))]


def _call_lora(module, x):
    """What the module makes of x with the given weights, and how a new one begins."""
    linear = copy.deepcopy(module.linear).requires_grad_()
    fresh, here = type(module)(linear, _RANK, _ALPHA).to(x.dtype), x.detach()
    out = fresh(here)
    if out.requires_grad:
        (out.square().sum() + out.sum()).backward()
    ranks = [int(torch.linalg.matrix_rank(p.detach())) for p in (fresh.down, fresh.up)]
    slopes = [p.grad is not None and bool(p.grad.any()) for p in (fresh.down, fresh.up)]
    learns = sorted(name for name, p in fresh.named_parameters() if p.requires_grad)
    return {"with weights": module(x), "changing nothing at first": torch.allclose(out, linear(here)),
            "able to learn": any(slopes), "what learns": ", ".join(learns), "rank of what can come of it": max(ranks),
            "beside the very layer that came in": fresh.linear.weight is linear.weight
            and fresh.linear.bias is linear.bias}


def _lora_oracle(state, x):
    whole = state["linear.weight"] + _ALPHA / _RANK * torch.einsum("or,ri->oi", state["up"], state["down"])
    return {"with weights": torch.einsum("...i,oi->...o", x, whole) + state["linear.bias"],
            "changing nothing at first": True, "able to learn": True, "what learns": "down, up",
            "rank of what can come of it": _RANK, "beside the very layer that came in": True}


class _LoRA(nn.Module):
    start, frozen = "up", True                           # which of the two begins as zero

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(not self.frozen), self.size(rank, alpha)
        first, last = linear.in_features, linear.out_features
        ramp = torch.linspace(-1, 1, rank * first).view(rank, first)
        self.down = nn.Parameter(ramp * ("down" not in self.start))
        self.up = nn.Parameter(torch.linspace(-1, 1, last * rank).view(last, rank) * ("up" not in self.start))

    def size(self, rank, alpha):
        return alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.down.T @ self.up.T)


class _LoRAAlpha(_LoRA):
    def size(self, rank, alpha):
        return alpha


class _LoRAUpside(_LoRA):
    def size(self, rank, alpha):
        return rank / alpha


class _LoRAUnscaled(_LoRA):
    def size(self, rank, alpha):
        return 1.0


class _LoRALoud(_LoRA):
    start = ""


class _LoRADead(_LoRA):
    start = "down up"


class _LoRAAlike(_LoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear, rank, alpha)
        self.down = nn.Parameter(torch.ones(rank, linear.in_features))


class _LoRAThawed(_LoRA):
    frozen = False


class _LoRACopied(_LoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(copy.deepcopy(linear), rank, alpha)


class _LoRAAlone(_LoRA):
    def forward(self, x):
        return super().forward(x) - self.linear(x)


LORA = Exercise(
    name="12.lora", target="LoRA", kind="build", title="A small change beside a large layer", minutes=20, level=2,
    points=3, cases=_lora_cases, init=_lora_init, call=_call_lora, oracle=_lora_oracle, gradients=True,
    parameters={"down": (2, 4), "up": (3, 2), "linear.weight": (3, 4), "linear.bias": (3,)},
    mistakes=(
        Mistake("alpha alone", _LoRAAlpha, "The adapter counts alpha times. It should count less the more ranks it "
                "has: so one alpha serves for every rank. (Chapter 12, LoRA's formula.)"),
        Mistake("upside down", _LoRAUpside, "alpha and the rank have changed places in your factor."),
        Mistake("no factor", _LoRAUnscaled, "alpha plays no part: the adapter counts once, whatever it says."),
        Mistake("loud from the start", _LoRALoud, "With trained weights it is right. But a new adapter changes what "
                "the layer does, before it has learnt anything."),
        Mistake("nothing for ever", _LoRADead, "A new adapter changes nothing, and will never learn: both matrices are "
                "zero, and the slope of each is multiplied by the other. One of the two is enough."),
        Mistake("all alike", _LoRAAlike, "All rows of `down` begin alike, so they get the same slopes and stay alike: "
                "whatever the rank, what is learnt has rank 1."),
        Mistake("the large one learns, too", _LoRAThawed, "The layer beside the adapter still learns. Then there is "
                "nothing small about it, and what is saved of it is not what was trained."),
        Mistake("beside a copy", _LoRACopied, "The numbers are right, but you keep a copy of the layer. That doubles "
                "the memory of what is large already; and the layer that was handed to you does not stay still: it "
                "still learns, wherever else it is used."),
        Mistake("instead of beside", _LoRAAlone, "Only the adapter's part comes out. The layer itself should go on "
                "doing what it did."),
    ),
    hints=(sketches.lora,
           "Two ways from x to y: the layer as it is, and a detour through `rank` numbers. They add up. What factor "
           "does the detour have?",
           "`down` is (rank, in) and `up` is (out, rank). Rows of x times the transpose of a matrix is what a linear "
           "layer does.",
           "Which of the two can begin as zero, so that the detour brings nothing at first, and learns nevertheless? "
           "And of `linear` no parameter should ask for gradients."),
)


# 12.min_snr

def _snr_cases(seed):
    bars = torch.linspace(0.005, 0.999, 23, dtype=torch.float64)
    return [(bars, 5.0, "noise"), (bars, 5.0, "velocity"), (bars, 1.0, "noise"), (bars, 2.0, "velocity")]


def _snr_oracle(alpha_bar, gamma, prediction):
    capped = gamma * (1 - alpha_bar)
    if prediction == "noise":
        return torch.where(capped < alpha_bar, capped / alpha_bar, torch.ones_like(alpha_bar))
    return torch.where(capped < alpha_bar, capped, alpha_bar)


def _snr(alpha_bar, gamma, prediction, ratio=lambda bar: bar / (1 - bar), choose=torch.clamp_max,
         parts={"noise": lambda r: r, "velocity": lambda r: r + 1}):
    snr = ratio(alpha_bar)
    return choose(snr, gamma) / parts[prediction](snr)


def _snr_roots(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, prediction, ratio=lambda bar: (bar / (1 - bar)).sqrt())


def _snr_over(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, prediction, choose=torch.clamp_min)


def _snr_clip(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, prediction, parts={"noise": lambda r: 1, "velocity": lambda r: 1})


def _snr_noise(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, "noise")


def _snr_velocity(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, "velocity")


def _snr_turned(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, prediction, ratio=lambda bar: (1 - bar) / bar)


def _snr_amount(alpha_bar, gamma, prediction):
    return _snr(alpha_bar, gamma, prediction, ratio=lambda bar: bar)


def _draw_snr(function=_snr_oracle):
    bars = torch.linspace(0.005, 0.999, 60, dtype=torch.float64)
    return figures.plot({f"{what}, gamma 5": function(bars, 5.0, what) for what in ("noise", "velocity")}, x=bars,
                        xlabel="alpha-bar (1 is clean)", ylabel="weight",
                        alt="For noise the weight is 1 up to an alpha-bar of 0.83 and then falls to nothing. For the "
                            "velocity it rises in a straight line up to there and falls to nothing.")


MIN_SNR = Exercise(
    name="12.min_snr", target="min_snr", kind="build", title="No noise level too dear", minutes=15, level=2, points=2,
    cases=_snr_cases, oracle=_snr_oracle, celebrate=_draw_snr, forbidden=("loss_weight",),
    mistakes=(
        Mistake("amplitudes", _snr_roots, "You divide the amplitudes. The signal-to-noise ratio is one of *variances*: "
                "its square."),
        Mistake("the larger one", _snr_over, "You take the larger of the two. The cap is to hold down the nearly clean "
                "times, whose ratio is in the thousands."),
        Mistake("the clip's own", _snr_clip, "That is the weight for a network that predicts the *clip*. An error of "
                "another answer is an error of the clip times some factor; divide by what that makes of it."),
        Mistake("velocity as noise", _snr_noise, "For noise it is right. For the velocity you give the same weights. "
                "But where there is only noise, an error of the velocity *is* one of the clip, and counts as little as "
                "that does there."),
        Mistake("noise as velocity", _snr_velocity, "For the velocity it is right. For noise you give the same "
                "weights."),
        Mistake("noise-to-signal", _snr_turned, "You have the ratio upside down: noise to signal."),
        Mistake("alpha-bar itself", _snr_amount, "You take alpha-bar itself for the ratio. It never exceeds 1, so the "
                "cap has nothing to do."),
    ),
    hints=(_draw_snr, "An error of the noise by d is one of the clip by d sigma / alpha; so its square counts 1 / SNR "
           "times. What is it for the velocity, where x0 = alpha x - sigma v?",
           "Hang et al. (2023) weigh the squared error of the clip by the smaller one of SNR and gamma. Divide that by "
           "SNR for noise, by SNR + 1 for the velocity."),
)


# 12.merge

def _merge_cases(seed):
    return [(*random_tensors(seed, (4, 4), (2, 4), (4, 2)), 6.0),
            (*random_tensors(seed + 1, (5, 3), (2, 3), (5, 2)), 1.0)]


def _merge_oracle(weight, down, up, alpha):
    return torch.stack([row + alpha / len(down) * sum(share * part for share, part in zip(shares, down))
                        for row, shares in zip(weight, up)])


def _merge_broken(weight, down, up, alpha):
    return weight + alpha / len(up) * (down.T @ up.T)


def _merge_turned(weight, down, up, alpha):
    return weight + alpha / len(down) * (down.T @ up.T)


def _merge_rank(weight, down, up, alpha):
    return weight + alpha / len(up) * (up @ down)


def _merge_alpha(weight, down, up, alpha):
    return weight + alpha * (up @ down)


def _merge_unscaled(weight, down, up, alpha):
    return weight + up @ down


def _merge_alone(weight, down, up, alpha):
    return alpha / len(down) * (up @ down)


def _draw_merge(function=_merge_oracle):
    weight = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
    down = torch.tensor([[1.0, 0, 0, -1, 0, 0]], dtype=torch.float64)
    whole = function(weight, down, torch.tensor([[0.0], [2], [0], [1]], dtype=torch.float64), 0.5)
    return figures.heat([weight, whole - weight, whole], titles=["weight", "what is added, of rank 1", "merged"],
                        values=True, digits=1, size=2.4, alt="Three fields of 4 x 6 numbers: a weight, what is added "
                        "to it, and the sum. What is added is not zero in two rows only, 1.0 and 0.5 in the first "
                        "column and minus that in the fourth: its rows are multiples of one another.")


MERGE = Exercise(
    name="12.merge", target="merged", kind="repair", title="Merged, and another clip", minutes=15, level=2, points=2,
    cases=_merge_cases, oracle=_merge_oracle, gradients=True, celebrate=_draw_merge,
    mistakes=(
        Mistake("as it came", _merge_broken, "Still two faults. The change lies on its side, which only a square layer "
                "lets pass; and its size depends on how many numbers come *out* of the layer."),
        Mistake("on its side", _merge_turned, "The factor is right now. But the change still lies on its side: for "
                "square layers nobody notices, for others the shapes do not fit."),
        Mistake("rank from the wrong end", _merge_rank, "The change has the right direction now, but the wrong size: "
                "which of the lengths in `down` and `up` is the rank?"),
        Mistake("alpha alone", _merge_alpha, "The rank plays no part in your factor."),
        Mistake("no factor", _merge_unscaled, "alpha plays no part: the change counts once."),
        Mistake("the change alone", _merge_alone, "You return the change. It is to be added to the weight."),
    ),
    hints=(_draw_merge, "Hold it against the layer with the adapter beside it: x W^T + s x A^T B^T, with A = down and "
           "B = up. Put x outside of a bracket: what is in it?",
           "There are two faults. Write down the shapes of `weight`, `down` and `up` for a layer of 3 numbers to 5: "
           "which product has the shape of the weight, and which length is the rank?"),
)


# 12.temporal

_LAYERS = ("conv_in.weight", "time_embedding.0.weight", "transformer_in.proj_in.weight",
           "transformer_in.block.attn1.to_q.weight", "transformer_in.block.attn2.to_k.weight",
           "down.0.blocks.0.res.time_proj.bias",
           "down.0.blocks.0.temporal_conv.conv1.2.weight",
           "down.1.blocks.0.spatial_transformer.block.attn2.to_k.weight",
           "down.1.blocks.0.temporal_transformer.block.attn2.to_v.weight",
           "down.1.blocks.0.temporal_transformer.block.ff.out.bias", "mid.1.temporal_conv.conv4.0.bias",
           "up.0.blocks.1.spatial_transformer.norm.weight", "up.0.resample.conv.weight", "norm_out.bias")


@cache
def _knows_time():
    """The parameters that lie in a module which sees more than one frame."""
    with torch.device("meta"):
        network = UNet(mini().unet)
    return {f"{path}.{name}" for path, module in network.named_modules()
            if isinstance(module, (TemporalConv, TemporalTransformer)) for name, _ in module.named_parameters()}


def _temporal_cases(seed):
    return [(name,) for name in _LAYERS]


def _temporal_broken(name):
    return "temporal" in name


def _temporal_transformers(name):
    return "temporal" in name or "transformer" in name


def _temporal_times(name):
    return "temporal" in name or "transformer_in" in name or "time" in name


def _temporal_rest(name):
    return "spatial" not in name


def _temporal_convs(name):
    return "temporal_conv" in name or "transformer_in" in name


def _temporal_turned(name):
    return not ("temporal" in name or "transformer_in" in name)


TEMPORAL = Exercise(
    name="12.temporal", target="learns", kind="repair", title="Which layers know time", minutes=10, level=1, points=2,
    cases=_temporal_cases, oracle=lambda name: name in _knows_time(),
    mistakes=(
        Mistake("as it came", _temporal_broken, "One module that sees all frames of a clip does not have that word in "
                "its name. It is the first one that the latents come to."),
        Mistake("all transformers", _temporal_transformers, "You let all transformers learn. Those that are spatial "
                "see single frames, and they are what holds colours and shapes."),
        Mistake("another time", _temporal_times, "You let the time embedding learn, too. That is the time of the "
                "noise, not of the clip."),
        Mistake("all but the spatial", _temporal_rest, "You let everything learn that is not called spatial. The "
                "residual blocks and the first and last convolutions see single frames as well."),
        Mistake("convolutions alone", _temporal_convs, "The temporal transformers do not learn with you."),
        Mistake("turned round", _temporal_turned, "You freeze what should learn, and the other way round."),
    ),
    hints=(sketches.temporal,
           "Print the name of every module of `pipe.unet` that is a TemporalConv or a TemporalTransformer.",
           "Where does the UNet look along time before it goes down for the first time? (Chapter 07.)"),
)


# 12.forgotten

FORGOTTEN = Exercise(
    name="12.forgotten", target="answer_forgotten", kind="explore", title="What was forgotten", minutes=10, points=1,
    options=lambda rng: {"before": rng.choice((0.9, 0.8)), "after": rng.choice((0.3, 0.6, 0.7)),
                         "chance": rng.choice((0.1, 0.25))},
    oracle=lambda before, after, chance: (before - after) / (before - chance), tolerance=5e-3,
    mistakes=(
        Mistake("points", lambda before, after, chance: before - after, "Those are points of accuracy. What share of "
                "what it *could* is that?"),
        Mistake("chance counted as skill", lambda before, after, chance: (before - after) / before, "You count from "
                "zero. But who guesses reaches chance, and nobody can forget that."),
        Mistake("what is left", lambda before, after, chance: (after - chance) / (before - chance), "That is the share "
                "that is left."),
        Mistake("of the rest", lambda before, after, chance: (before - after) / (after - chance), "You divide by what "
                "it can *now*. Ask what share of its earlier skill is gone."),
    ),
    hints=(sketches.forgotten,
           "Skill is what lies above chance. How much was it before, and how much is it now?"),
)

EXERCISES = [LORA, MIN_SNR, MERGE, TEMPORAL, FORGOTTEN]
