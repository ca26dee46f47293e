"""Chapter 08, text to video: what training averages and how fast it goes, its batches, and the whole pipeline."""

import math
from types import SimpleNamespace

import torch
from einops import rearrange

from minit2v.config import mini
from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors
from minit2v.diffusion import Process

# 08.ema

def _ema_cases(seed):
    return [(*random_tensors(seed, (5,), (6, 5)), 0.9), (*random_tensors(seed + 1, (2, 3), (30, 2, 3)), 0.5),
            (*random_tensors(seed + 2, (4,), (1, 4)), 0.999)]


def _ema_oracle(start, history, decay):
    steps = torch.arange(len(history), dtype=torch.float64)
    kept = torch.minimum(torch.full_like(steps, decay), (1 + steps) / (10 + steps))
    left = torch.cat([kept.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])       # of what came before
    shares = torch.cat([left[:1], (1 - kept) * left[1:]]).to(history.dtype)                       # they sum to 1
    return torch.einsum("s,s...->...", shares, torch.cat([start[None], history]))


def _ema(start, history, decay, first=0, choose=min, swapped=False):
    average = start
    for step, weights in enumerate(history, start=first):
        kept = choose(decay, (1 + step) / (10 + step))
        average = (1 - kept) * average + kept * weights if swapped else kept * average + (1 - kept) * weights
    return average


def _ema_swapped(start, history, decay):
    return _ema(start, history, decay, swapped=True)


def _ema_stuck(start, history, decay):
    return _ema(start, history, decay, choose=lambda decay, early: decay)


def _ema_larger(start, history, decay):
    return _ema(start, history, decay, choose=max)


def _ema_late(start, history, decay):
    return _ema(start, history, decay, first=1)


def _ema_forgets(start, history, decay):
    step = len(history) - 1
    kept = min(decay, (1 + step) / (10 + step))
    return kept * start + (1 - kept) * history[-1]


def _ema_mean(start, history, decay):
    return torch.cat([start[None], history]).mean(0)


def _draw_ema(function=_ema_oracle):
    wild = random_tensors(0, (120,))[0] * 0.3 + torch.linspace(0, 4, 120, dtype=torch.float64).tanh()
    lines = {"a weight": wild}
    for decay in (0.7, 0.97):
        averages = [function(wild[0], wild[1:n + 1], decay) for n in range(1, 120)]
        lines[f"average, decay {decay:g}"] = torch.stack(averages)
    lines["a weight"] = wild[1:]
    return figures.plot(lines, xlabel="step", alt="A jagged curve that rises from 0 to 1, and two averages of it that "
                        "follow it smoothly; the one with the larger decay is smoother and later.")


EMA = Exercise(
    name="08.ema", target="ema", kind="build", title="An average that forgets", minutes=15, level=1, points=2,
    cases=_ema_cases, oracle=_ema_oracle, gradients=True, forbidden=("Ema",), celebrate=_draw_ema,
    mistakes=(
        Mistake("roles swapped", _ema_swapped, "Your average runs after the newest weights: the decay is the share of "
                "the *old* average that stays. (Chapter 08, where the average is built.)"),
        Mistake("stuck at the start", _ema_stuck, "You keep the full decay from the first step on. Then the random "
                "start weighs for very long; in the first steps less should be kept."),
        Mistake("the larger of two", _ema_larger, "Of the two shares you take the larger. The rule for the first steps "
                "should hold the decay *down*, until it no longer can."),
        Mistake("a step ahead", _ema_late, "You count steps from 1. The first one is step 0, and a tenth is kept."),
        Mistake("no memory", _ema_forgets, "You average the start and the last weights only. Each step begins with the "
                "average that the step before has left."),
        Mistake("a plain mean", _ema_mean, "That is the mean of all weights. It remembers the worst and the latest "
                "alike; a moving average forgets."),
    ),
    hints=(_draw_ema, "One number is carried from step to step, for each weight. At each step a share of it stays, and "
           "the rest comes from the new weights. The two shares add up to 1.",
           "The share that stays is the smaller one of `decay` and the early rule. Step 0 keeps 1/10, step 1 keeps "
           "2/11."),
)


# 08.rate

def _rate_cases(seed):
    return [(step, 100, 3e-3, 10, 0.02) for step in (0, 4, 9, 10, 37, 55, 99)] + [(20, 50, 1e-3, 0, 0.3)]


def _rate_oracle(step, steps, peak, warmup, final):
    if step < warmup:
        return math.fsum(peak / warmup for _ in range(step + 1))
    return peak * (final + (1 - final) * math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) ** 2)


