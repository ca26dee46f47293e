# %% [markdown]
# # 00 · A first clip
#
# In this course you rebuild a system that turns a sentence into a short video, part by part, until no number in it is
# a mystery. But nobody takes an engine apart before having driven the car. So in this chapter you drive.

# %% [markdown]
# ## What you will build
#
# Nothing yet. You press a button and look at what comes out; then you follow one sentence on its way through the
# machine, from words to numbers, from noise to a clip, and watch the clip come out of the noise.
#
# Here is the whole thing in one cell. Put a sentence of your own between the quotes and run it.

# %%
import torch

import minit2v
from minit2v.course import figures, widgets

pipe = minit2v.load()                        # the mini model comes with the package; nothing is downloaded
prompt = "a red circle moves right"          # your sentence
clip = pipe(prompt, sampler="dpm++", num_inference_steps=15, seed=0)
figures.play(clip, alt=f"The clip that the model made of the prompt: {prompt}.")

# %% [markdown]
# These two seconds of video did not exist a moment ago. Your processor has just computed them. Laid out on paper as a
# *film strip*, with time running from left to right:

# %%
figures.strip(clip, scale=2, alt=f"Eight of the sixteen frames, side by side, of the clip: {prompt}.")

# %% [markdown]
# **You need** to know what a tensor is and what its shape says. No GPU, no internet, no knowledge of video.
#
# **It takes** about 15 minutes to read and play with. All cells together run in about a minute.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | tokens of a prompt, padding included | 40 |
# | numbers that stand for the prompt | 5,120 |
# | numbers of noise that a clip starts from | 4,096 |
# | numbers in the finished clip | 196,608, which is 48 times as many |
# | times that the sampler asks the network | 15 |

# %% [markdown]
# ## 1 · Play
#
# ### The seed
#
# Make the clip again, and you get the same clip, down to the last bit. All chance in it comes from a single whole
# number, the *seed*, from which all noise is drawn.

# %% tags=["nbval-check-output"]
how = {"sampler": "dpm++", "num_inference_steps": 15, "progress": False}
print("the same clip:", torch.equal(pipe(prompt, seed=0, **how), clip))

# %% [markdown]
# With other seeds, the same sentence becomes other clips. A list of prompts makes several at once.

# %%
four = pipe([prompt] * 4, seed=[1, 2, 3, 4], **how)          # (4, F, H, W, 3)
figures.play(four, scale=2, alt=f"Four clips, from the seeds 1 to 4, side by side, of the prompt: {prompt}.")

# %% [markdown]
# The sentence says what must be there. Whatever it leaves open (where, how big, on which ground) the noise decides.

# %% [markdown]
# ### In Chinese
#
# The mini model learnt its sentences in two languages. This one says the same as ours does in English.

# %%
chinese = "一个红色的圆向右移动"
figures.strip([pipe("a red circle moves right", seed=0, **how), pipe(chinese, seed=0, **how)],
              titles=["in English", "in Chinese"], scale=2,
              alt="Two film strips from the same seed: one of the English prompt, one of the Chinese.")

# %% [markdown]
# ### Your turn
#
# The mini model's world is small: coloured shapes that move. It knows these words, and a few more ways to say them.
#
# | | |
# |---|---|
# | colours | red, orange, yellow, green, cyan, blue, purple, pink |
# | shapes | circle, square, triangle, star; small or big |
# | motions | moves right, left, up, down, up right, down left, ...; slowly or quickly |
# | | grows, shrinks, spins, bounces, moves in a circle, stays still |
# | grounds | on black, on grey, on white |
#
# Change the fields and press *Run*. A clip takes a few seconds.

# %%
def make(prompt, steps, seed):
    made = pipe(prompt, sampler="dpm++", num_inference_steps=steps, seed=seed, progress=False)
    return figures.play(made, alt=f"The clip from seed {seed} of the prompt: {prompt}.")


widgets.panel(make, prompt="a big yellow square moves slowly up on black", steps=(15, 1, 50), seed=0)

