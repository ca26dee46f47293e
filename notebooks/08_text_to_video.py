# %% [markdown]
# # 08 · Text to video
#
# Chapter 07 ended with a network that has all its parts and stands still: its temporal half is newborn and adds
# nothing. In this chapter it learns to move. You will take a network that draws pictures, give it layers that see
# time, and watch six loose pictures become one clip, step by step, within a minute or two of training. Around this you
# build what any training of this kind needs: batches in which pictures and clips take turns, captions that are
# sometimes empty, an average of the weights, and a checkpoint to go on from.

# %% [markdown]
# ## What you will build
#
# The next cell shows where we are going. The finished model, four sentences, one clip each. It has learned by the very
# code of this chapter, only for longer and from more clips.

# %%
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import minit2v
import torch
from IPython.display import display
from torch import Generator, Tensor, nn

from minit2v.captions import caption
from minit2v.course import figures
from minit2v.data import Clips, to_model
from minit2v.diffusion import Process, denoising_loss, draw_noise
from minit2v.referee import agrees, read
from minit2v.training import Plan, fit, read_log
from minit2v.unet import UNet
from minit2v.world import Scene, Thing, render, sample_scene, sample_thing

pipe = minit2v.load()
process = pipe.process

# %%
sentences = ["a red circle moves right on a black background", "a green square grows on a grey background",
             "a blue triangle moves up on a white background", "a yellow circle moves in a circle on black"]
figures.play(pipe(sentences, sampler="dpm++", num_inference_steps=12, seed=[1, 2, 3, 4], progress=False), scale=2,
             alt="Four clips side by side, in each of which a coloured shape moves on a plain ground.")

# %% [markdown]
# **You need** the training loop of chapter 04, the image network of chapter 05, guidance from chapter 06, and the
# temporal layers of chapter 07, which start as nothing.
#
# **It takes** about 75 minutes to read and play with. All cells together run in about three minutes; nearly half of
# that is the training in section 4.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | share of the times drawn in training that lie in the noisier half | 0.66 |
# | gradient that a batch of pictures leaves in the layers that see time | none |
# | clips of 8 with the right motion: before training, after it | at most 1, at least 4 (chance: 0.6) |
# | share of the untrained weights in an average with decay 0.999, after 100 steps | 0.90 |
# | error about things that our corner lacks: after clips alone, against pictures in between | at least 1.1 times |
# | a run that was killed and resumed, against one that was not | equal to 0.000001 |

# %% [markdown]
# ## 1 · First to draw, then to move
#
# One could begin with random weights everywhere and show the network clips from the first step on. It would work. But
# most of what there is to learn about a clip is to be seen in *one frame* of it: what a star is, which colour is called
# cyan, that an object lies on a ground. A frame costs about a sixteenth of a clip. And pictures with captions are
# plentiful in the world, whereas clips with captions are rare. (What the order is worth can be measured: section 7.)
#
# So it is done in two stages:
#
# 1. **Spatial training.** Single frames, the layers that see time left out. You did this in chapter 05, for a minute.
# 2. **Temporal training.** The layers that see time are put in, with their zeros, and the network gets clips.
#
# ModelScope did not even do the first stage: it took the weights of Stable Diffusion, a finished image model. We do
# the same on our scale. We take the image half of the shipped network as it is, and give it a newborn temporal half.

# %%
def sees_time(name):
    """Whether a parameter of this name belongs to a layer that sees time."""
    return "temporal" in name or name.startswith("transformer_in")


torch.manual_seed(0)                                         # PyTorch draws a new layer's weights globally
student = UNet(pipe.config.unet)
image_half = {name: value for name, value in pipe.unet.state_dict().items() if not sees_time(name)}
student.load_state_dict(image_half, strict=False)
before = {name: p.detach().clone() for name, p in student.named_parameters()}

# %% tags=["nbval-check-output"]
counted = {kind: sum(p.numel() for name, p in before.items() if sees_time(name) == kind) for kind in (False, True)}
print(f"knows how to draw: {counted[False]:,} parameters; knows nothing yet: {counted[True]:,}")
assert counted == {False: 3_446_948, True: 2_504_480}

# %% [markdown]
# ## 2 · A corner of the world
#
# The shipped network has learned from many thousand clips, for hours. We have a minute or two, so we stay in a corner
# of Moving Shapes: big circles that move fast, in four colours and four directions, on black. A clip has **six
# frames**, three a second. It is the same two seconds, seen less often, and training costs less than half.

# %%
COLOURS, WAYS, FRAMES, FPS = ("red", "green", "blue", "yellow"), ("right", "left", "up", "down"), 6, 3
PAIRS = [(colour, way) for colour in COLOURS for way in WAYS]                    # sixteen
SENTENCES = [f"a big {colour} circle moves {way}" for colour, way in PAIRS]


class Corner:
    """Clips of this corner, their captions, and their latents (N, 4, F, h, w), encoded once and for all."""

    def __init__(self, count, seed=0):
        rng, parts = random.Random(seed), []
        pairs = [PAIRS[i % len(PAIRS)] for i in range(count)]
        self.captions = [SENTENCES[i % len(PAIRS)] for i in range(count)]
        self.scenes = [Scene((sample_thing(rng, colour, "circle", way, "big", "fast"),)) for colour, way in pairs]
        for clips in render(self.scenes, num_frames=FRAMES, fps=FPS).split(20):
            parts.append(pipe.autoencoder.encode(to_model(clips)))               # (20, 4, F, h, w)
        self.latents = torch.cat(parts)

    def batch(self, rng, size, drop=0.0):
        """`size` random clips, (size, 4, F, h, w), and captions, each empty with probability `drop`."""
        rows = [rng.randrange(len(self.captions)) for _ in range(size)]
        return self.latents[rows], ["" if rng.random() < drop else self.captions[i] for i in rows]

# %%
with torch.no_grad():                                        # nobody trains the autoencoder, or the text tower
    world, unseen = Corner(240), Corner(16, seed=1)          # clips to learn from, and clips to be tested on

drawn = render(unseen.scenes[:4], num_frames=FRAMES, fps=FPS)
figures.strip(drawn, scale=2, alt="Four film strips of six frames: a red circle moves right, left, up and down.")

# %% [markdown]
# What do we tell the network about a clip? Look at `batch`, and at six rows of it:

# %%
latents, texts = world.batch(random.Random(9), 6, drop=0.25)
print(tuple(latents.shape), texts)

# %% [markdown]
# Some captions are **empty**: the clip comes without a word. That is *caption dropout*. It looks like waste, but
# guidance needs it, as section 6 shows. (In training it is one caption in ten; here it is one in four, so that you see
# some.)
#
# In our corner each kind of clip has one sentence. The package's `data.Clips` has the same method, but there captions
# are **worded anew** each time a clip is drawn, in English or in Chinese, with more or fewer details, so that no
# sentence stands for a clip by heart:

# %%
for i in range(4):
    print(caption(world.scenes[0], random.Random(i), "zh" if i == 3 else "en"))

# %% [markdown]
# ## 3 · Pictures among the clips
#
# A step of training is: draw a batch, noise it, ask, compare. That is chapter 04, and it is `denoising_loss`. New is
# what a batch may be. In one step out of eight it holds no clips but **pictures**: single frames, drawn out of clips,
# which pass through the network with its temporal layers left out.

# %%
# from minit2v.recipe import draw_times

# %%
from minit2v.recipe import DROP_CAPTION, IMAGE_SHARE

# %%
# from minit2v.recipe import unet_objective

# %% [markdown]
# Four lines of it decide what is learned.
#
# **`still`** says which kind this step gets. All samples of a step are of one kind, since a batch is one tensor.
#
# **`partial(unet, temporal=False)`** switches time off for pictures. A picture would fit into the whole network, too,
# as a clip of one frame. But then the temporal layers would learn from clips in which nothing ever happens.
#
# **`every`** takes every second frame, or every third, from a random first one. That is the recipe's way to shorter
# clips; ours are short already.
#
# **`draw_times`** draws the time. In chapter 04 all times were equally likely. Here the noisy ones are favoured: with
# $u$ drawn evenly from 0 to 1, the time is $1000\,u^{0.65}$. (`late` is that exponent. Section 4 has another one.)

# %%
drawn_times = draw_times(1000, 20000, Generator().manual_seed(0))
figures.plot({"drawn": torch.histc(drawn_times.float(), bins=20, min=1, max=1000) / len(drawn_times),
              "evenly": torch.full((20,), 1 / 20)}, x=torch.arange(25, 1000, 50), xlabel="time t", ylabel="share",
             alt="Evenly is a flat line at 0.05; the shares that are drawn rise from 0.01 to 0.075.")

# %% tags=["nbval-check-output"]
share = (drawn_times > 500).float().mean().item()
print(f"in the noisier half: {share:.2f}; by the formula: {1 - 0.5 ** (1 / 0.65):.2f}")
assert abs(share - (1 - 0.5 ** (1 / 0.65))) < 0.02

# %% [markdown]
# There, where a clip is nearly all noise, it is decided what is in it and which way it goes. We shall measure this in
# section 6.
#
# ### Who learns from what?
#
# Let us look at the gradients. A batch of clips, then a batch of pictures, and where each leaves a trace:

# %%
@torch.no_grad()
def encode(texts):
    """Captions -> context (B, L, D). The text tower is frozen: no gradient goes through it."""
    return pipe.encode_text(texts).clone()


def traces(image_share):
    """The size of the gradient that one batch leaves in the image half and in the temporal half."""
    objective = unet_objective(process, encode, world, batch=4, image_share=image_share, images=4)
    student.zero_grad(set_to_none=True)
    objective(student, Generator().manual_seed(0), random.Random(0))[0].backward()
    grads = {kind: [p.grad.norm() for name, p in student.named_parameters()
                    if sees_time(name) == kind and p.grad is not None] for kind in (False, True)}
    return {kind: torch.stack(found).norm().item() if found else 0.0 for kind, found in grads.items()}

# %% tags=["nbval-check-output"]
for name, share in {"clips": 0.0, "pictures": 1.0}.items():
    found = traces(share)
    print(f"a batch of {name:9} leaves a trace in the image half: {found[False] > 0}, in the temporal half: "
          f"{found[True] > 0}")
    assert found[False] > 0 and (found[True] > 0) == (name == "clips")

# %% [markdown]
# Pictures teach the image half only. They keep it busy with what a frame looks like, while clips pull at both. In a
# world in which captioned pictures far outnumber captioned clips, that is how a video model goes on learning about
# things of which no clip exists.
#
# There is a second way to keep the image half from forgetting: not to let it learn at all. Then only the newborn layers
# change, and pictures are of no use to them. That is what the training of the next section does, **with clips alone**,
# because a run of a minute has no time for both. In a run of hours the whole network learns, and pictures are mixed in,
# as in the recipe. What the mixing is worth you will see in section 9, in a short run where the whole network learns.

# %% [markdown]
# ## 4 · Learning to move
#
# We need a quiz, the eight sentences about red and green, and a judge. The referee reads from each clip which colour
# it sees and which way it goes. It knows eight colours and fourteen motions, so by chance 8/8 = 1 colour of the eight
# clips would be right, and 8/14, or 0.6, of the motions. If it cannot follow the object through the clip, it says
# nothing, and nothing counts as wrong, in the colour too.

# %%
QUIZ, ANSWERS = SENTENCES[:8], [Scene((Thing(colour, "circle", way),)) for colour, way in PAIRS[:8]]
stage = minit2v.load()                                       # a second pipeline, to try half-trained weights in


def perform(weights, prompts=QUIZ, guidance_scale=3.0):
    """A clip for each prompt, made with these weights; what they lack is the image half's: (N, F, H, W, 3)."""
    stage.unet.load_state_dict(image_half | weights)
    return stage(prompts, num_frames=FRAMES, sampler="dpm++", num_inference_steps=10, guidance_scale=guidance_scale,
                 seed=list(range(len(prompts))), progress=False)


def marks(clips):
    """How many of the eight clips of the quiz have the right colour, and how many the right motion."""
    found = [agrees(read(clip, FPS), answer) for clip, answer in zip(clips, ANSWERS)]
    return {what: sum(answer[what] for answer in found) for what in ("colour", "motion")}

# %% [markdown]
# While the student learns, we let it perform from time to time, and add what we see to a picture that grows on the
# screen. Each row is one of its clips: "a big red circle moves right".