def _rate(step, steps, peak, warmup, final, first=1, begin=None, turns=1.0, low=None, shape=None):
    if step < warmup:
        return peak * (step + first) / warmup
    begin = warmup if begin is None else begin
    done = (step - begin) / (steps - begin)
    fall = shape(done) if shape else 0.5 * (1 + math.cos(turns * math.pi * done))
    low = peak * final if low is None else low
    return low + (peak - low) * fall


def _rate_nothing(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, first=0)


def _rate_jump(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, begin=0)


def _rate_whole(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, turns=2.0)


def _rate_absolute(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, low=final)


def _rate_arrived(step, steps, peak, warmup, final):
    return _rate(step, steps - 1, peak, warmup, final)


def _rate_zero(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, low=0.0)


def _rate_straight(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, shape=lambda done: 1 - done)


def _rate_rising(step, steps, peak, warmup, final):
    return _rate(step, steps, peak, warmup, final, shape=lambda done: 0.5 * (1 - math.cos(math.pi * done)))


def _draw_rate(function=_rate_oracle):
    lines = {f"warm-up {warmup}, final {final:g}": torch.tensor([function(s, 200, 3e-3, warmup, final)
                                                                for s in range(200)])
             for warmup, final in ((20, 0.02), (60, 0.3))}
    return figures.plot(lines, xlabel="step", ylabel="learning rate",
                        alt="Two hills: a straight rise to 0.003, then half a wave down, to nearly nothing in one and "
                            "to a third in the other.")


RATE = Exercise(
    name="08.rate", target="learning_rate", kind="build", title="Up, then down", minutes=15, level=1, points=2,
    cases=_rate_cases, oracle=_rate_oracle, forbidden=("Plan", "CosineAnnealingLR", "OneCycleLR"),
    celebrate=_draw_rate,
    mistakes=(
        Mistake("a lost step", _rate_nothing, "Your first step has the rate 0: it learns nothing, and the last step of "
                "the warm-up does not reach the peak."),
        Mistake("a jump", _rate_jump, "At the end of the warm-up your rate jumps: the cosine has begun already at "
                "step 0. It should begin where the warm-up ends."),
        Mistake("a whole wave", _rate_whole, "Your rate falls and rises again. Half a wave is enough."),
        Mistake("final taken as a rate", _rate_absolute, "You end at the rate `final`, which is larger than the peak. "
                "It is a share of the peak."),
        Mistake("a step too early", _rate_arrived, "Your rate reaches its end at the last step, steps - 1. It is to be "
                "there one step later, at `steps`, when training is over."),
        Mistake("down to nothing", _rate_zero, "You end at 0, and `final` is never used."),
        Mistake("a straight line", _rate_straight, "You come down in a straight line. A cosine stays high at first and "
                "lands softly."),
        Mistake("upside down", _rate_rising, "After the warm-up your rate falls to the end's value at once and rises "
                "from there: the wave stands on its head."),
    ),
    hints=(_draw_rate, "Two cases. In the warm-up the rate rises by equal amounts, so that its last step has the peak. "
           "After it, ask how far you are: 0 at the end of the warm-up, 1 at `steps`.",
           "A cosine goes from 1 to -1. Make of it something that goes from 1 to 0, and stretch that between the peak "
           "and the lowest rate."),
)


# 08.batch

_SENTENCES = ["a red circle moves right", "a blue square spins", "a green star stays"]


def _batch_cases(seed):
    return [(random_tensors(seed, (3, 4, 5, 2, 3))[0], torch.tensor([3, 0, 4]), _SENTENCES, [False, True, False]),
            (random_tensors(seed + 1, (2, 4, 3, 2, 2))[0], torch.tensor([1, 2]), _SENTENCES[:2], [True, False])]


def _batch_oracle(latents, picks, captions, dropped):
    chosen = torch.nn.functional.one_hot(picks, latents.shape[2]).to(latents.dtype)               # (B, F)
    return (torch.einsum("bcfhw,bf->bchw", latents, chosen)[:, :, None],
            ["" if gone else said for said, gone in zip(captions, dropped)])


def _of_first(latents, picks):
    return rearrange(latents, "b c f h w -> (b f) c 1 h w")[picks]


def _right(latents, picks):
    return latents[torch.arange(len(picks)), :, picks][:, :, None]


def _moved_up(captions, dropped):
    kept = [said for said, gone in zip(captions, dropped) if not gone]
    return kept + [""] * (len(captions) - len(kept))