# %% [markdown]
# ## 2 · The map
#
# What happens between the sentence and the clip? It passes through five stations, and at each of them it is a tensor:
#
# ```
# prompt ─ tokenizer ─▶ token ids ─ text encoder ─▶ context
#                                                  │
#                                                  ▼
# seed ─ random numbers ─▶ noise ─ sampler, which asks the UNet ─▶ latents ─ decoder ─▶ clip
# ```
#
# We walk along it. Each station has a chapter of its own later, so nothing needs to be understood to the bottom now;
# look at the shapes and at the pictures.

# %% [markdown]
# ### Station 1: words become numbers
#
# A network computes with numbers. The *tokenizer* cuts the sentence into pieces, *tokens*, and looks up the number of
# each in a list.

# %%
ids = pipe.tokenizer([prompt])                               # (1, L): one sentence of L tokens
for i in ids[ids > 0].tolist():
    print(f"{i:4}", pipe.tokenizer.decode([i]))

# %% tags=["nbval-check-output"]
print(tuple(ids.shape), "padded with zeros:", ids[0, -1].item() == 0)
assert ids.shape == (1, 40)

# %% [markdown]
# First comes a token that says *here it starts*, then the words, then one that says *here it ends*. Zeros fill the
# rest, because a tensor wants all its rows equally long. How the list of pieces is learnt, chapter 03 shows.
#
# ### Station 2: numbers become meaning
#
# The number of a word says nothing about it. The *text encoder*, a network of its own, turns each token into 128
# numbers that do: it has learnt them by matching sentences with clips. The result is the *context*.

# %% tags=["nbval-check-output"]
with torch.no_grad():                                        # we use the networks and do not train them
    context = pipe.encode_text([prompt])                     # (1, L, D)
print(tuple(context.shape), f"{context.numel():,} numbers")
assert context.numel() == 5_120

# %%
figures.stations([("context", tuple(context.shape), context[0])], [],
                 alt="40 rows of 128 coloured cells: each word has its own row, the padding is striped.")

# %% [markdown]
# In this and the next pictures each number is a coloured cell: orange above zero, purple below, white near zero. The
# upper rows belong to the words. Below stands the padding: its first rows still differ a little, and soon each row is
# like the one above it.
#
# ### Station 3: noise
#
# Now for the other end of the map. A clip does not begin with a black screen. It begins with *noise*: numbers drawn
# at random, most of them between -2 and 2. The seed is the number that the random generator starts from.

# %% tags=["nbval-check-output"]
noise = torch.randn(1, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0))          # (B, C, F, h, w)
print(tuple(noise.shape), f"{noise.numel():,} numbers")
print("the same clip from it:", torch.equal(pipe(prompt, latents=noise, **how), clip))
assert noise.numel() == 4_096

# %% [markdown]
# We drew it ourselves and handed it in, and it gave the same clip: there is no other chance in the system. The shape
# says: one clip, 4 channels, 16 frames, each with 8 x 8 cells. Here are all of the 4,096 numbers, with the 16 frames
# side by side and the 4 channels below one another. (`rearrange` turns the axes as its pattern says; chapter 01 has
# more of it.)

# %%
from einops import rearrange


def flat(latents):
    """(1, C, F, h, w) -> (C h, F w): every number of it in one picture."""
    return rearrange(latents, "1 c f h w -> (c h) (f w)")


figures.stations([("noise", tuple(noise.shape), flat(noise))], [],
                 alt="A field of 32 by 128 cells of random colours, in which there is nothing to see.")

# %% [markdown]
# ### Station 4: noise becomes latents
#
# This is the heart of it. A network, the *UNet*, is shown the noise and the context, and is asked: *if this were a
# clip under a layer of noise, which clip would it be?* Its first answer is poor. So the *sampler* takes a small step in
# the direction of the answer, which leaves a little less noise, and asks again. And again, 15 times.
#
# We may look over its shoulder: after each step, the pipeline hands the latest answer to a function of ours.