# %%
films, scores, titles, moments, screen = [], [], [], [], display(display_id=True)


def watch(average, step):
    """Called by `fit` with the averaged weights of this moment."""
    clips = perform(average)
    scores.append(marks(clips))
    films.append(clips[0])
    moments.append({"the average": {name: average[name].clone() for name in average if sees_time(name)},
                    "the weights themselves": {name: p.detach().clone() for name, p in student.named_parameters()}})
    titles.append("step {}: right of 8: {colour} colours, {motion} motions".format(step, **scores[-1]))
    screen.update(figures.strip(films, scale=2, titles=titles, alt="Rows of six frames: at first a circle that is "
                                "elsewhere in each frame, later one that travels."))


watch(student.state_dict(), 0)

# %% [markdown]
# Row zero is the image network, six times: six pictures of a red circle, each for itself, and no motion in any of
# them. (Red they are. But what is here now and there then, on grounds that change, the referee cannot follow.)
#
# Now run the training. `learns` says, by name, which parameters learn. What comes back is the average of these. (With
# `late=0.5` noisy times are drawn more often yet: a run as short as this should spend them where directions are
# decided.)

# %%
STEPS, BATCH = 100, 8
step_of_recipe = unet_objective(process, encode, world, BATCH, image_share=0.0, images=1, late=0.5)
lazy = {name: value.clone() for name, value in before.items()}                   # for section 5: another average


def objective(unet, generator, rng):
    with torch.no_grad():
        for name, p in unet.named_parameters():
            lazy[name].lerp_(p, 1 - 0.999)
    return step_of_recipe(unet, generator, rng)