def _emptied(captions, dropped):
    return ["" if gone else said for said, gone in zip(captions, dropped)]


def _batch_broken(latents, picks, captions, dropped):
    return _of_first(latents, picks), _moved_up(captions, dropped)


def _batch_first(latents, picks, captions, dropped):
    return _of_first(latents, picks), _emptied(captions, dropped)


def _batch_moved(latents, picks, captions, dropped):
    return _right(latents, picks), _moved_up(captions, dropped)


def _batch_all(latents, picks, captions, dropped):
    return latents[:, :, picks], _emptied(captions, dropped)


def _batch_flat(latents, picks, captions, dropped):
    return latents[torch.arange(len(picks)), :, picks], _emptied(captions, dropped)


def _batch_one(latents, picks, captions, dropped):
    return latents[:, :, picks[:1]], _emptied(captions, dropped)


def _batch_short(latents, picks, captions, dropped):
    return _right(latents, picks), [said for said, gone in zip(captions, dropped) if not gone]


def _batch_turned(latents, picks, captions, dropped):
    return _right(latents, picks), [said if gone else "" for said, gone in zip(captions, dropped)]


def _draw_batch(function=_batch_oracle):
    latents = (10 * torch.arange(3.0)[:, None] + torch.arange(5.0)).view(3, 1, 5, 1, 1).double()
    pictures, captions = function(latents, torch.tensor([3, 0, 4]), ["circle", "square", "star"], [False, True, False])
    return figures.heat([latents[:, 0, :, 0, 0], pictures[:, 0, :, 0, 0]], values=True, digits=0, size=2.6,
                        rows=[repr(said) for said in captions], titles=["clips of five frames", "3, 0, 4 are picked"],
                        alt="Left: three clips of five frames, with the numbers 0 to 4, 10 to 14 and 20 to 24. Right: "
                            "one picture of each, 3, 10, 24. The second caption is empty, the third is still 'star'.")


BATCH = Exercise(
    name="08.batch", target="picture_batch", kind="repair", title="Other people's captions", minutes=15, level=2,
    points=2, cases=_batch_cases, oracle=_batch_oracle, gradients=True, celebrate=_draw_batch,
    mistakes=(
        Mistake("as it came", _batch_broken, "Still two faults: all pictures are of the first clips in the batch, and "
                "a dropped caption pulls the ones behind it forward, so that each belongs to somebody else's clip."),
        Mistake("the first clip's", _batch_first, "The captions are right now. The pictures are not: in the long row "
                "of all frames your numbers count from the start of the *row*, not of their own clip."),
        Mistake("moved up", _batch_moved, "The pictures are right now. The captions are not: a dropped one leaves no "
                "gap, so those behind it move up to other clips."),
        Mistake("every pick of every clip", _batch_all, "Every clip gets the frames that were picked for *all* clips. "
                "Clip 0 should get pick 0, clip 1 pick 1, and so on: two lists that are walked through together."),
        Mistake("an axis lost", _batch_flat, "The right frames, but the axis of the frames is gone. For the network a "
                "picture is a clip of one frame: that axis stays, with the length 1."),
        Mistake("one pick for all", _batch_one, "All clips get the frame that was picked for the first one."),
        Mistake("fewer captions", _batch_short, "There are fewer captions than pictures: a dropped caption is not "
                "gone, it is empty."),
        Mistake("turned round", _batch_turned, "You drop the captions that should stay, and the other way round."),
    ),
    hints=(_draw_batch, "Try it on latents that say where they are from: the number 10 * clip + frame in every cell. "
           "Print what comes out for the picks 3, 0, 4.",
           "There are two faults. In the row of all pictures, where does clip 1 begin, if each clip has F frames? And "
           "what should stand in the place of a caption that is dropped?",
           "Torch takes two index tensors of the same length and walks through them together, one for each axis."),
)


# 08.pipeline

