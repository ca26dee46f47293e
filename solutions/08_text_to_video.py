# %% [markdown]
# # 08 · Exercises: text to video
#
# Five exercises on chapter 08, about 85 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("08.ema")` helps, a little more each time.

# %%
import math

import torch
from torch import Tensor

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task

# %% [markdown]
# ## 08.ema · An average that forgets
#
# *Build · easy · 15 minutes · 2 points.* Why it matters: every clip that this model makes comes out of averaged
# weights, and without them out of the last batch's whims.
#
# `history` holds what a weight was after each step of training. Walk through it and carry an average along: at each
# step a share of the average stays, and the rest of it comes from the new weights. The share that stays is `decay`, but
# in the first steps less, so that the random start is soon forgotten: at step 0, 1, 2, .. it is at most
# (1 + step) / (10 + step). Return the average after the last step.

# %%
def ema(start: Tensor, history: Tensor, decay: float) -> Tensor:
    """The averaged weights. start: (...), before the first step; history: (steps, ...); returns (...)."""
    ### BEGIN SOLUTION
    smooth = start
    for step, weights in enumerate(history):
        kept = min(decay, (1 + step) / (10 + step))
        smooth = kept * smooth + (1 - kept) * weights
    return smooth
    ### END SOLUTION


ema(torch.zeros(1), torch.ones(3, 1), decay=0.999)           # 1 - 1/10 * 2/11 * 3/12: 0.9955

# %% tags=["nbval-check-output"]
check("08.ema", ema)

# %% [markdown] tags=["solution"]
# One number is carried along, and each step mixes a little of the new weights in. At decay 0.999 about a thousand steps
# are remembered; the rule for the first steps keeps the average from remembering the start as long as that.

# %% [markdown]
# ## 08.rate · Up, then down
#
# *Build · easy · 15 minutes · 2 points.* Why it matters: the same model with a constant rate learns less, or nothing
# at all.
#
# In the first `warmup` steps (counted from 0) the learning rate rises by equal amounts; the last of them has `peak`.
# Then half a cosine brings it down: it starts at `peak` at step `warmup` and would reach its end, the share `final` of
# the peak, at step `steps`.

# %%
def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
    """The learning rate of a step, 0 to steps - 1. `warmup` may be 0."""
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (steps - warmup)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    ### END SOLUTION


[round(learning_rate(step, 100, 1.0, 10, 0.1), 3) for step in (0, 9, 10, 55, 99)]           # 0.1, 1, 1, 0.55, 0.1

# %% tags=["nbval-check-output"]
check("08.rate", learning_rate)

# %% [markdown] tags=["solution"]
# The first steps are small, while the optimiser does not know yet how large gradients are. (1 + cos) / 2 goes from 1 to
# 0, softly at both ends, and is stretched between the peak and the lowest rate.

# %% [markdown]
# ## 08.batch · Other people's captions
#
# *Repair · medium · 15 minutes · 2 points.* Why it matters: with these two faults training runs, the loss falls, and
# the model learns nothing of what captions say.
#
# Among the batches of clips there are some of single pictures. Of each clip one frame is picked, `picks[i]` of clip i.
# And some captions are dropped, that is, made empty, so that the network learns to do without (guidance needs it). The
# version below raises no error, and every shape is right. There are two faults. Find both, and mend them.

# %%
def picture_batch(latents: Tensor, picks: Tensor, captions: list[str], dropped: list[bool]):
    """One frame of each clip, with its caption. latents: (B, 4, F, h, w), picks: (B,) frames, 0 to F - 1.

    Returns pictures as clips of one frame, (B, 4, 1, h, w), and B captions, those that are dropped as "".
    """
    ### BEGIN SOLUTION
    pictures = latents[torch.arange(len(picks)), :, picks]                          # (B, 4, h, w)
    return pictures[:, :, None], ["" if gone else said for said, gone in zip(captions, dropped)]
    ### END SOLUTION
    pictures = latents.movedim(2, 1).flatten(0, 1)[picks]                           # broken, from here on
    kept = [said for said, gone in zip(captions, dropped) if not gone]
    return pictures[:, :, None], kept + [""] * (len(captions) - len(kept))


numbers = (10 * torch.arange(3)[:, None] + torch.arange(5)).view(3, 1, 5, 1, 1)     # clip 2, frame 4: the number 24
pictures, said = picture_batch(numbers, torch.tensor([3, 0, 4]), ["circle", "square", "star"], [False, True, False])
pictures.flatten().tolist(), said                                                   # 3, 10, 24; circle, nothing, star

# %% tags=["nbval-check-output"]
check("08.batch", picture_batch)

