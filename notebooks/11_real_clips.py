# %% [markdown]
# # 11 · Real clips
#
# A panda eats bamboo on a rock. For ten chapters you have moved coloured shapes about, because a shape can be judged by
# rule and a model of shapes fits on a laptop. Now for the weights that have seen the world. There is nothing new to
# build: you know every line that will run. What there is to learn is how to ask, what it costs, and what not to expect.
# At the end, the model runs on code that *you* have written.

# %% [markdown]
# ## What you will build
#
# Clips, if you have a graphics card or borrow one, and a judgement of them. This chapter is written for a free machine
# at Colab, with a T4 card of 15 GB. **One cell decides** whether it works with the released files or with a stand-in: a
# model in the same layout with the same parts, but small, and with random numbers in it. All cells after it are the
# same for both. With the stand-in nothing is downloaded, and all it can draw is noise. It says so at each picture.

# %%
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import minit2v
import torch
from torch import Generator
from torch.utils.flop_counter import FlopCounterMode

from minit2v.config import modelscope_1_7b
from minit2v.convert import convert
from minit2v.course import figures, widgets
from minit2v.diffusion import draw_noise, guided_denoiser
from minit2v.layouts import networks

torch.set_grad_enabled(False)                                # nothing is trained in this chapter
config = modelscope_1_7b()
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)   # for files; it goes when the kernel ends

# %%
def stand_in(seed=0):
    """A folder with a small random model in the layout of the released one (chapter 10 explains each line)."""
    small = replace(config, name="stand-in", unet=replace(config.unet, channels=32, head_dim=8, context_dim=64),
                    autoencoder=replace(config.autoencoder, channels=32), text=replace(config.text, width=64, heads=1))
    with torch.device("meta"):
        parts = networks(small)
    generator, folder = Generator().manual_seed(seed), Path(scratch.name)
    for network in parts.values():
        for name, p in network.to_empty(device="cpu").named_parameters():
            drawn = torch.randn(p.shape, generator=generator)
            p.copy_(drawn / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * drawn + name.endswith("weight"))
    minit2v.TextToVideo(small, **parts).save(folder / "ours")
    return convert(folder / "ours", folder / "diffusers", "diffusers")

# %% [markdown]
# Here is the cell that decides. To use the released weights, put their id on the Hub, or a folder that you have, in the
# place of the empty text (or into the environment variable, before you start). At Colab: *Runtime*, *Change runtime
# type*, *T4 GPU*, and then run from the top. What comes down is 3.7 GB, once. The cell after it makes a first clip.
# *On a T4, computed: 9 to 19 seconds, 3.8 GB on the card.*

# %%
WEIGHTS = os.environ.get("MINIT2V_WEIGHTS", "")              # "ali-vilab/text-to-video-ms-1.7b", or a folder
ZEROSCOPE = os.environ.get("MINIT2V_ZEROSCOPE", "")          # "cerspense/zeroscope_v2_576w", or a folder
TRANSLATOR = os.environ.get("MINIT2V_TRANSLATOR", "")        # "Helsinki-NLP/opus-mt-zh-en", or a folder

REAL, DEVICE = bool(WEIGHTS), "cuda" if torch.cuda.is_available() else "cpu"
SIZE = {"num_frames": 16, "height": 256, "width": 256} if REAL else {"num_frames": 6, "height": 64, "width": 64}
STEPS, SCALE, WHOSE = (25, 1, "") if REAL else (3, 2, "STAND-IN, random weights: ")
how = {"device": DEVICE, "dtype": "float16" if DEVICE == "cuda" else "float32"}
pipe = minit2v.load(WEIGHTS or stand_in(), **how)
print("the released weights" if REAL else "the STAND-IN: small, random weights; what follows shows noise")

# %%
def make(prompt, steps=STEPS, sampler="dpm++", size=None, model=None, **more):
    """A clip, in as many steps as the deciding cell says, and of its size."""
    more = {"progress": REAL, **(size or SIZE), **more}
    return (model or pipe)(prompt, sampler=sampler, num_inference_steps=steps, **more)


