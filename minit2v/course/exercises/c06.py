"""Chapter 06, sampling: one step of each sampler, and guidance."""

import math

import torch

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors

SHAPE = (2, 4, 3)                                        # of every tensor here


# 06.ddim

def _ddim_cases(seed):
    x0, eps, noise = random_tensors(seed, SHAPE, SHAPE, SHAPE)
    return [(x0, eps, noise, 0.3, 0.6, 0.0), (x0, eps, noise, 0.3, 0.6, 1.0), (x0, eps, noise, 0.05, 0.1, 0.5)]


def _ddim_oracle(x0, eps, noise, bar_t, bar_s, eta):
    kept = bar_t / bar_s                                     # of x_s in x_t; Bayes: two Gaussians' precisions add up
    fresh = eta / math.sqrt(1 / (1 - bar_s) + kept / (1 - kept))
    return sum(factor * part for factor, part in zip(
        (bar_s ** 0.5, math.sqrt(1 - bar_s - fresh ** 2), fresh), (x0, eps, noise)))


def _ddim(x0, eps, noise, bar_t, bar_s, eta, rest="less", old=False, spread=1.0):
    fresh = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)) ** spread
    direction = {"less": 1 - bar_s - fresh ** 2, "all": 1 - bar_s, "linear": max(0, 1 - bar_s - fresh)}[rest]
    return (bar_t if old else bar_s) ** 0.5 * x0 + direction ** 0.5 * eps + fresh * noise


def _ddim_loud(x0, eps, noise, bar_t, bar_s, eta):
    return _ddim(x0, eps, noise, bar_t, bar_s, eta, rest="all")


def _ddim_old(x0, eps, noise, bar_t, bar_s, eta):
    return _ddim(x0, eps, noise, bar_t, bar_s, eta, old=True)


def _ddim_linear(x0, eps, noise, bar_t, bar_s, eta):
    return _ddim(x0, eps, noise, bar_t, bar_s, eta, rest="linear")


def _ddim_variance(x0, eps, noise, bar_t, bar_s, eta):
    return _ddim(x0, eps, noise, bar_t, bar_s, eta, spread=2.0)


def _ddim_beta(x0, eps, noise, bar_t, bar_s, eta):
    fresh = eta * math.sqrt(1 - bar_t / bar_s)
    return bar_s ** 0.5 * x0 + max(0.0, 1 - bar_s - fresh ** 2) ** 0.5 * eps + fresh * noise


def _ddim_deaf(x0, eps, noise, bar_t, bar_s, eta):
    return _ddim(x0, eps, noise, bar_t, bar_s, 0.0)


DDIM = Exercise(
    name="06.ddim", target="ddim_step", kind="build", title="A step of DDIM", minutes=20, points=3, level=2,
    cases=_ddim_cases, oracle=_ddim_oracle, gradients=True, forbidden=("ddim",),
    mistakes=(
        Mistake("the larger spread", _ddim_beta, "Your fresh noise has the variance beta of the jump. At eta = 1 it "
                "should have that of DDPM's posterior, which is smaller, because x_0 is known."),
        Mistake("too much noise", _ddim_loud, "With eta above 0 your x_s is too noisy. The fresh noise takes the place "
                "of old noise: together they must have the variance of time s."),
        Mistake("the old time", _ddim_old, "The clip's share is still that of the time you come from. After the step "
                "it is that of the time you go to."),
        Mistake("sigma not squared", _ddim_linear, "Under the root stand variances. The size of the fresh noise is no "
                "variance yet."),
        Mistake("variance for size", _ddim_variance, "Your fresh noise has the size of its own variance: a root is "
                "missing."),
        Mistake("deaf to eta", _ddim_deaf, "eta changes nothing. At 0 the step is right, and the noise is never used."),
    ),
    hints=(sketches.ddim,
           "x_s is a mixture of three things: the clip, the noise that was found, and fresh noise. The squares of the "
           "last two factors sum to 1 - alpha-bar_s.",
           "Song et al. (2021), eq. 16: the fresh noise's size is eta times the spread of the posterior of DDPM.",
           "At eta = 0 only the first two parts are left, each with the factor that it has at time s."),
)


# 06.ddpm

def _ddpm_cases(seed):
    x, x0, noise = random_tensors(seed, SHAPE, SHAPE, SHAPE)
    return [(x, x0, noise, 0.3, 0.6), (x, x0, noise, 0.05, 0.07)]


def _ddpm_oracle(x, x0, noise, bar_t, bar_s):
    kept = bar_t / bar_s                    # prior: N(sqrt(bar_s) x0, 1 - bar_s); seen: x = sqrt(kept) x_s + noise
    precision = torch.tensor([1 / (1 - bar_s), kept / (1 - kept)], dtype=x.dtype)
    centres = torch.stack([bar_s ** 0.5 * x0, x / kept ** 0.5])
    return torch.einsum("k,k...->...", precision / precision.sum(), centres) + precision.sum() ** -0.5 * noise