# %% tags=["nbval-check-output"]
guesses = []
clip = pipe(prompt, seed=0, on_step=lambda i, guess: guesses.append(guess), **how)
print(len(guesses), "guesses, each", tuple(guesses[0].shape))
assert len(guesses) == 15

# %%
figures.stations([("last guess", tuple(guesses[-1].shape), flat(guesses[-1]))], [],
                 alt="The last guess, all its numbers: 16 blocks with a pattern that moves.")

# %% [markdown]
# Compare with the noise. In each frame there is a pattern now, clearest in the two lower bands, and it moves
# a little from frame to frame. (The second band is blank: the model makes no use of that channel.) These numbers are
# called *latents*. They are not yet pixels: each of the 8 x 8 cells describes a patch of 8 x 8 pixels in only 4
# numbers.
#
# ### Station 5: latents become frames
#
# Unfolding those descriptions is the *decoder's* work. It was trained beforehand together with an encoder, which
# squeezes frames into latents. It answers with colours from -1 to 1; we bring them to bytes from 0 to 255.

# %%
def watch(latents):
    """Latents (1, 4, F, h, w) -> a clip (F, H, W, 3) of bytes."""
    with torch.no_grad():
        frames = pipe.autoencoder.decode(latents)            # (1, 3, F, H, W), -1 to 1
    frames = (frames / 2 + 0.5).clamp(0, 1) * 255
    return rearrange(frames.round().to(torch.uint8), "1 c f h w -> f h w c")