def _parts():
    """A pipeline of formulas: like that of the package from outside, and each part notices if it is used wrongly."""
    process, mix = Process(mini().diffusion), torch.tensor([[0.7, -0.4, 0.3, 0.2], [0.1, 0.8, -0.5, 0.3],
                                                            [-0.2, 0.3, 0.6, 0.5]], dtype=torch.float64)

    def tokenizer(texts):
        return torch.tensor([[len(text), sum(map(ord, text)) % 97] for text in texts])                    # (N, 2)

    def text_encoder(tokens):
        return torch.stack([torch.sin(tokens * k * 0.37) for k in (1.0, 2.0, 3.0)], dim=-1).double()      # (N, 2, 3)

    def unet(x, timesteps, context):
        said = (context[:, 0] - 2 * context[:, 1]).mean(1).to(x.dtype)                                    # (N,)
        said = (said + torch.as_tensor(timesteps).to(x.dtype) / 700).view(-1, 1, 1, 1, 1)
        return 0.6 * x.roll(1, 2) - 0.3 * x.flip(1) + said * torch.linspace(-1, 1, x.shape[-1]).to(x)

    def decode(x):
        return 1.2 * torch.einsum("oc,bcfhw->bofhw", mix.to(x), x).tanh()                                 # some beyond

    return SimpleNamespace(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, process=process,
                           autoencoder=SimpleNamespace(decode=decode))


def _pipeline_cases(seed):
    one, two = random_tensors(seed, (1, 4, 3, 2, 3), (1, 4, 2, 3, 2))
    return [("a red circle moves right", one, torch.tensor([1000, 751, 301, 1]), 4.0),
            ("a blue square spins", two, torch.tensor([900, 500, 100, 0]), 2.5)]


def _call_pipeline(hand_in, prompt, noise, times, scale):
    return hand_in(_parts(), prompt, noise, times, scale)


def _pipeline_oracle(prompt, noise, times, scale):
    pipe, x = _parts(), noise
    with_it, without = (pipe.text_encoder(pipe.tokenizer([text])) for text in (prompt, ""))
    for t, s in zip(times.tolist(), times[1:].tolist()):
        (a, b), (c, d) = ((bar ** 0.5, (1 - bar) ** 0.5) for bar in pipe.process.alphas_cumprod[[t, s]].tolist())
        time = torch.tensor([t - 1])
        v = torch.lerp(pipe.unet(x, time, without), pipe.unet(x, time, with_it), scale)
        x = (a * c + b * d) * x + (a * d - b * c) * v                              # a rotation by the angle from t to s
    shown = torch.einsum("cfhw->fhwc", pipe.autoencoder.decode(x)[0])
    return shown.add(1).mul(127.5).clip(0, 255).round().to(torch.uint8)


def _pipeline(pipe, prompt, noise, times, scale, guided=lambda u, c, g: u + g * (c - u), seen=0, shift=True,
              goal=1, fresh=True, colours=lambda x: x / 2 + 0.5, axes=lambda x: x.permute(1, 2, 3, 0), round=True,
              ends=True):
    context, uncond = (pipe.text_encoder(pipe.tokenizer([text])) for text in (prompt, ""))
    x = noise
    for pair in zip(times[:-1], times[1:]):
        t, shown = pair[0], pair[seen]
        count = pipe.process.network_times(shown, x) if shift else shown[None]
        answer = guided(pipe.unet(x, count, uncond), pipe.unet(x, count, context), scale)
        x0, eps = pipe.process.split(answer, x, t)
        x = pipe.process.alpha(pair[goal]) * x0 + pipe.process.sigma(pair[goal]) * (eps if fresh else noise)
    levels = colours(pipe.autoencoder.decode(x)[0])
    levels = (levels.clamp(0, 1) if ends else levels) * 255
    return axes(levels.round() if round else levels).to(torch.uint8)


def _pipeline_unguided(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, guided=lambda u, c, g: c)


def _pipeline_turned(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, guided=lambda u, c, g: c + g * (u - c))


def _pipeline_more(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, guided=lambda u, c, g: c + g * (c - u))


def _pipeline_early(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, seen=1)


def _pipeline_count(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, shift=False)


def _pipeline_stays(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, goal=0)


def _pipeline_start(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, fresh=False)


def _pipeline_dark(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, colours=lambda x: x)


def _pipeline_mixed(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, axes=lambda x: x.reshape(*x.shape[1:], 3))


def _pipeline_endless(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, ends=False)


def _pipeline_darker(pipe, prompt, noise, times, scale):
    return _pipeline(pipe, prompt, noise, times, scale, round=False)


def _draw_pipeline():
    return figures.stations(
        [("prompt", "", "a red circle moves right"), ("tokens", "(1, L)", "4  17  9  2  0  0"),
         ("context", "(1, L, D)", "and a second one, of the empty prompt"),
         ("x, at first", "(1, 4, F, h, w)", "noise"), ("x, at last", "(1, 4, F, h, w)", "latents of a clip"),
         ("frames", "(1, 3, F, H, W)", "-1 to 1"), ("clip", "(F, H, W, 3)", "0 to 255")],
        ["tokenizer", "text encoder", "it is read at every step", "for each pair of times t, s: unet, guidance, split, "
         "mix", "autoencoder", "stretch, round, turn the axes"],
        alt="A map from top to bottom: the prompt becomes tokens, the tokens a context; noise becomes latents step by "
            "step, the context being read at each; latents become frames, frames a clip.")