def _ddpm(x, x0, noise, bar_t, bar_s, small=True, root=True, swapped=False, loud=1.0):
    kept = bar_t / bar_s
    a, b = bar_s ** 0.5 * (1 - kept) / (1 - bar_t), kept ** 0.5 * (1 - bar_s) / (1 - bar_t)
    variance = (1 - kept) * ((1 - bar_s) / (1 - bar_t) if small else 1)
    mean = b * x0 + a * x if swapped else a * x0 + b * x
    return mean + loud * (variance ** 0.5 if root else variance) * noise


def _ddpm_beta(x, x0, noise, bar_t, bar_s):
    return _ddpm(x, x0, noise, bar_t, bar_s, small=False)


def _ddpm_variance(x, x0, noise, bar_t, bar_s):
    return _ddpm(x, x0, noise, bar_t, bar_s, root=False)


def _ddpm_swapped(x, x0, noise, bar_t, bar_s):
    return _ddpm(x, x0, noise, bar_t, bar_s, swapped=True)


def _ddpm_silent(x, x0, noise, bar_t, bar_s):
    return _ddpm(x, x0, noise, bar_t, bar_s, loud=0.0)


DDPM = Exercise(
    name="06.ddpm", target="ddpm_step", kind="build", title="A step of DDPM", minutes=20, points=3, level=3,
    cases=_ddpm_cases, oracle=_ddpm_oracle, gradients=True, forbidden=("ddpm",),
    mistakes=(
        Mistake("the larger variance", _ddpm_beta, "Your noise has the variance beta. The paper tried that, too; asked "
                "for is the posterior's own, which is smaller because x_0 is known."),
        Mistake("variance for size", _ddpm_variance, "Noise of unit size times a variance has the wrong size."),
        Mistake("swapped", _ddpm_swapped, "The factors of the clip and of x have changed places: near the end you "
                "trust the noisy x more than the guess."),
        Mistake("no noise", _ddpm_silent, "You return the mean. DDPM draws from the posterior; without noise its "
                "samples are dull averages."),
    ),
    hints=(sketches.ddpm,
           "Two things are known of x_s: it lies near sqrt(alpha-bar_s) x_0 with the variance 1 - alpha-bar_s, and x "
           "came out of it by one noisy step. Two Gaussians multiply.",
           "DDPM, eq. 7, with the jump from s to t in the place of one step: its alpha is alpha-bar_t / alpha-bar_s.",
           "Write `kept` for that ratio and 1 - kept for its beta; then the equation can be copied term by term."),
)


# 06.dpm

def _dpm_cases(seed):
    x, x0, before = random_tensors(seed, SHAPE, SHAPE, SHAPE)
    return [(x, x0, before, 0.1, 0.3, 0.6), (x, x0, before, 0.02, 0.05, 0.4)]


def _slope(bar):
    return 0.5 * math.log(bar / (1 - bar))


def _dpm_oracle(x, x0, before, bar_before, bar_t, bar_s):
    nodes = torch.tensor([-0.906179845938664, -0.538469310105683, 0.0, 0.538469310105683, 0.906179845938664])
    weights = torch.tensor([0.236926885056189, 0.478628670499366, 0.568888888888889, 0.478628670499366,
                            0.236926885056189])
    start, end, last = _slope(bar_t), _slope(bar_s), _slope(bar_before)
    guess = x0 + (x0 - before) / (start - last) * (end - start) / 2         # followed on to the middle of the step
    area, parts = 0.0, 40
    for i in range(parts):                                                  # Gauss's rule on 40 pieces
        low, high = (start + (end - start) * (i + k) / parts for k in (0, 1))
        places = (low + high) / 2 + (high - low) / 2 * nodes.double()
        area += ((high - low) / 2 * (weights.double() * places.exp()).sum()).item()
    return ((1 - bar_s) / (1 - bar_t)) ** 0.5 * x + (1 - bar_s) ** 0.5 * area * guess


def _dpm(x, x0, before, bar_before, bar_t, bar_s, order=2, turned=False, far=2.0, sign=-1.0, fast=1.0):
    h, last = fast * (_slope(bar_s) - _slope(bar_t)), fast * (_slope(bar_t) - _slope(bar_before))
    r = h / last if turned else last / h
    guess = x0 if order == 1 else x0 + (x0 - before) / (far * r)
    return ((1 - bar_s) / (1 - bar_t)) ** 0.5 * x - bar_s ** 0.5 * math.expm1(sign * h) * guess


def _dpm_first(x, x0, before, bar_before, bar_t, bar_s):
    return _dpm(x, x0, before, bar_before, bar_t, bar_s, order=1)


def _dpm_turned(x, x0, before, bar_before, bar_t, bar_s):
    return _dpm(x, x0, before, bar_before, bar_t, bar_s, turned=True)


def _dpm_far(x, x0, before, bar_before, bar_t, bar_s):
    return _dpm(x, x0, before, bar_before, bar_t, bar_s, far=1.0)


def _dpm_half(x, x0, before, bar_before, bar_t, bar_s):
    h = _slope(bar_s) - _slope(bar_t)
    guess = x0 + (x0 - before) / 2
    return ((1 - bar_s) / (1 - bar_t)) ** 0.5 * x - bar_s ** 0.5 * math.expm1(-h) * guess