# %% tags=["nbval-check-output"]
last = watch(guesses[-1])
print(tuple(last.shape), f"{last.numel():,} numbers,", last.numel() // noise.numel(), "times as many as the noise")
print("this is our clip:", (last.int() - clip.int()).abs().max().item() <= 1)
assert last.numel() == 196_608

# %% [markdown]
# ### The map, with your own sentence on it

# %%
stops = [("prompt", "", prompt if prompt.isascii() else "(your sentence)"),
         ("token ids", tuple(ids.shape), ids.float()), ("context", tuple(context.shape), context[0]),
         ("noise", tuple(noise.shape), flat(noise)), ("latents", tuple(guesses[-1].shape), flat(guesses[-1])),
         ("clip", tuple(clip.shape), rearrange(clip[::2], "f h w c -> h (f w) c"))]
ways = ["tokenizer", "text encoder", "meanwhile, the seed makes noise", "the sampler asks the UNet 15 times", "decoder"]
figures.stations(stops, ways, alt="The five stations below one another, each as a picture of its tensor.")

# %% [markdown]
# ## 3 · Denoising, as a film
#
# We kept all 15 guesses, and the decoder can show every one of them. In the strips below, each row is one guess at
# the whole clip.

# %%
films = [watch(guess) for guess in guesses]
shown = (1, 2, 4, 6, 10, 15)
figures.strip([films[i - 1] for i in shown], titles=[f"step {i}" for i in shown],
              alt="Six strips, from step 1 to step 15: undecided blobs at first, then a clip with clear edges.")

# %% [markdown]
# Now the same with a handle. Move the slider and see how the clip comes into being.

# %%
pictures = [figures.play(film, alt=f"The guess after step {i + 1} of 15.") for i, film in enumerate(films)]
widgets.slider(pictures, [f"{i} of 15" for i in range(1, 16)], name="step", start=4)

# %% [markdown]
# The first guesses are undecided. With so much noise about, many clips are possible, and the answer is a mixture of
# them: blobs here and there, in colours that nobody asked for, and from frame to frame not the same. Within a few
# steps it makes up its mind. What is large is settled first: the place, and with it the motion. The ground and the
# colours take a little longer. The outline and its edges come last. Let one single frame run through the 15 steps:

# %%
middle = torch.stack([film[8] for film in films])            # (15, H, W, 3): one frame, 15 steps
figures.play(middle, fps=5, alt="Frame 8 over the steps: out of an undecided blob comes a picture with clear edges.")

# %% [markdown]
# How far is each guess from where it will end? We measure it as the mean difference to the final clip, in steps of
# brightness from 0 to 255.

# %%
away = [(film.float() - clip.float()).abs().mean().item() for film in films]
figures.plot({"difference to the clip": away}, x=torch.arange(1, 16), xlabel="step", ylabel="levels of 255",
             alt="A curve that falls from the first step to the last, where it reaches zero.")

# %% tags=["nbval-check-output"]
print("three quarters of the way lie in the first third of the steps:", away[4] < away[0] / 4)
assert away[14] < 1

# %% [markdown]
# Most of the way is covered early, and the rest is polish. That raises a question to which chapter 06 has answers:
# must it be 15 steps?

# %% [markdown]
# ## 4 · How good is it?
#
# Look at clips one by one, and you will forgive them a lot. So this course has a *referee*: a program that gets the
# pixels of a clip and nothing else, and says which colour, shape and motion it finds there. You will write it in
# chapter 01. Here it reads eight clips; compare each line with its prompt.

# %%
prompts = ["a blue square moves left", "a green star spins", "a pink triangle grows", "an orange circle bounces",
           "a purple square moves up right on white", "a small cyan circle shrinks slowly on black",
           "a red star moves in a circle and a blue triangle stays still", "一个黄色的方块向下移动"]
made = pipe(prompts, seed=0, **how)

# %%
from minit2v.referee import read

for wanted, eye in zip(prompts, made):
    found = " and ".join(f"{seen.colour} {seen.shape}, {seen.motion}" for seen in read(eye)) or "unreadable"
    print(f"{wanted}\n    {found}")

# %%
figures.play(list(made[:4]), scale=2, alt="The first four of these clips, side by side.")

# %%
figures.play(list(made[4:]), scale=2, alt="The last four of these clips, side by side.")

# %% [markdown]
# (The referee names things in an order of its own, says "orbit" for "moves in a circle", and "unreadable" where it
# finds nothing that it can name; it does not report size, speed or ground.) Do not expect eight out of eight. The
# model that ships with this notebook is small, and it learnt on two cores of a processor. Where a line is wrong, look
# at the clip above before you blame either side: a star that frays as it spins may be read as a square, a bounce
# that turns in a bow as an orbit, and a star that is lost for some frames may not be named at all. Chapter 08 trains
# such a model, chapter 09 measures it on many clips and tells luck from skill.

# %% [markdown]
# ## 5 · What the original does
#
# The system that we rebuild is ModelScope text-to-video, published in 2023. Its machine has the same stations with the
# same networks between them. Here are both side by side, out of the two configurations that the package knows:

# %% tags=["nbval-check-output"]
def tensors(config):
    """The shape at each station, for one prompt."""
    side = config.height // config.autoencoder.downscale
    return {"token ids": (1, config.text.context_length),
            "context": (1, config.text.context_length, config.text.width),
            "noise": (1, 4, config.num_frames, side, side),
            "clip": (config.num_frames, config.height, config.width, 3)}


mini, released = tensors(minit2v.mini()), tensors(minit2v.modelscope_1_7b())
for station in mini:
    print(f"{station:12}{str(mini[station]):20}{released[station]}")

# %% [markdown]
# On the left the mini model, on the right the released one. Its code (the class `TextToVideoSynthesis` in ModelScope's
# `text_to_video_synthesis_model.py`) goes the same way in the method `forward`: encode the prompt and an empty prompt,
# draw `torch.randn` of the shape above, walk 50 steps with the sampler DDIM, decode. It sets no seed, so each call
# gives another clip. The released networks have 1.8 billion numbers to learn, their *parameters*. (The model is known
# as the one with 1.7 billion; chapter 10 counts, and finds where that number comes from.) And ours?

# %% tags=["nbval-check-output"]
parts = {"text encoder": pipe.text_encoder, "UNet": pipe.unet, "autoencoder": pipe.autoencoder}
counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
print(counts, f"together {sum(counts.values()) / 1e6:.1f} million")

# %% [markdown]
# That is why yours runs on a laptop. In chapter 10 you load the released weights into the very same classes.

# %% [markdown]
# ## 6 · What can go wrong
#
# ### A word that it never saw
#
# Ask for an elephant.

# %%
elephant = pipe("a grey elephant dances", seed=0, **how)
figures.strip(elephant, scale=2, alt="What the model draws for a grey elephant that dances: no elephant.")

# %% [markdown]
# No error, and no elephant. A network always answers, and it can only answer with what it has seen. Nothing in the
# clip itself tells you that it was a guess. So the pipeline looks at the words beforehand and warns:

# %% tags=["nbval-check-output"]
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pipe("a grey elephant dances", num_inference_steps=1, progress=False)
(told,) = [str(warning.message) for warning in caught if "never saw" in str(warning.message)]
print(told.partition(".")[0])

# %% [markdown]
# The released model has seen millions of captions from the web, elephants among them. It has limits of its own, which
# nobody has listed; chapter 11 looks for some.
#
# ### Too few steps
#
# Each step costs time, so why not take fewer of them? Here is the same noise with 1, 2, 5 and 15 steps.

# %%
few = {steps: pipe(prompt, seed=0, **(how | {"num_inference_steps": steps})) for steps in (1, 2, 5, 15)}
figures.strip(list(few.values()), titles=[f"steps: {steps}" for steps in few],
              alt="Four strips, with 1, 2, 5 and 15 steps: with one step there are only undecided blobs.")

# %% [markdown]
# For a prompt as easy as this, five steps come close to fifteen. Even two give the right clip, only a little
# more pointed in its outline, with a faint smudge of purple beside it at first. With one step you get the first guess,
# a mixture of all that is possible, and nobody asks again. There is no error message this time either. It is the rule
# in this field: **what is wrong runs without complaint, so look at what comes out.**

# %% [markdown]
# ## Recap
#
# 1. A prompt becomes token ids, then a context: 128 numbers for each of 40 tokens.
# 2. A seed becomes noise of the shape (1, 4, 16, 8, 8), and that is all the chance there is.
# 3. The sampler asks the UNet 15 times which clip is hidden in the noise, and each time goes a step closer.
# 4. A decoder makes frames of the latents, 48 times as many numbers.
# 5. The released model goes the same way with larger tensors.
#
# What you now own: a map. Every chapter from here on is a place on it.

# %% [markdown]
# ## Exercises
#
# To try in a cell of your own, right here. (From chapter 01 on, the exercises have a notebook with checks and hints.)
#
# 1. **Its strong and its weak side.** Find a prompt that succeeds from all of ten seeds, and one that fails from all.
# 2. **A walk between two clips.** Mix the noises of two seeds, cos(a) of one and sin(a) of the other, and let a go
#    from 0 to a quarter turn. Which clips lie between?
# 3. **Mend it.** A script calls `torch.manual_seed(0)` at its top and draws `latents` with `torch.randn` for each clip.
#    Somebody adds a line, and all later clips are other ones. Find out why, and repair it.
# 4. **How few?** Write a loop that finds the smallest number of steps from which the referee reads your clip right.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The original.
# - J. Ho, A. Jain and P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv:2006.11239. Where asking again
#   and again comes from; figure 6 shows guesses like ours.
# - R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022, arXiv:2112.10752. Why the
#   denoising happens in latents.

# %% [markdown]
# ## The road from here
#
# These are all chapters, with the minutes that they take a reader. You can also jump: each one loads what earlier ones
# have built. `README.md` beside the notebooks has the table of symbols and the glossary.

# %%
from minit2v.course.syllabus import CHAPTERS

for chapter in CHAPTERS:
    print(f"{chapter.name:22}{chapter.minutes:4} min   {chapter.builds}")
print(f"{'':22}{sum(chapter.minutes for chapter in CHAPTERS) / 60:4.0f} hours in all")