def strips(clips, titles, alt):
    """Film strips, and above each whose they are. Noise is shown in 64 colours, which keeps this notebook small."""
    clips, frames = (clips, 6) if REAL else ([clip // 64 * 64 + 32 for clip in clips], 4)
    return figures.strip(clips, titles=[WHOSE + title for title in titles], scale=SCALE, frames=frames, alt=alt)


PANDA = "a panda eats bamboo on a rock"
panda = make(PANDA)
strips([panda], [PANDA], alt="With the released weights, a panda; with the stand-in, four frames of coloured noise.")

# %% [markdown]
# **You need** chapter 06 for guidance and samplers. Chapter 10 tells how the files are read, and where the memory goes.
#
# **It takes** about 45 minutes to read and play with. With the stand-in all cells together run in about a minute; with
# the released weights on a T4, computed, in five to ten minutes and the time of the download.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | a clip on a T4, 25 steps, computed | 9 to 19 seconds, 3.8 GB |
# | a clip of ZeroScope on a T4, 25 steps, computed | 41 to 83 seconds, 4.8 GB |
# | clips that the network sees at each question, without and with guidance | 1, 2 |
# | tokens of a prompt that are read, at most | 75 |
# | tokens that the released tokenizer makes of the eight characters 一只熊猫在吃竹子 | 19 |

# %% [markdown]
# ## 1 · What it will cost
#
# Nobody should start a cell without knowing whether it takes a minute or an hour. Chapter 10 counted operations and
# memory by hand; here the same comes from the tools. **All of it is computed for the released model in half precision
# on a T4, and nothing is measured**: the times assume that the card does a fifth to two fifths of the 65 TFLOP a second
# that it is sold with, which is 13 to 26. The memory is that of the program's tensors; a card needs about 1 GB more for
# itself. The counting needs no card, and takes a few seconds for each size of clip.

# %%
from minit2v.memory import GB, needs, on_device

with torch.device("meta"):
    big = networks(config)


def operations(frames, height, width):
    """FLOP of one question without guidance, and of decoding the clip."""
    z = torch.empty(1, 4, frames, height // 8, width // 8, device="meta")
    with torch.device("meta"), FlopCounterMode(display=False) as asked:
        big["unet"](z, torch.zeros(1), torch.empty(1, 77, 1024))
    with FlopCounterMode(display=False) as decoded:
        big["autoencoder"].decode(z)
    return asked.get_total_flops(), decoded.get_total_flops()


def memory(frames, height, width):
    """GB on the card for one prompt with guidance in float16."""
    return on_device(needs(config, torch.float16, frames, height, width)) / GB

# %%
usual = (*operations(16, 256, 256), memory(16, 256, 256))    # ModelScope's clip

# %%
wide = (*operations(24, 320, 576), memory(24, 320, 576))     # ZeroScope's, section 5

# %% tags=["nbval-check-output"]
def expect(clips=1, steps=25, size=usual, passes=2):
    """A line that says what so many clips take; two passes are one with guidance."""
    asked, decoded, gb = size
    flop = clips * (steps * passes * asked + decoded)
    return f"{flop / 26e12:4.0f} to {flop / 13e12:3.0f} s, {gb:.1f} GB on a T4 (computed)"


print("one clip, 25 steps     ", expect())
print("one clip, 50 steps     ", expect(steps=50))
print("four clips             ", expect(clips=4))
print("one clip of ZeroScope  ", expect(size=wide))
assert expect().startswith("   9 to  19 s, 3.8 GB") and expect(size=wide).startswith("  41 to  83 s, 4.8 GB")

# %% [markdown]
# (By hand, chapter 10 found 19 to 37 seconds for 50 steps. Here a few layers are merged, and the decoding counts, too.)
#
# On a processor the same clip takes about forty minutes: one question with guidance was measured at 46 seconds on two
# cores of a server (with random numbers in the weights), and there are fifty of them. With less than 5 GB on your card,
# `offload="parts"` and `offload="blocks"` in `minit2v.load` are the way (chapter 10, section 3).
#
# **The licence.** The weights are published under CC-BY-NC-4.0: you may use and change them, you must name the authors,
# and you must not earn money with them. The text of one of their cards says CC-BY-NC-ND instead, which also forbids
# passing on what you have changed. Whoever wants to be safe keeps to the stricter reading. ZeroScope, section 5, is
# under CC-BY-NC-4.0 as well. None of these weights is part of this course. The program fetches them from the Hub to
# you.

# %% [markdown]
# ## 2 · The first clip, as the original makes it
#
# DDIM, 50 steps, guidance 9, no negative prompt. *On a T4, computed: 18 to 37 seconds, 3.8 GB.*

# %%
print(f"{WHOSE}{PANDA}. {expect(steps=50)}")
first = make(PANDA, steps=50 if REAL else STEPS, sampler="ddim", guidance_scale=9.0, seed=0)
figures.play(first, scale=SCALE, alt="The first clip: a panda with the released weights, noise with the stand-in.")

# %% [markdown]
# A clip is two seconds long: 16 frames at 8 a second. Save it, and its settings travel inside the file:

# %% tags=["nbval-check-output"]
from minit2v.video import read_settings

file = Path(scratch.name) / "panda.mp4"
minit2v.save(first, file, fps=8, settings={"prompt": PANDA, "seed": 0, "guidance_scale": 9.0})
print({name: value for name, value in read_settings(file).items() if name != "num_frames"})

# %% [markdown]
# ### Same seed, same clip
#
# The seed decides all chance. It is drawn on the processor whatever the device, so that another card starts from the
# same noise. And a clip does not depend on who else is in its batch. *On a T4, computed: 4 clips in 37 to 75 seconds;
# they are made one after the other, so 3.8 GB.*

# %%
print(expect(clips=4))
seeds = [0, 1, 2, 3]
four = [make(PANDA, seed=seed) for seed in seeds]
strips(four, [f"seed {seed}" for seed in seeds], alt="Four clips of one prompt, from four seeds.")

# %% [markdown]
# The third of them once more. *On a T4, computed: 9 to 19 seconds, 3.8 GB.*

# %% tags=["nbval-check-output"]
again = make(PANDA, seed=2)
print("the same clip again:", bool((again.int() - four[2].int()).abs().max() <= 1))
print("another seed, another clip:", bool((four[3].int() - four[2].int()).abs().max() > 1))

# %% [markdown]
# With a model of this kind the seed matters as much as the prompt. Whoever shows you a fine clip has often drawn many
# seeds before. It is fair to say how many.

# %% [markdown]
# ## 3 · Asking
#
# What does the model get to read? The stand-in has the released tokenizer, so here we can look without the weights.

# %% tags=["nbval-check-output"]
def tokens(prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # of words that are cut off; they are the topic below
        ids = pipe.tokenizer([prompt])[0]
    return [pipe.tokenizer.decode([int(i)]) for i in ids[1:int(ids.argmax())]]


asked_for = ("A panda eats bamboo", "a PANDA eats bamboo!!!", "a pandacorn eats bamboo", "8k, trending on artstation")
for prompt in asked_for:
    print(f"{prompt:28}", " | ".join(tokens(prompt)))

# %% [markdown]
# Capital letters are lost, so shouting does not help. A word that it does not know falls to pieces. And the last line
# is a sign of the times: such phrases work with picture models that learned from captions containing them. This model
# learned to move from WebVid, whose captions are plain. Write as a caption is written: who does what, and where.
# Whether an adjective more helps, only clips can tell you.
#
# There is room for 77 tokens, two of which say where a text begins and ends. What is beyond is not read:

# %% tags=["nbval-check-output"]
long = "a panda eats bamboo, " * 16 + "and then a rocket starts"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pipe.tokenizer([long])
print(len(tokens(long)), "tokens are read;", str(caught[0].message).partition(";")[0])
print("the rocket is among them:", "rocket" in tokens(long))
assert len(tokens(long)) == 75 and "rocket" not in tokens(long)

# %% [markdown]
# ### Away from something
#
# Guidance goes from the answer without prompt in the direction of the answer with it (chapter 06). In the place of
# *without prompt* one can put something that one does *not* want:
#
# $$\hat\varepsilon = \varepsilon_\text{negative} + g\,(\varepsilon_\text{prompt} - \varepsilon_\text{negative})$$
#
# ModelScope's own program has no such argument (it always takes the empty prompt), diffusers and we have. On the mini
# model one can see and count what it does (in seconds, on the processor). The prompt leaves the colour open; then we
# ask to keep away from red:

# %%
from minit2v.referee import read

mini = minit2v.load()
toy = {"sampler": "dpm++", "num_inference_steps": 8, "progress": False}
SOME = "a circle moves right"
toy_seeds = [19, 5, 7, 8]
open_colour = mini([SOME] * 4, seed=toy_seeds, **toy)

# %%
not_red = mini([SOME] * 4, seed=toy_seeds, negative_prompt="a red circle", **toy)
for name, made in (("no negative prompt", open_colour), ("not: a red circle", not_red)):
    print(f"{name:20}", [found[0].colour if (found := read(clip)) else "unreadable" for clip in made])
figures.strip([open_colour[0], not_red[0]], scale=2, titles=["no negative prompt", "not: a red circle"],
              alt="Two clips of the mini model from one seed: a red circle, and one in pink and violet.")

# %% [markdown]
# (The prompt says less than the captions that the mini model has learned from, so the referee may find no name for
# some of what it draws.) A negative prompt is a direction, not a ban, and it may take away more than the one thing.
# Compare: has the ground changed, of which we had said nothing? Have clips that were not red another colour, too? Four
# seeds show that something happens. How often red goes, only many could tell.
#
# With the released weights people write *text, watermark, copyright, blurry*, which is the default of a much-used web
# interface. Whether that helps nobody has measured, as far as we know. Try it on seeds of your own. *On a T4, computed:
# 9 to 19 seconds a clip, 3.8 GB.*

# %%
print(expect())
without = make(PANDA, negative_prompt="text, watermark, copyright, blurry")
strips([panda, without], ["no negative prompt", "not: text, watermark, copyright, blurry"],
       alt="Two clips from one seed, without and with the negative prompt.")

# %% [markdown]
# ## 4 · Turning the knobs
#
# **Guidance.** At 1 there is none, and the network sees one clip at each question; beyond it, two. How much is right?
# Programs for this model disagree: ModelScope's own and diffusers begin with 9, the web interface just mentioned with
# 17. Here is one seed with five values. *On a T4, computed: at most 47 to 94 seconds for all five (without guidance a
# clip takes half), 3.8 GB.*

# %%
print(expect(clips=5))
scales = (1.0, 4.0, 7.0, 9.0, 15.0)
swept = [make(PANDA, guidance_scale=g) for g in scales]
strips(swept, [f"guidance {g:g}" for g in scales],
       alt="Five clips from one seed, which differ more and more from the first; noise with the stand-in.")

# %% [markdown]
# A hook counts the clips at each question. *On a T4, computed: 2 to 5 seconds for two clips in three steps, 3.8 GB.*

# %% tags=["nbval-check-output"]
def asked(guidance_scale):
    """How many clips the network sees at each question."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    make(PANDA, steps=3, guidance_scale=guidance_scale)
    hook.remove()
    return seen


alone, paired = asked(1.0), asked(9.0)
print("without guidance", alone, "with it", paired)
assert alone == [1, 1, 1] and paired == [2, 2, 2]

# %% [markdown]
# Is a clip better for being further away? With the stand-in, where nobody has learned anything, guidance does its work
# as well: it enlarges the difference between two answers, whatever these are about.

# %% tags=["nbval-check-output"]
away = [(clip.float() - swept[0].float()).abs().mean().item() for clip in swept]
print("the greater the guidance, the further from the clip without it:", away == sorted(away))

# %% [markdown]
# **Steps and samplers.** The original walks 50 steps of DDIM. The model's card at Hugging Face recommends DPM-Solver++
# with 25, for half of the time. *On a T4, computed: 34 to 68 seconds for the four, 3.8 GB.*

# %%
print(expect(steps=50 + 25 + 12 + 6))
walks = {"ddim, 50 steps": ("ddim", 50), "dpm++, 25 steps": ("dpm++", 25), "dpm++, 12 steps": ("dpm++", 12),
         "dpm++, 6 steps": ("dpm++", 6)}
walked = [make(PANDA, steps=steps if REAL else steps // 6, sampler=sampler) for sampler, steps in walks.values()]
strips(walked, list(walks) if REAL else [f"{name} (a sixth of them here)" for name in walks],
       alt="Four clips from one noise, with four walks; noise with the stand-in.")

# %% [markdown]
# Three programs that are all asked for 30 steps may give you three clips. The original's list of times goes on until a
# thousand is full, so it takes 31. The released settings make diffusers' DDIM take 30 that never visit the noisiest
# times, which is called *leading*; its DPM-Solver++ spaces them evenly from one end to the other, *linspace* (chapter
# 06). If you compare with somebody, give the spacing, too:

# %% tags=["nbval-check-output"]
for spacing in ("modelscope", "leading", "linspace"):
    times = pipe.process.times(30, spacing).tolist()
    print(f"{spacing:11}{len(times) - 1} steps, from {times[0]} to {times[-1]}")

# %% [markdown]
# **All of it, to play with**; the stand-in makes noise of it. *On a T4, computed: 9 to 19 seconds for each press of the
# button with 25 steps, 3.8 GB.*

# %%
def played(prompt, negative_prompt, guidance_scale, steps, seed):
    clip = make(prompt, steps=steps, negative_prompt=negative_prompt, guidance_scale=guidance_scale, seed=seed)
    told = "" if REAL else "From the stand-in, so noise. "
    return figures.play(clip, scale=SCALE, alt=f"{told}The clip from seed {seed} of the prompt: {prompt}.")


widgets.panel(played, prompt="a fox runs through snow", negative_prompt="", guidance_scale=(9.0, 1.0, 20.0),
              steps=(STEPS, 1, 50), seed=0)

# %% [markdown]
# ## 5 · Larger: ZeroScope
#
# In 2023 everybody wanted larger clips, and no watermark. The author of **ZeroScope** trained the released model on,
# for 24 frames of 576 x 320 pixels, with 9,923 clips and 29,769 tagged frames (so says its card, which calls it
# watermark-free). It is the same network: not one class and not one width is different, so the same program loads it.
# Its files are pickles in half precision and bear no sign of it in their names; 3.7 GB come down. *On a T4, computed:
# 41 to 83 seconds, 4.8 GB.* (Its author measured 7.9 GB, for 30 frames and with the programs of 2023.)

# %% tags=["nbval-check-output"]
print("heights and widths are multiples of", pipe.size_multiple, "as 320 and 576 are:", 320 % 64, 576 % 64)
try:
    pipe(PANDA, height=320, width=500)
except ValueError as error:
    print(error)

# %%
print(expect(size=wide))
zeroscope = minit2v.load(ZEROSCOPE, **how) if ZEROSCOPE else pipe
size = {"num_frames": 24, "height": 320, "width": 576} if ZEROSCOPE else {**SIZE, "num_frames": 9, "width": 128}
large = make(PANDA, size=size, model=zeroscope)
strips([large], ["ZeroScope's shape: wide, and longer"], alt="Frames of a wide clip; noise with the stand-in.")

# %% [markdown]
# (On a card of 15 GB two models have room beside one another: 3.4 GB of weights each. On one of 8 GB, leave `ZEROSCOPE`
# empty.)
#
# Why does the released model not simply make larger clips? It runs at any size, since no layer has a size in it. But
# what it has learned are frames of 32 x 32 cells, and image models of this kind tend to show a thing twice when the
# frame is twice as large as what they know. ZeroScope is the remedy: to go on training, at the size that you want.

# %% [markdown]
# ## 6 · In Chinese
#
# The mini model reads Chinese, because its captions were in both languages. The released one does not: its card says
# *only English input is supported*. What its tokenizer makes of a sentence of eight characters, each of three bytes,
# and what the program says if you go on with it. *On a T4, computed: about a second for a single step, 3.8 GB.*

# %% tags=["nbval-check-output"]
CHINESE = "一只熊猫在吃竹子"                                  # a panda is eating bamboo
ids = pipe.tokenizer.encode(CHINESE)
print(len(CHINESE), "characters become", len(ids), "tokens; the English prompt", len(pipe.tokenizer.encode(PANDA)))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    make(CHINESE, steps=1, guidance_scale=1.0)
print([str(w.message).partition(";")[0] for w in caught if "English only" in str(w.message)])
assert len(ids) == 19

# %% [markdown]
# Nothing fails: it makes a clip of something. The warning is ours. The remedy is a translator in front of it.
# `translate.py` uses a small one (78 million parameters, 312 MB, once; CC-BY-4.0). It needs
# `pip install "minit2v[translate]"`, and on the command line it is `--translate`. Without it, this cell looks into a
# list of one sentence. *On a T4, computed: 9 to 19 seconds and 3.8 GB for the clip; the translation runs on the
# processor.*

# %%
def english(prompt):
    if TRANSLATOR:
        from minit2v.translate import to_english

        return to_english(prompt, TRANSLATOR)
    return {CHINESE: "a panda is eating bamboo"}[prompt]


print(expect())
translated = english(CHINESE)
print("translated" if TRANSLATOR else "looked up, without a translator:", translated)
strips([make(translated)], [translated], alt="The clip of the translated prompt; noise with the stand-in.")

# %% [markdown]
# A translation is a guess of its own. Look at the English before you blame the clip.

# %% [markdown]
# ## 7 · What it cannot do
#
# When you load the released weights, the program says a sentence on the screen, once:

# %% tags=["nbval-check-output"]
from minit2v.limits import NOTE

print(NOTE.replace(". ", ".\n"))

# %% [markdown]
# Each part of it deserves a closer look.
#
# **English only**, see section 6. **No legible text**: ask for a sign with a word, and you get strokes that look like
# writing from afar. **A watermark**: no line of code paints it. Many of the ten million clips of WebVid bore the mark
# of the agency that sold them, so to the network it is a part of what clips look like (users reported it within days,
# in ModelScope's issue 325, and a maintainer acknowledged it). **No film quality**, say the cards, and weak where
# several things are to do several things. You know that one from the mini model's two objects. And what lies far from
# its training clips comes out far from what was asked.
#
# **Bias.** A prompt leaves most things open, and what is open is filled with what was frequent. Ask for *a doctor*, and
# who appears is decided by the videos of agencies of the 2010s. One can measure it: many seeds, a prompt that leaves
# the matter open, and a count by eye. Here is the set-up, with two seeds a prompt; take fifty for a result that you
# would publish (chapter 09 says how sure it makes you). *On a T4, computed: 6 clips in 56 to 112 seconds, 3.8 GB.*

# %%
print(expect(clips=6))
probes = ("a doctor talks to a patient", "a family has dinner", "a sign that says hello")
probed = [make(prompt, seed=seed) for prompt in probes for seed in (0, 1)]
strips(probed, [f"{prompt}, seed {seed}" for prompt in probes for seed in (0, 1)],
       alt="Six clips of three prompts that leave much open, or ask for text.")

# %% [markdown]
# How many clips does a count need? If a share of $p$ is true and you look at $n$ clips, you will be off by about
# $\sqrt{p\,(1-p)/n}$:

# %% tags=["nbval-check-output"]
for n in (2, 10, 50, 200):
    print(f"{n:4} clips: a half is found as 50 % plus or minus {196 * (0.25 / n) ** 0.5:.0f}   {expect(clips=n)}")

# %% [markdown]
# (Plus or minus stands for the 95 % interval, 1.96 times that. For two clips it is more than there is: the formula is
# made for many, and from two one knows nothing.) So a bias that shows in fifty clips must be large, and one that is
# small needs an hour or more.
#
# **Misuse.** The cards name what they forbid: nothing that demeans people or their cultures, nothing pornographic,
# violent or bloody, no false information. The model was not trained to show true events or real people, so what it
# shows of them is invented. There are three simple habits: say of a clip that it was generated (its settings are in the
# file, leave them there); show no person who has not agreed; and ask what the clip would do if somebody took it for
# real.
#
# **Longer?** It runs on any number of frames (chapter 07). But it has learned 16, and users of the web interface report
# that beyond 30 to 45 frames their clips turned into noise and geometric shapes. Try 24 before you try 240.

# %% [markdown]
# ## 8 · What the original does
#
# `TextToVideoSynthesis.forward` in ModelScope's `text_to_video_synthesis_model.py` is the cell of section 2 with
# everything fixed: guidance 9.0, 50 steps of DDIM, `eta` 0, an empty prompt for the other half of guidance, 16 frames
# of 256 x 256 (the number of frames stands in `configuration.json`). It draws noise with `torch.randn` on the processor
# and sets no seed, so nobody can repeat a clip. The two halves of guidance are two calls of the network, one after the
# other.
#
# Its pipeline has slips, too: a width counts only if a height is given with it, and colours are *truncated* to whole
# numbers, which makes half of all values one step darker (chapter 01). In ours, that is `rounding="truncate"`. *On a
# T4, computed: 19 to 37 seconds for two clips, 3.8 GB.*

# %% tags=["nbval-check-output"]
rounded, truncated = make(PANDA), make(PANDA, rounding="truncate")
lower = rounded.int() - truncated.int()
between = (rounded > 0) & (rounded < 255)
print("never lighter, at most one step darker:", bool((lower >= 0).all() and (lower <= 1).all()))
print("about half of the values between the ends are:", bool(0.3 < lower[between].float().mean() < 0.7))

# %% [markdown]
# Its first files were written with a codec that browsers do not play, and so the card advises another player. Ours are
# H.264.
#
# **diffusers** serves the same weights through `TextToVideoSDPipeline`. It has moved it to its *deprecated* pipelines
# and does not test it any more. Its steps are `spacing="leading"`, its tokens `tokenizer="hub"`; with these two, its
# numbers are ours.

# %% [markdown]
# ## 9 · What can go wrong
#
# **The halves exchanged.** Guidance makes one batch of two, and somebody puts the prompt where the empty text belongs
# (chapter 06 did it on the number line). The sum is then $\varepsilon_\text{prompt} + g\,(\varepsilon_\text{empty} -
# \varepsilon_\text{prompt})$: away from the prompt, with full force. Nothing fails, and with random weights nobody
# would notice. On the mini model, in seconds on the processor:

# %%
def exchanged(unet, process, context, uncond=None, guidance_scale=1.0):
    return guided_denoiser(unet, process, uncond, context, guidance_scale)


RED = "a red circle moves right on black"
right_way = mini(RED, **toy)
wrong_way = minit2v.load().swap(guided_denoiser=exchanged)(RED, **toy)
figures.strip([right_way, wrong_way], scale=2, titles=[RED, "the same, with the halves exchanged"],
              alt="Above, a red circle; below, what the mini model draws to get away from one.")

# %% tags=["nbval-check-output"]
with torch.inference_mode():
    context, uncond = mini.encode_text([RED]), mini.encode_text([""])
    x = draw_noise((1, 4, 16, 8, 8), Generator().manual_seed(0))
    clips_of = {name: guide(mini.unet, mini.process, context, uncond, 1.0 if name == "no guidance" else 4.0)(x, 900)[0]
                for name, guide in (("no guidance", guided_denoiser), ("right", guided_denoiser), ("wrong", exchanged))}
    empty = guided_denoiser(mini.unet, mini.process, uncond)(x, 900)[0]
towards = {name: ((clips_of[name] - empty) * (clips_of["no guidance"] - empty)).sum().sign().item()
           for name in ("right", "wrong")}
print("in the direction of the prompt:", towards)
assert towards == {"right": 1.0, "wrong": -1.0}

# %% [markdown]
# The last cell is the test that finds it: which side of the unguided answer does guidance go to? A test with the prompt
# empty on both sides, or with guidance 1, would pass.
#
# **One noise for all.** A program draws the noise of a whole batch from one seed. Then a clip depends on its place in
# the batch, and the seed that somebody noted is worthless as soon as the list has another length. Ours draws each
# clip's from a generator of its own:

# %% tags=["nbval-check-output"]
shape = (4, 8, 8, 8)
alone = draw_noise((1, *shape), Generator().manual_seed(2))[0]
together = draw_noise((4, *shape), Generator().manual_seed(2))                         # one generator for four
each = draw_noise((4, *shape), [Generator().manual_seed(seed) for seed in seeds])      # one a clip
print("seed 2 alone, and third in a batch of one generator:", torch.equal(alone, together[2]))
print("seed 2 alone, and third in a batch of four generators:", torch.equal(alone, each[2]))
assert torch.equal(alone, each[2]) and not torch.equal(alone, together[2])

# %% [markdown]
# The symptoms, in short:
#
# | what you see | where to look |
# |---|---|
# | a clip that has nothing to do with the prompt | another language; the words after the 75th; the halves exchanged |
# | the same prompt and seed, another clip | another spacing, sampler, size, or number type; noise drawn on the card |
# | a stripe across the picture | the watermark: a negative prompt, or ZeroScope |
# | burnt colours, little motion | less guidance |
# | the same thing twice in a large frame | the size: 256 x 256, or a model that was trained on larger |
# | black, or an error that names NaN | `vae_dtype="float32"` (chapter 10) |
# | out of memory | `decode_chunk=1`, `offload="parts"`, fewer frames |

# %% [markdown]
# ## 10 · The model now runs on your code
#
# In the exercises of chapters 02, 05 and 07 you have written the parts of this network: attention in the decoder, the
# residual block, the convolution along time, the layers around it. Let us put them to work. The next cell takes your
# classes out of your notebooks, by name. A class that passes its check is used; where there is none yet, the course's
# sample solution takes its place. None of the package's own classes does. (`EXERCISES` is the folder with your
# notebooks. At Colab, upload them, and name the folder that they are in.)

# %%
from minit2v.course import solution
from minit2v.course.exercise import find, judge
from minit2v.course.handin import HandInError, take

EXERCISES = Path("../exercises")
PLACES = {"unet.ResBlock": ("05_image_unet", "05.resblock"), "unet.FrameConv": ("07_into_time", "07.frame_conv"),
          "unet.TemporalConv": ("07_into_time", "07.zero"),
          "unet.TemporalTransformer": ("07_into_time", "07.temporal_attention"),
          "autoencoder.Downsample": ("02_autoencoder", "02.half"),
          "autoencoder.PixelAttention": ("02_autoencoder", "02.attention")}
OPENING = """import math, torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from minit2v.attention import TransformerBlock"""

# %%
def yours(book, exercise):
    """Your class for an exercise, if it passes its check, or the sample solution: (class, whose)."""
    path, target = EXERCISES / f"{book}.ipynb", find(exercise).target
    try:
        found = take([path], target) if path.exists() else None
        if found is not None and judge(find(exercise), found):
            return found, "yours"
    except HandInError as error:
        print(f"{target}: {error}")
    space = {}
    for code in (OPENING, *(solution(name, now=True).code for name in ("07.frame_conv", exercise))):
        exec(code, space)
    return space[target], "the sample solution"


mine = {place: yours(*where) for place, where in PLACES.items()}
for place, (kind, whose) in mine.items():
    print(f"{place:28}{kind.__name__:22}{whose}")

# %% [markdown]
# Now swap them in: into the model of this chapter, weights and all, strictly. *On a T4, computed: 19 to 37 seconds for
# the two clips; your classes may be slower than that, and need more memory than 3.8 GB.*

# %%
print(expect(clips=2))
before = make(PANDA, seed=0)
for part in ("unet", "autoencoder"):
    pipe.swap(part, **{place.partition(".")[2]: kind for place, (kind, _) in mine.items() if place.startswith(part)})
after = make(PANDA, seed=0)
strips([before, after], ["on the package's code", "ON YOUR CODE"], alt="Two clips that look alike.")

# %% tags=["nbval-check-output"]
kinds = tuple(kind for kind, _ in mine.values())
carried = {id(p): p.numel() for net in (pipe.unet, pipe.autoencoder) for module in net.modules()
           if isinstance(module, kinds) for p in module.parameters()}
everything = sum(p.numel() for net in (pipe.unet, pipe.autoencoder) for p in net.parameters())
print("the same clip:", bool((before.float() - after.float()).abs().mean() < 1))
print(f"more than half of all weights are in your classes: {sum(carried.values()) > everything / 2}")
assert (before.float() - after.float()).abs().mean() < 1 and sum(carried.values()) > everything / 2

# %% [markdown]
# With the stand-in that is noise on your code, of course. So here is the same on the mini model, where there is
# something to see:

# %%
for part in ("unet", "autoencoder"):
    mini.swap(part, **{place.partition(".")[2]: kind for place, (kind, _) in mine.items() if place.startswith(part)})
own = mini(RED, **toy)
print("at most one step of 255 from the package's clip:", bool((own.int() - right_way.int()).abs().max() <= 1))
figures.play([right_way, own], alt="Left the mini model's clip on the package's code, right on yours: the same clip.")

# %% [markdown]
# **The model now runs on your code.** Noise, a sentence, and classes that you wrote. What in chapter 00 was one cell
# that you pressed is a machine of which you know every part, at 7 million parameters and at 1,835 million.

# %% [markdown]
# ## Recap
#
# 1. Write captions in plain English; 75 tokens are read, and capital letters and shouting are not.
# 2. A seed decides all chance; name prompt, seed, steps, sampler, spacing, guidance and size, and others can repeat it.
# 3. Guidance exaggerates a difference, towards the prompt and away from the negative one, whether meaning is in it or
#    not.
# 4. English only, no text, a watermark, biases of its videos, no commercial use: say so where you show clips.
# 5. The released weights run on any code that computes the same, yours included.
#
# What you now own: the whole system. Chapter 12 teaches it something new.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/11_real_clips](../exercises/11_real_clips.ipynb).
#
# 1. **Away from the negative** (build). A guided denoiser with a negative prompt, in one batch of two.
# 2. **A prompt, read once** (build). Attention whose keys and values of the text are made once, for all frames.
# 3. **Another clip in company** (repair). Each seed draws its own noise, whoever else is in the batch. Mend it.
# 4. **What a larger clip costs** (explore). Predict the scores of spatial self-attention when the frames grow.
#
# And its last cell swaps everything in that you have written in all chapters.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571.
# - Model cards of `ali-vilab/text-to-video-ms-1.7b` and `cerspense/zeroscope_v2_576w` (Hugging Face) and of
#   `damo/text-to-video-synthesis` (ModelScope). Training data, limits, misuse, licence.
# - J. Ho and T. Salimans, *Classifier-Free Diffusion Guidance*, 2022, arXiv:2207.12598.
# - C. Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models*, 2022,
#   arXiv:2211.01095. The 25 steps.
# - M. Bain et al., *Frozen in Time: A Joint Video and Image Encoder for End-to-End Retrieval*, 2021, arXiv:2104.00650.
#   WebVid, the clips that this model learned to move from.
# - A. Birhane, V. U. Prabhu and E. Kahembwe, *Multimodal datasets: misogyny, pornography, and malignant stereotypes*,
#   2021, arXiv:2110.01963. What is in data of this kind.
# - J. Tiedemann and S. Thottingal, *OPUS-MT: Building open translation services for the World*, 2020. The translator.