PIPELINE = Exercise(
    name="08.pipeline", target="text_to_video", kind="build", title="From a sentence to a clip", minutes=35, level=3,
    points=4, cases=_pipeline_cases, call=_call_pipeline, oracle=_pipeline_oracle,
    forbidden=("guided_denoiser", "ddim", "ddim_step", "dpm_solver_pp", "ddpm"),
    mistakes=(
        Mistake("no guidance", _pipeline_unguided, "The empty prompt and `scale` play no part: that is a clip at "
                "guidance 1. (Chapter 06, guidance.)"),
        Mistake("away from the prompt", _pipeline_turned, "Your guidance leads away from the prompt. At scale 0 the "
                "prompt should not count, at scale 1 once."),
        Mistake("one too much", _pipeline_more, "Your walk begins at the prompt's answer; so scale 4 acts like 5. At "
                "scale 0 the prompt should not count, at scale 1 once."),
        Mistake("the time to come", _pipeline_early, "You tell the network the time that you are going to. It should "
                "hear how noisy what it sees is *now*."),
        Mistake("counted from one", _pipeline_count, "The network counts its times from 0, we count from 1: it is "
                "told that its input is a little noisier than it is. The process knows how to say it."),
        Mistake("on the spot", _pipeline_stays, "You mix for the time that you come from: after each step x is as "
                "noisy as before, and noise is what you decode."),
        Mistake("the first noise", _pipeline_start, "You mix in the noise that you began with. The noise to keep is "
                "the one that the network has found in x."),
        Mistake("half in the dark", _pipeline_dark, "All that is darker than middle grey is black: the decoder answers "
                "in -1 to 1, and a clip counts from 0 to 255."),
        Mistake("colours torn", _pipeline_mixed, "A reshape moves nothing in memory, so your pixels are made of three "
                "neighbours of one colour. The axes have to change places: (3, F, H, W) to (F, H, W, 3)."),
        Mistake("beyond white", _pipeline_endless, "What the decoder answers may lie a little outside of -1 to 1. With "
                "you it comes out at the other end: whiter than white is black."),
        Mistake("cut off", _pipeline_darker, "Your colours are cut off at the point where they should be rounded: half "
                "of them are one step too dark. (The original does just that; here they are rounded.)"),
    ),
    hints=(_draw_pipeline, "Seven stations: tokens; context (two: of the prompt and of the empty one); noise; then for "
           "each pair of times an answer, its two parts and a new mixture; at the end the decoder and the colours.",
           "Of two neighbouring times t and s: the network and `split` hear of t, the new mixture of s.",
           "The decoder's answer has an axis for the batch, which a single clip has not, and its colours come first. "
           "From -1 .. 1 to 0 .. 255: shift, stretch, keep what lies outside at the ends, round."),
)


# 08.mix

MIX = Exercise(
    name="08.mix", target="answer_mix", kind="explore", title="How many pictures", minutes=5, points=1,
    options=lambda rng: {"share": rng.choice((0.1, 0.15)), "clips": rng.choice((16, 24)),
                         "pictures": rng.choice((64, 80))},
    oracle=lambda share, clips, pictures: share * pictures / (share * pictures + (1 - share) * clips), tolerance=5e-3,
    mistakes=(
        Mistake("batches for samples", lambda share, clips, pictures: share, "That is the share of *batches*. A batch "
                "of pictures holds more samples than one of clips."),
        Mistake("one batch of each", lambda share, clips, pictures: pictures / (pictures + clips), "So it would be if "
                "there were as many batches of pictures as of clips."),
        Mistake("pictures for a clip", lambda share, clips, pictures: share * pictures / ((1 - share) * clips),
                "That is the number of pictures for each clip. Asked for is their share of all samples."),
        Mistake("clips", lambda share, clips, pictures: (1 - share) * clips / (share * pictures + (1 - share) * clips),
                "That is the share of the clips."),
    ),
    hints=(sketches.mix,
           "Take a thousand batches. How many of them are of pictures, and how many pictures is that?"),
)

EXERCISES = [EMA, RATE, BATCH, PIPELINE, MIX]