# %% [markdown] tags=["solution"]
# In the row of all frames, clip 1 begins at F and clip 2 at 2 F; numbers below F all lie in the first clip. Two index
# tensors of one length, for the clip and for the frame, say it without any row. And a dropped caption stays in its
# place, empty, or the ones behind it would move up to other clips.

# %% [markdown]
# ## 08.pipeline · From a sentence to a clip
#
# *Build · hard · 35 minutes · 4 points.* Why it matters: this is the whole system in a dozen lines, and they are yours.
#
# `pipe` has all parts: `tokenizer` (a list of texts to tokens), `text_encoder` (tokens to context), `unet(x, timesteps,
# context)`, `process`, `autoencoder.decode` (latents to frames). Of the process you need `network_times(t, x)`, the
# times as the network counts them; `split(answer, x, t)`, which gives the clip and the noise in x, (x0, eps); and
# `alpha(t)`, `sigma(t)`, by which these two are mixed at a time t. `times` falls; go from each to the next by DDIM,
# without fresh noise. Guide away from the empty prompt, `scale` times. At the end, make colours of the frames: -1
# becomes 0, 1 becomes 255, rounded, and what lies outside stays at the ends.

# %%
def text_to_video(pipe, prompt: str, noise: Tensor, times: Tensor, scale: float) -> Tensor:
    """A clip of the prompt. noise: (1, 4, F, h, w), times: (steps + 1,) whole numbers; returns (F, H, W, 3) uint8."""
    ### BEGIN SOLUTION
    context, uncond = (pipe.text_encoder(pipe.tokenizer([text])) for text in (prompt, ""))        # (1, L, D) each
    x = noise
    for t, s in zip(times[:-1], times[1:]):
        timesteps = pipe.process.network_times(t, x)
        without, within = (pipe.unet(x, timesteps, text) for text in (uncond, context))
        x0, eps = pipe.process.split(without + scale * (within - without), x, t)
        x = pipe.process.alpha(s) * x0 + pipe.process.sigma(s) * eps
    frames = pipe.autoencoder.decode(x)[0]                                                        # (3, F, H, W)
    return ((frames + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).movedim(0, -1)
    ### END SOLUTION


pipe = minit2v.load()
prompt, noise = "a red circle moves right", torch.randn(1, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    clip = text_to_video(pipe, prompt, noise, pipe.process.times(5), scale=4.0)
tuple(clip.shape), clip.dtype                                                       # (16, 64, 64, 3), torch.uint8

# %% tags=["nbval-check-output"]
check("08.pipeline", text_to_video)

# %% [markdown] tags=["solution"]
# Everything that seven chapters have built, in the order of the data. The package's `pipe(...)` does the same, and
# asks both prompts in one batch, prepares the text once for all steps, checks what it is given and shows a bar.

# %% [markdown]
# ## 08.mix · How many pictures
#
# *Explore · easy · 5 minutes · 1 point.* Why it matters: papers give one of these two numbers and do not always say
# which.
#
# While training on clips, some *batches* are of single pictures: the `share` that `task` gives you. A batch holds so
# many `clips` or so many `pictures`. Which share of all samples that the network sees are pictures? Guess first; then
# compute it, as a number from 0 to 1.

# %%
task("08.mix")

# %%
### BEGIN SOLUTION
asked = task("08.mix")
pictures, clips = asked["share"] * asked["pictures"], (1 - asked["share"]) * asked["clips"]
answer_mix = pictures / (pictures + clips)
### END SOLUTION
check("08.mix", answer_mix)

# %% [markdown] tags=["solution"]
# A picture is cheap, so its batches are larger, and a small share of batches is a large one of samples. (Counted in
# frames it is the other way round again: each clip has sixteen.)

# %% [markdown]
# ## The model runs on your code
#
# No points, but the best moment. Of the same noise, your function and the package's `pipe(...)` must make the same
# clip.

# %%
# yours = your function itself, without brackets
### BEGIN SOLUTION
yours = text_to_video
### END SOLUTION
with torch.inference_mode():
    mine = yours(pipe, prompt, noise, pipe.process.times(15), scale=4.0)
clip = pipe(prompt, latents=noise, num_inference_steps=15, guidance_scale=4.0, progress=False)
same = (clip.int() - mine.int()).abs().max() <= 1            # the last digit of a colour may be rounded otherwise
assert same, "not the same clip; check(\"08.pipeline\", text_to_video) knows more"
figures.strip([clip, mine], titles=["by pipe(...)", "by your text_to_video"],
              alt="Two film strips of the same clip, one made by the package and one by the learner's function.")

# %% [markdown]
# ## What you have now

# %%
progress()