# %%
plan = Plan(steps=STEPS, batch=BATCH, lr=6e-3, warmup=10, final_lr=0.1, ema=0.95, save_every=STEPS // 4, log_every=8)
with tempfile.TemporaryDirectory() as folder:
    trained = fit(student, objective, plan, f"{folder}/video", learns=sees_time, on_save=watch)
    log = [line for line in read_log(f"{folder}/video") if "loss" in line]

# %% [markdown]
# Read the picture above from top to bottom. First the frames of a row agree on a ground, and nearly on a place: the
# circle stops jumping about, and the referee, who can follow it now in most clips, sees its colour. Only then it begins
# to travel, the way the sentence says: **what and where, then which way**. Played, first and last row side by side:

# %%
figures.play([films[0], films[-1]], fps=FPS, alt="Left, a circle that jumps about; right, one that travels.")

# %%
figures.plot({"colour": [m["colour"] for m in scores], "motion": [m["motion"] for m in scores]},
             x=torch.arange(5) * STEPS // 4, xlabel="step", ylabel="right, of 8",
             alt="Right answers over the steps: colours rise first, motions follow later.")

# %%
figures.plot({"loss": [line["loss"] for line in log]}, x=[line["step"] for line in log], xlabel="step", ylabel="loss",
             alt="The loss falls quickly at first, then goes up and down.")

# %% tags=["nbval-check-output"]
print("at most 1 motion right before:", scores[0]["motion"] <= 1, "- 4 or more of 8 after:", scores[-1]["motion"] >= 4)
assert scores[0]["motion"] <= 1 and scores[-1]["motion"] >= 4

# %% [markdown]
# Where in the curve of the loss does the motion appear? In the marks it is a jump between two points; look for it at
# the same place in the loss. It falls there; but at the end it is as high again, and no motion has been lost. Such ups
# and downs come from the times that happen to be drawn, and they are larger than anything motion does to it. As with
# the colours in chapter 05: which way a circle goes is one bit of what there is to know about a clip. **Do not judge a
# video model by its loss.** Chapter 09 is about what to judge it by.
#
# All eight, as the trained student performs them:

# %%
clips = perform(trained)
figures.play(list(clips), fps=FPS, scale=1, alt="Eight small clips: red and green circles, each moving its own way.")

# %% [markdown]
# ## 5 · The average that performs
#
# All that you have just seen was made by averaged weights, the EMA of chapter 04. Does it matter? `watch` has kept the
# average and the weights themselves at each of its visits. Eight marks are few to compare them by, so we take the error
# on the sixteen clips that the student has never seen.

# %%
@torch.no_grad()
def errors(network, latents, texts, times=(100, 400, 700, 900, 1000)):
    """The mean error of a network about clips (N, 4, F, h, w) at each of these times, with the same noise each."""
    context = encode(texts)
    return [denoising_loss(network, process, latents, context, Generator().manual_seed(3),
                           t=torch.full((len(latents),), t))[0].item() for t in times]


def error_of(weights):
    """The error that these weights make on unseen clips, with their captions; what they lack is the image half's."""
    stage.unet.load_state_dict(image_half | weights)
    return sum(errors(stage.unet, unseen.latents, unseen.captions, times=(400, 900))) / 2

# %%
on_the_way = {name: [error_of(moment[name]) for moment in moments] for name in moments[0]}
figures.plot(on_the_way, x=torch.arange(5) * STEPS // 4, xlabel="step", ylabel="error on unseen clips",
             alt="Two falling curves, one of the average, one of the weights themselves.")

# %% [markdown]
# The two lie on each other. In a run as short and as smooth as this one, the average is no gain. It is an insurance,
# for runs of many thousand steps in which the weights tremble for long: there it is what most image and video models
# are sampled with (Karras et al. 2023).
#
# But it must not be a harm, and a common average can be one. In `lazy` we kept such a one. It keeps 0.999 of itself at
# each step, from the first step on.

# %%
averages = {"average as in the package": trained, "weights of the last step": student.state_dict(),
            "average with 0.999 from the start": lazy}
played = {name: perform(weights, QUIZ[:1]) for name, weights in averages.items()}
figures.strip([part[0] for part in played.values()], scale=2, titles=list(played),
              alt="Two rows with a circle that travels; in the third it is elsewhere in each frame.")

# %% [markdown]
# The first two rows are much alike: towards the end of a run the learning rate is small, and the weights hardly tremble
# any more. But the third row has hardly noticed that there was a training. What share of the untrained weights is still
# in such an average after n steps? Each step multiplies it by the decay d, so it is
#
# $$d^{\,n}$$

# %% tags=["nbval-check-output"]
for decay, steps in ((0.999, 100), (0.95, 100), (0.998, 5000), (0.9999, 5000)):
    print(f"decay {decay:6}, {steps:5,} steps: {decay ** steps:.2f} of it is as untrained as at the start")
assert round(0.999 ** STEPS, 2) == 0.9

# %% [markdown]
# Rule of thumb: an average with decay $d$ remembers about $1/(1-d)$ steps. For 100 steps 0.95 is right, for thousands
# the recipe takes 0.998, and for hundreds of thousands, 0.9999 is usual. The package's `Ema` guards against the
# mistake, too. Its decay is never larger than $(1+n)/(10+n)$ at step n, so that the first steps are soon forgotten.

# %%
steps = torch.arange(1000)
figures.plot({f"asked for {decay}": ((1 + steps) / (10 + steps)).clamp(max=decay) for decay in (0.999, 0.95)},
             xlabel="step n", ylabel="decay in use",
             alt="Both curves rise from 0.1; one stops at 0.95, the other goes on to 0.99.")

# %% [markdown]
# ## 6 · What the words are good for
#
# One caption in ten was empty. So the student knows two things: what clips with this caption look like, and what clips
# look like. Guidance compares the two (chapter 06). Here are both answers alone, and their difference exaggerated: the
# guidance of 0 is the empty caption's answer, and 1 is the caption's.

# %%
for_words = {g: perform(trained, QUIZ[:2], guidance_scale=g)[1] for g in (0.0, 1.0, 4.0)}
figures.strip(list(for_words.values()), scale=2, titles=[f"guidance {g:g}: {QUIZ[1]}" for g in for_words],
              alt="Three rows of six frames: a circle that changes colour; two red ones, with dark spots, move left.")

# %% [markdown]
# Without a word it draws circles of any colour: that is what guidance goes away from. (The dark spots are a flaw of so
# short a training. Here there are more of them at 4: guidance exaggerates flaws, too.)
#
# And if no caption had ever been empty? Our student cannot show it: its image half met empty captions long ago, and
# the layers that see time read no captions at all. So let two tiny networks, random at first, learn to draw single
# frames of our corner, for a few seconds each. One of them always gets the caption, the other one in three cases of
# four.

# %%
tiny = replace(pipe.config.unet, channels=16, multipliers=(1, 2), head_dim=16)
known = dict(zip([*SENTENCES, ""], encode([*SENTENCES, ""])))                    # each sentence encoded once


def first_lessons(drop):
    """A tiny network that has learned to draw the corner's frames, a share `drop` of them without a caption."""
    def pictures(unet, generator, rng):
        latents, texts = world.batch(rng, 32, drop)
        context = torch.stack([known[text] for text in texts])                   # (32, L, D)
        unet = partial(unet, temporal=False)
        return denoising_loss(unet, process, latents[:, :, :1], context, generator)[0], {}

    torch.manual_seed(0)
    network = UNet(tiny)
    plan = Plan(steps=200, batch=32, lr=5e-3, warmup=10, ema=0.95)
    with tempfile.TemporaryDirectory() as folder:
        network.load_state_dict(fit(network, pictures, plan, f"{folder}/tiny"))
    return network.eval()


tiny_ones = {"every caption": first_lessons(0.0), "one in four empty": first_lessons(0.25)}

# %% [markdown]
# Now both are asked about pictures that they have not seen, in the noisier half, once with their captions, once with
# the empty one:

# %%
stills = unseen.latents[:, :, :1]                            # (16, 4, 1, h, w)
found = {name: [sum(errors(partial(network, temporal=False), stills, texts, times=(700, 900))) / 2
                for texts in (unseen.captions, [""] * 16)] for name, network in tiny_ones.items()}
for name, (within, without) in found.items():
    print(f"taught with {name}: error with the caption {within:.2f}, with the empty one {without:.2f}")

# %% tags=["nbval-check-output"]
harm = [without for _, without in found.values()]
print("the one that never met the empty caption understands it less:", harm[0] > 1.05 * harm[1])
assert harm[0] > 1.05 * harm[1]

# %% [markdown]
# With captions the two are about equally good, though the second one has seen fewer of them. But without a word it
# answers what is true of *any* picture here, and that is what guidance needs to go away from. The first one has never
# met this sentence without words. What it answers to it is an accident, and guidance then exaggerates the distance from
# an accident.
#
# How much does a caption tell, and when? We ask for the error on clips that the student has never seen, with the right
# caption, with none, and with a wrong one (that of the next clip), at five times.

# %%
student.load_state_dict(image_half | trained)
student.eval()
told = unseen.captions
wrong = told[1:] + told[:1]
asked = {name: errors(student, unseen.latents, texts)
         for name, texts in {"right caption": told, "none": [""] * 16, "wrong caption": wrong}.items()}

# %%
figures.plot(asked, x=[100, 400, 700, 900, 1000], xlabel="time t", ylabel="error",
             alt="Three curves, near each other at early times, far apart at late ones: wrong above, right below.")

# %% tags=["nbval-check-output"]
gain = [none - right for none, right in zip(asked["none"], asked["right caption"])]
print("the caption helps more at t = 900 than at t = 100:", gain[3] > gain[0])
print("a wrong one does harm at t = 900:", asked["wrong caption"][3] > asked["none"][3])
assert gain[3] > max(gain[0], 0) and asked["wrong caption"][3] > asked["none"][3]

# %% [markdown]
# (All three curves have their valley in the middle. That is the velocity's doing, which our network answers with, and
# not the words': early it is asked for the noise, late for the clip, chapter 04.) With little noise the words add
# little to what is to be seen anyway. With much noise they are nearly all that the network has. This is where it is
# decided what a clip shows and how it moves, and that is why `draw_times` draws late times more often.

# %% [markdown]
# ## 7 · At full size
#
# `minit2v train` has four stages: the autoencoder of chapter 02, the text tower of chapter 03, and the two of this
# chapter. The shipped model was made by them, in one go, from nothing: four hours on two cores of a server. Of its
# minutes 23 went into the autoencoder, 7 into encoding clips, 9 into the text tower, 25 into pictures, and 179 into
# clips. These are the plans:

# %%
from pathlib import Path

from minit2v.config import ModelConfig
from minit2v.recipe import PLANS

for name, recipe in PLANS.items():
    print(f"{name:12} {recipe.steps:5,} steps of {recipe.batch:3}, rate {recipe.lr:g}, average {recipe.ema}")

# %% [markdown]
# Each plan says how fast, too: the learning rate rises for `warmup` steps, since fresh optimizers take large steps in
# poor directions, and then falls along half a cosine,
#
# $$\mathrm{rate}(n) = r \left(f + (1-f)\,\frac{1 + \cos(\pi p)}{2}\right)$$
#
# where $p$ goes from 0 to 1 over the run, $r$ is the largest rate and $f$ is where it ends, as a share of $r$.

# %%
rates = {name: [recipe.learning_rate(n) for n in range(0, recipe.steps, recipe.steps // 100)]
         for name, recipe in PLANS.items() if name in ("image", "video")}
figures.plot(rates, x=torch.linspace(0, 1, len(rates["image"])), xlabel="share of the run", ylabel="learning rate",
             alt="Two curves that rise at once and fall in a smooth bow, the images' to a third, the clips' to zero.")

# %% [markdown]
# The video stage is four runs. The first takes every second frame of twice as many clips, much as we did, for half
# the price. The second takes whole clips of one object, mostly of one that goes somewhere; the third all clips. The
# last takes all clips once more, at a smaller rate, with captions of which some leave out the colour or the motion.
# Here is what the package does, in its own words. (`_clips` loads them, and `_train_unet` calls `fit` with
# `unet_objective`, as you did.)

# %%
# from minit2v.recipe import train_video

# %% [markdown]
# Why the second? We had none, and got stuck. Colours and shapes were all right, and so were growing and shrinking, but
# after 8,000 steps on all clips it was chance which way things went. The loss did not tell: it fell, slowly, as ever.
# What told was the question of section 6, asked about one word: how much larger is the error with the *opposite*
# direction in the caption? At t = 925 it is 0.37 larger for the shipped network, and for this one it was not larger at
# all, 0.00. With a direction turned by a quarter it was larger by 0.06 (shipped: 0.30). So it half knew the line along
# which things move, and nothing of which way.
#
# Here is what we think. A direction is three things multiplied: what the words say, when in the clip a frame is, and on
# which side of the object a pixel lies. As long as a network does not put all three together, each alone is of no use,
# and where nothing is of use there is no slope to go down. Besides, in two clips of three two objects went two ways, so
# that a word was right of one and wrong of the other. So now come clips of one object first, with more of the late
# times and a faster rate. After 500 steps the error with the opposite word was larger by 0.02, after 1,000 by 0.24.
# (Which of the three changes did it we do not know. They were made at once, and that is no ablation.) When a run stands
# still, ask it about the one thing that it should have learnt.
#
# The last run came of another surprise. After the third the referee was content, with captions like those of the
# lessons. Then somebody typed "a circle moves right", and in 15 clips of 32 there was nothing at all. No caption had
# ever kept quiet about a colour, so the network had never had to choose one. Captions of your own are always more
# orderly than what people type. Leave things out of them now and then. (After that run none was empty.)

# %% [markdown]
# ### What is each part worth?
#
# A recipe has many parts, and each of them has its reasons. Reasons are cheap. To learn what a part is worth, one
# leaves it out, trains once more, and compares: an **ablation**. Two rules make it fair. Both runs may spend the same
# number of operations (a network without attention along time is cheaper, so it makes more steps). And both are judged
# by the same quiz, with an interval beside each mark, for a second run with another seed would not get the same marks
# either.
#
# `minit2v ablate` does this in a small world like our corner, with a smaller network, in some minutes a run. It asks
# about the order (first pictures, then clips, or all at once), the convolutions and the attention along time, the
# pictures among the clips, the captions in two languages, and, of the model that ships, the number of sampling steps
# and the guidance. (The training runs use the autoencoder and the text tower that shipped before today's.) Before you
# look at any answer, write down what you expect of each.

# %%
from minit2v import ablation

figures.picture(ablation.figure(), alt="Motions right by way of training, most between 20 and 75 per cent and none "
                "without convolution; all right by number of steps; each attribute by guidance, high from 3 to 9.")

# %% [markdown]
# On the left, a hundred clips a mark and chance as a broken line. Whiskers are 95 % intervals, of the clips alone.
# Every way was tried twice, with nothing changed but the seed, and two runs of one row lie up to 50 points apart! So in
# runs of three minutes most rows prove nothing: not the order, not the attention along time, not the second language.
# Without pictures among the clips both runs did better than both of the recipe. Is that something? If chance alone
# orders four runs, one of two ways is ahead with both in one case of three, and we looked at five such pairs before we
# picked this one. Remember this when a table has one run a row, in a paper, too.
#
# One row is beyond all doubt. Without the convolutions along time, no frame knows its place in the clip (chapter 07),
# frames come in any order, and the referee cannot even tell a colour. And a surprise: who learnt from English captions
# alone does about as well in Chinese. The text tower, which does not learn here, had put both languages in one place.
# Shapes, which the picture leaves out, no way has learnt: all are below chance there. (Chance is no floor, in any
# column: a clip that the referee cannot read is wrong, whereas a guess is always an answer.)
#
# In the middle and on the right it is the model that ships that is asked, 32 times a mark, 8 where the chains are long:
# even 8 right of 8 may be 68 % in truth. Few steps are where the samplers differ: with two, DPM-Solver++ has all right
# in 15 clips of 32, the others in none. From 8 on the whiskers overlap, and nothing shows that more than 15 help. With
# guidance, those of 3, 4, 6 and 9 overlap; at 15 the clips fall apart. `ablation.table("training")` has the numbers,
# and so for "steps" and "guidance".

# %% [markdown]
# ## 8 · A run that can be killed
#
# Long runs are seldom left in peace. Machines are rebooted, and a free Colab session closes. So every `save_every`
# steps `fit` writes a **checkpoint**, from which a run can go on. The weights are not enough for that:

# %%
class Killed(Exception):
    """Stands for a power cut."""


def short_run(folder, stop_at=None):
    """Six small steps of a small network; may be killed after some of them. Returns the averaged weights."""
    def cut(weights, step):
        if step == stop_at:
            raise Killed

    small = UNet(tiny)
    small.load_state_dict(first_weights)
    step = unet_objective(process, encode, world, 2, IMAGE_SHARE, images=4)
    plan = Plan(steps=6, batch=2, lr=2e-3, save_every=2, log_every=1)
    return fit(small, step, plan, folder, on_save=cut, progress=False)


first_weights = UNet(tiny).state_dict()

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    whole = short_run(f"{folder}/whole")
    try:
        short_run(f"{folder}/killed", stop_at=4)             # after step 4, before its checkpoint: step 2 has one
    except Killed:
        print("killed at step 4; the log knows steps", [line["step"] for line in read_log(f"{folder}/killed")])
    saved = torch.load(f"{folder}/killed/checkpoint.pt", weights_only=True)
    print("in the checkpoint of step", saved["step"], "are:", ", ".join(sorted(saved)))
    resumed = short_run(f"{folder}/killed")
same = all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
print("the resumed run made the same weights, to 0.000001:", same)
assert same and saved["step"] == 2

# %% [markdown]
# `fit` must save whatever the next step depends on: the weights, their average, and what the optimizers remember.
# Chance needs no place in the checkpoint. Step n draws it from generators seeded with n, whoever makes that step and
# whenever. And the file is written under another name and then renamed, so that a power cut while saving leaves the
# old one whole. Of six steps the killed run lost two, and made them again.
#
# ## 9 · Going on from the shipped weights
#
# A checkpoint of somebody else's is a place to start from, too. The shipped network knows clips of sixteen frames and
# all of Moving Shapes, but clips of six frames, three a second, it has never seen. Does it take another 100 steps to
# get used to them? We give it a few, with small steps, and again let only the layers that see time learn.

# %%
def go_on(plan, learns=lambda name: True, weights=None, clips=None, album=None):
    """Trains from given weights, by default the shipped ones; returns the weights after it.

    On clips alone, or, if there is an album, on its pictures in about every second step.
    """
    network = UNet(pipe.config.unet)
    network.load_state_dict(pipe.unet.state_dict() | (weights or {}))
    on_clips = unet_objective(process, encode, clips or world, BATCH, image_share=0.0, images=1)
    on_pictures = unet_objective(process, encode, album, BATCH, image_share=1.0, images=4 * BATCH)

    def step(unet, generator, rng):
        still = album is not None and rng.random() < 0.5
        return (on_pictures if still else on_clips)(unet, generator, rng)

    with tempfile.TemporaryDirectory() as folder:
        learnt = fit(network, step, plan, f"{folder}/on", learns=learns)
    return {**network.state_dict(), **learnt}

# %%
careful = go_on(Plan(steps=12, batch=BATCH, lr=1e-3, warmup=6, ema=0.8), learns=sees_time)
for name, weights in {"as shipped": pipe.unet.state_dict(), "12 steps later": careful}.items():
    print("{:15} right of 8: {colour} colours, {motion} motions".format(name, **marks(perform(weights))))

# %% tags=["nbval-check-output"]
changed = {kind: any(not torch.equal(careful[name], value) for name, value in pipe.unet.state_dict().items()
                     if sees_time(name) == kind) for kind in (False, True)}
print("the image half has changed:", changed[False], "- the temporal half:", changed[True])
assert changed == {False: False, True: True}

# %% [markdown]
# A few steps are enough: convolutions and attention along time do not care how many frames there are, and much of what
# it knows of motion holds at another rate. To go on is cheap, to begin is dear.
#
# ### With the whole network, and with pictures
#
# And if the image half learns, too? In our corner there are circles, on black, in four colours. A network that sees
# nothing else may lose the rest. Against this the recipe mixes in pictures, so let us do it at last. We have no clips
# of the rest of the world at this frame rate, but pictures are cheap: here is an album of single frames of
# *everything*, with captions. One run goes on with clips alone, in the other about every second step is a batch from
# the album. (The recipe's 1 in 8 is for long runs. In so few steps it would be a batch or two.)

# %%
class Album:
    """Pictures of all of Moving Shapes, with captions; as latents, (N, 4, 1, h, w)."""

    def __init__(self, count, seed=0):
        rng = random.Random(seed)
        scenes = [sample_scene(rng, 1) for _ in range(count)]
        self.captions = [caption(scene, rng, "en") for scene in scenes]
        parts = render(scenes, num_frames=1, fps=1).split(40)
        self.latents = torch.cat([pipe.autoencoder.encode(to_model(part)) for part in parts])

    batch = Corner.batch


with torch.no_grad():
    album, other_pictures = Album(240), Album(48, seed=1)
plan = Plan(steps=16, batch=BATCH, lr=4e-3, warmup=4, final_lr=0.1, ema=0.8)
went_on = {"as shipped": pipe.unet.state_dict(), "clips alone": go_on(plan), "with pictures": go_on(plan, album=album)}

# %%
def error_in_pictures(weights):
    """The error of these weights about pictures of everything that are not in the album."""
    stage.unet.load_state_dict(weights)
    return sum(errors(partial(stage.unet, temporal=False), other_pictures.latents, other_pictures.captions,
                      times=(400, 900))) / 2


wide = {name: error_in_pictures(weights) for name, weights in went_on.items()}
for name, weights in went_on.items():
    print(f"{name:15} error on the corner's clips {error_of(weights):.2f}, on pictures of everything {wide[name]:.2f}")

# %% tags=["nbval-check-output"]
print("of the rest of the world, more is lost with clips alone:", wide["clips alone"] > 1.1 * wide["with pictures"])
assert wide["clips alone"] > 1.1 * wide["with pictures"]

# %%
def draws(weights):
    """Four pictures of things that are not in our corner, (4, H, W, 3)."""
    stage.unet.load_state_dict(weights)
    return stage(["a cyan star on a white background", "a purple triangle on a grey background",
                  "an orange square on a white background", "a pink star on a grey background"], num_frames=1,
                 sampler="dpm++", num_inference_steps=10, seed=[1, 2, 3, 4], progress=False)[:, 0]


figures.strip([draws(weights) for weights in went_on.values()], frames=4, scale=2, titles=list(went_on),
              alt="Three rows of four pictures; in the middle one a ground and shapes are spoilt by other colours.")

# %% [markdown]
# That is what mixing is for. With clips alone the corner is learned fastest, and on the way the cyan star loses its
# white ground, and green creeps into it and into the triangle. With pictures of everything in between, the run has
# spent only about half of its steps on clips, and has learned less of the corner. But it has lost next to nothing.
# (What is lost without such a remedy, and how little needs to change to learn something new, are questions for chapter
# 12.)
#
# ## 10 · The whole, on disk and back
#
# A trained UNet alone makes no clip. It is one of three networks, and belongs to one tokenizer and one noise schedule.
# `TextToVideo` strings them together, and keeps them together in a folder. We put our student in, save the whole, and
# load it as anybody would.

# %% tags=["nbval-check-output"]
from minit2v.pipeline import TextToVideo

config = replace(pipe.config, name="corner", num_frames=FRAMES, fps=FPS)
ours = TextToVideo(config, pipe.text_encoder, student, pipe.autoencoder)
how = dict(sampler="dpm++", num_inference_steps=10, guidance_scale=3.0, seed=5, progress=False)
with tempfile.TemporaryDirectory() as folder:
    print(sorted(path.name for path in ours.save(folder).iterdir()))
    again = minit2v.load(folder)
    same = bool((again(QUIZ[6], **how).int() - ours(QUIZ[6], **how).int()).abs().max() <= 1)     # of 255
print("the loaded model makes the same clip:", same, tuple(ours(QUIZ[6], **how).shape))
assert same

# %% [markdown]
# From a sentence to a clip it now goes like this, and you have built each arrow in one of eight chapters:
#
# | station | what it is | arrow to the next |
# |---|---|---|
# | a sentence | text | tokenizer, chapter 03 |
# | tokens | (1, 40) whole numbers | text tower, 03 |
# | context, and noise from the seed | (1, 40, 128), (1, 4, F, 8, 8) | UNet, 05 and 07, asked by a sampler, 06 |
# | latents | (1, 4, F, 8, 8) | decoder, 02 |
# | a clip | (F, 64, 64, 3), uint8 | the eye, 01 |
#
# (Writing it down in code is the fourth exercise.) One thing more to try. In its short life as a video model the
# student has read English only. But its text tower and its image half know Chinese. Here is "a big red circle moves
# down" in Chinese, and in English. (If the circles have dark holes, blame the hundred steps: they are few.)

# %%
chinese = ours("一个红色的大圆向下移动", **how)
figures.strip([chinese, ours(QUIZ[3], **how)], scale=2, titles=["the sentence in Chinese", QUIZ[3]],
              alt="Two strips of six frames, one of a Chinese and one of an English sentence, each with a circle.")

# %% [markdown]
# ## 11 · What the original does
#
# What the report says of the training beyond its abstract, we know at **second hand**, from a reader's notes: the
# report itself we could not read. It is marked below by "the notes".
#
# **Start.** ModelScope's UNet begins with the weights of Stable Diffusion 2.1, its temporal layers with zeros at their
# ends (the notes). Its autoencoder and its text tower are finished models as well, and frozen.
#
# **Mixing.** It was trained on image-text pairs and video-text pairs together (abstract): one graphics card in eight
# got pictures from LAION, as clips of one frame, the other seven got clips of sixteen frames from WebVid (the notes).
# The training code that its makers published later, VGen, shows how: a list `frame_lens`, with an entry for each card,
# that begins with a 1. `IMAGE_SHARE = 1 / 8` in the package is that, in time instead of in space. And one more thing
# differs: our pictures leave out the temporal layers, theirs pass through them with a single frame. On one frame, what
# a temporal convolution sees before and after is zeros.
#
# **Loss and times.** The network answers the noise, and its mean squared error counts equally at all times, says the
# released configuration (chapter 04). The times are drawn evenly, as in DDPM (the notes).
#
# **Guidance.** VGen's configuration has `p_zero: 0.1`: one caption in ten is empty, as here, and as in nearly every
# text-to-image model since Ho & Salimans (2022). The released pipeline relies on it with its guidance of 9.
#
# **Steps.** The mini model's plan is in section 7. The notes name AdamW, a rate of 0.00005 and 267,000 steps. That last
# number is on record: VGen goes on from a file that is called `model_scope_0267000.pth`.

# %% [markdown]
# ## 12 · What can go wrong
#
# A network that trains well on the wrong data learns the wrong thing well. Here are three mistakes; you have met the
# fourth, the lazy average, in section 5.
#
# ### Frames in the wrong order
#
# Somebody has a folder of frames, `1.png` to `16.png`, and sorts the names as text:

# %% tags=["nbval-check-output"]
as_text = sorted(range(1, 17), key=lambda number: f"{number}.png")
print(as_text)

# %%
sixteen = render(unseen.scenes[:2])
mixed_up = sixteen[:, torch.tensor(as_text) - 1]
figures.strip([sixteen[0], mixed_up[0]], frames=16, titles=["in order", "sorted as text"],
              alt="Above, a circle that moves evenly; below, the same frames, and the circle jumps back and forth.")

# %% [markdown]
# No error, all frames there, each in itself perfect. A network trained on it would learn these jumps, faithfully. Does
# the loss warn us? We ask the shipped network about both, in the noisier half, where motion is decided:

# %%
def loss_on(clips, texts):
    """The shipped network's mean error on clips (N, F, H, W, 3), at three times."""
    with torch.no_grad():
        latents = pipe.autoencoder.encode(to_model(clips))
    return sum(errors(pipe.unet, latents, texts, times=(500, 700, 900))) / 3


orders = {"in order": sixteen, "sorted as text": mixed_up, "backwards": sixteen.flip(1)}
costs = {name: loss_on(clips, told[:2]) for name, clips in orders.items()}
for name, clips in orders.items():
    readings = [agrees(read(clip), scene)["motion"] for clip, scene in zip(clips, unseen.scenes)]
    print(f"{name:15} error {costs[name]:.2f}   the referee finds the motion: {readings}")

# %% tags=["nbval-check-output"]
print("a trained network is surprised by jumps:", costs["sorted as text"] > 1.2 * costs["in order"])
print("and by time backwards:", costs["backwards"] > costs["in order"])
assert costs["sorted as text"] > 1.2 * costs["in order"] and costs["backwards"] > costs["in order"]

# %% [markdown]
# A *trained* network is surprised. One that is in training has nothing to compare with, its loss simply stays a bit
# higher. So look at the clips that go **in**, as clips, before the first step, and let the referee read some.
#
# ### Pictures as clips that stand still
#
# Pictures are to be mixed in, but somebody's network wants six frames. So the picture is repeated six times, with the
# caption that it has:

# %%
class Frozen(Corner):
    """The same world, but most clips are pictures, shown as long as a clip."""

    def __init__(self):
        self.captions, self.latents = world.captions, world.latents

    def batch(self, rng, size, drop=0.0):
        latents, texts = super().batch(rng, size, drop)
        frame = rng.randrange(FRAMES)
        frozen = latents[:, :, frame:frame + 1].expand_as(latents)               # (B, 4, F, h, w), all frames alike
        return (frozen if rng.random() < 0.8 else latents), texts

# %%
stiff = go_on(Plan(steps=28, batch=BATCH, lr=4e-3, warmup=5, ema=0.9), learns=sees_time, weights=trained,
              clips=Frozen())
lost = perform(stiff)
figures.strip([perform(trained, QUIZ[:1])[0], lost[0]], scale=2,
              titles=["the student", "28 steps later, with pictures as clips"],
              alt="Above, a circle that travels; below, one that hardly moves.")

# %%
def travel(clips):
    """How far the coloured part of each clip travels from the first frame to the last, in pixels, on average."""
    chroma = (clips.amax(-1).int() - clips.amin(-1)).float() ** 2                # (N, F, H, W)
    rows, columns = chroma.sum(3), chroma.sum(2)                                 # (N, F, H), (N, F, W)
    places = [(part * torch.arange(64)).sum(2) / part.sum(2).clamp(min=1) for part in (rows, columns)]
    return torch.stack(places)[:, :, [0, -1]].diff(dim=2).norm(dim=0).mean().item()


far = {"the student": travel(perform(trained)), "pictures as clips": travel(lost)}
print("pixels travelled:", {name: round(way) for name, way in far.items()})

# %% tags=["nbval-check-output"]
print("the student's clips travel clearly further:", far["the student"] > 1.2 * far["pictures as clips"])
assert far["the student"] > 1.2 * far["pictures as clips"]

# %% [markdown]
# The sentences said "moves", and four in five of what was shown stood still. So the network has learned that to stand
# still is a way of moving. This is why in `unet_objective` pictures go past the temporal layers: **what has no time
# must not teach time**. In data from the web the same happens unseen: many a "video" there is a picture with music.
#
# ### A fresh optimizer, at full speed
#
# Going on from trained weights, as in section 9, somebody takes a learning rate more than three times that of
# section 4, and no warm-up. Eight steps are enough:

# %%
careless = go_on(Plan(steps=8, batch=BATCH, lr=2e-2, warmup=0, final_lr=1.0, ema=0.5))
both = {"12 careful steps": careful, "8 careless steps": careless}
figures.strip([perform(weights, QUIZ[:1])[0] for weights in both.values()], scale=2, titles=list(both),
              alt="Above, a red circle in six frames; below, something that is no circle any more.")

# %%
marked = {name: error_of(weights) for name, weights in {"as shipped": pipe.unet.state_dict(), **both}.items()}
print("error on clips it has not seen:", ", ".join(f"{name} {value:.2f}" for name, value in marked.items()))

# %% tags=["nbval-check-output"]
worse = marked["8 careless steps"] > 1.2 * marked["as shipped"]
print("eight careless steps make the shipped network worse than it was:", worse)
assert worse

# %% [markdown]
# Hours of training are gone in seconds. The optimizer's memory was empty, its first steps were large, and they went in
# the direction of eight clips. Hence the warm-up, and hence the optimizers in the checkpoint: a run that goes on
# *without* them begins with such steps each time.
#
# The symptoms, in short:
#
# | what you see | where to look |
# |---|---|
# | the loss falls, the samples stay as they were | the average: its decay is too close to 1 for so few steps |
# | objects jump or flicker, always in the same way | the order of the frames, as the network gets them |
# | everything stands still | pictures shown as clips; clips that are pictures |
# | guidance makes it worse | no empty captions in training |
# | fine after hours, rubble after a restart | the optimizers' state, the warm-up |

# %% [markdown]
# ## Recap
#
# 1. Draw first, then move: image weights, temporal layers with zeros, clips with pictures among them.
# 2. Pictures leave the temporal layers out. What has no time must not teach time.
# 3. One caption in ten is empty, for guidance; late times are drawn more often, for there motion is decided.
# 4. What performs is an average of the weights that remembers about 1 / (1 - d) steps, fewer than the run has.
# 5. A checkpoint is all that the next step depends on. The loss says nothing of motion: look, and let somebody count.
#
# What you now own: a text-to-video model, trained by you, and the run that makes a larger one. How good is it? "At
# least 4 of 8" is a poor answer. Chapter 09 finds better ones.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/08_text_to_video](../exercises/08_text_to_video.ipynb).
#
# 1. **An average that forgets** (build). The moving average of the weights, with the smaller decay of the first steps.
# 2. **Up, then down** (build). Warm-up and half a cosine.
# 3. **Other people's captions** (repair). A batch of pictures out of clips, in which two faults mix up the captions.
# 4. **From a sentence to a clip** (build). The whole pipeline by hand, and the same clip as `pipe` makes.
# 5. **How many pictures** (explore). Predict the share of pictures among all that the network has seen.
#
# And without a check, for an evening: let the whole student learn, with pictures among its clips, and compare the
# marks. Add a fifth direction to the corner after the training, and see how many steps it takes.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The start from an image model,
#   pictures and clips in one training.
# - U. Singer et al., *Make-A-Video: Text-to-Video Generation without Text-Video Data*, 2022, arXiv:2209.14792. Drawing
#   learned from captioned pictures, motion from clips without a word.
# - J. Ho et al., *Video Diffusion Models*, 2022, arXiv:2204.03458. Section 3: pictures and clips, jointly.
# - J. Ho and T. Salimans, *Classifier-Free Diffusion Guidance*, 2022, arXiv:2207.12598. Caption dropout.
# - I. Loshchilov and F. Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, 2016, arXiv:1608.03983. The
#   half cosine.
# - T. Karras et al., *Analyzing and Improving the Training Dynamics of Diffusion Models*, 2023, arXiv:2312.02696. How
#   long an average should remember.
# - A. Blattmann et al., *Stable Video Diffusion*, 2023, arXiv:2311.15127. Images, clips, good clips: three stages, and
#   how to find clips that stand still.