def _dpm_sign(x, x0, before, bar_before, bar_t, bar_s):
    return _dpm(x, x0, before, bar_before, bar_t, bar_s, sign=1.0)


def _dpm_fast(x, x0, before, bar_before, bar_t, bar_s):
    return _dpm(x, x0, before, bar_before, bar_t, bar_s, fast=2.0)


DPM = Exercise(
    name="06.dpm", target="dpm_step", kind="build", title="A step of DPM-Solver++(2M)", minutes=25, points=3, level=3,
    cases=_dpm_cases, oracle=_dpm_oracle, gradients=True, forbidden=("dpm_solver_pp",),
    mistakes=(
        Mistake("first order", _dpm_first, "You use the newest guess alone: that is DDIM. The second order comes from "
                "where the guess is heading."),
        Mistake("ratio upside down", _dpm_turned, "The two step sizes are divided the wrong way round: after a *short* "
                "step before, the guess should be followed further."),
        Mistake("too far", _dpm_far, "You follow the guess to the end of the step. Its mean over the step lies "
                "half-way."),
        Mistake("half of the last change", _dpm_half, "You follow the guess by half of its *last* change. The last "
                "step and this one differ in length: by how much, in lambda?"),
        Mistake("twice as fast", _dpm_fast, "Your clock runs twice as fast: that is the logarithm of the *ratio of "
                "variances*, alpha^2 / sigma^2. lambda is that of alpha / sigma."),
        Mistake("wrong sign of h", _dpm_sign, "The guess comes in with the wrong sign or size: log-SNR rises on the "
                "way from t to s, so h is positive. How does exp(-h) - 1 look then?"),
    ),
    hints=(sketches.dpm,
           "Work in lambda = log(alpha / sigma), half the logarithm of the SNR; h is what it rises by in this step.",
           "Lu et al. (2022), algorithm 2: first the guess D, followed half a step on; then the same line as in first "
           "order with D in the place of x_0."),
)


# 06.guide

def _guide_cases(seed):
    without, within = random_tensors(seed, SHAPE, SHAPE)
    return [(without, within, 4.0), (without, within, 1.0), (without, within, 0.0)]


def _guide_oracle(without, within, scale):
    return torch.lerp(without, within, torch.full_like(within, scale))


def _guide_swapped(without, within, scale):
    return within + scale * (without - within)


def _guide_more(without, within, scale):
    return within + scale * (within - without)


def _guide_away(without, within, scale):
    return without + scale * (without - within)


def _guide_mean(without, within, scale):
    return (without + scale * within) / (1 + scale)


def _draw_guide(function=_guide_oracle):
    scales = torch.linspace(0, 8, 33, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    line = torch.cat([function(0 * one, one, float(g)) for g in scales])
    return figures.plot({"answer": line}, x=scales, xlabel="guidance scale",
                        alt="A straight line: 0 (no prompt) at scale 0, 1 (the prompt) at scale 1, 8 at scale 8.")


GUIDE = Exercise(
    name="06.guide", target="guide", kind="repair", title="The prompt turned round", minutes=10, level=1,
    cases=_guide_cases, oracle=_guide_oracle, gradients=True, forbidden=("lerp",), celebrate=_draw_guide,
    mistakes=(
        Mistake("turned round", _guide_swapped, "More guidance leads away from the prompt: at scale 1 you get the "
                "answer *without* it."),
        Mistake("one too much", _guide_more, "At scale 1 the prompt should count once, and you exaggerate already. In "
                "which of the two answers does the walk begin?"),
        Mistake("half repaired", _guide_away, "The start is right now. The direction still points away from the "
                "prompt."),
        Mistake("a mean", _guide_mean, "That stays between the two answers. Guidance goes beyond the second."),
    ),
    hints=(_draw_guide, "Where should you be at scale 0, and where at scale 1?"),
)


# 06.cost

COST = Exercise(
    name="06.cost", target="answer_cost", kind="explore", title="What a clip costs", minutes=5, points=1,
    options=lambda rng: {"steps": rng.choice((15, 20, 25, 40)), "prompts": rng.choice((3, 4, 5)),
                         "guidance_scale": rng.choice((4.0, 9.0))},
    oracle=lambda steps, prompts, guidance_scale: 2 * steps * prompts, tolerance=0,
    mistakes=(
        Mistake("without guidance", lambda steps, prompts, guidance_scale: steps * prompts, "That would do at a "
                "guidance scale of 1."),
        Mistake("scale as a count", lambda steps, prompts, guidance_scale: int(guidance_scale) * steps * prompts, "The "
                "guidance scale is a factor in a formula; it does not change how often the network is asked."),
        Mistake("one clip", lambda steps, prompts, guidance_scale: 2 * steps, "That is one clip of the batch."),
    ),
    hints=(sketches.cost,
           "In one step with guidance the network answers two questions for each clip. Which?"),
)

EXERCISES = [DDIM, DDPM, DPM, GUIDE, COST]
