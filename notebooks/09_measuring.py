# %% [markdown]
# # 09 · Measuring
#
# "Our model reaches an FVD of 550." Is that good? Would it be good tomorrow, on another machine, with half as many
# clips? In this chapter you build the numbers by which video models are judged, and you put each of them to the test:
# what does it say of real clips, of broken ones, of a picture that stands still? Some of them are fooled so easily
# that you will read tables of results differently afterwards.

# %% [markdown]
# ## What you will build
#
# Let us begin with a contest. Two contributors hand in the same clips. Well, not quite the same.

# %%
import math
import random
import tempfile
from collections.abc import Callable

import minit2v
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from minit2v import frechet, judge, metrics
from minit2v.captions import caption
from minit2v.course import figures, widgets
from minit2v.data import to_model
from minit2v.metrics import ATTRIBUTES, chance, check_clips, judging_scenes
from minit2v.pipeline import TextToVideo
from minit2v.referee import agrees, read
from minit2v.video import load as load_clip
from minit2v.video import to_uint8
from minit2v.world import Scene

torch.set_grad_enabled(False)                                # nothing is trained in this chapter
pipe = minit2v.load()

# %%
scenes = judging_scenes(1, "train", 48)                      # scenes that no training has seen
captions = [caption(scene, random.Random(i), "en") for i, scene in enumerate(scenes)]
real = metrics.draw(scenes)                                  # (48, 16, 64, 64, 3) uint8
frozen = real[:, 8:9].expand_as(real).contiguous()           # the ninth frame, sixteen times
figures.play([real[2], frozen[2]], alt="Left, a clip in which something moves; right, one of its frames, at rest.")

# %% tags=["nbval-check-output"]
for name, clips in {"real clips": real, "frozen pictures": frozen}.items():
    scores = metrics.flicker(clips).mean(), metrics.smoothness(clips).mean()
    print(f"{name:16} flicker score {scores[0]:.3f}, smoothness {scores[1]:.3f}")

# %% [markdown]
# Both scores are built like those in wide use, and in both 1 is the best there is. *Flicker* asks how much the pixels
# change from one frame to the next, *smoothness* how evenly the object travels, and the less there is of change, or of
# unevenness, the higher is the score. The winner, with full marks, is the picture that does not move.
#
# **You need** the referee of chapter 01, the latents of chapter 02, and clips from the model that chapter 08 trained.
# Of mathematics, means, variances and the covariance matrix.
#
# **It takes** about 60 minutes to read and play with. All cells together run in about two minutes; most of that is the
# mini model making clips.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | chance of guessing colour, shape and motion of a clip | 0.2 % |
# | 84 right of 100, and where the truth may lie | from 76 % to 90 % |
# | our Fréchet distance against the textbook's formula | equal to 0.000001 |
# | distance of 48 clips from 48 others of the very same kind | far above 0 |
# | ten times as many of them | divides that by about 10 |

# %% [markdown]
# ## 1 · Counting what is right
#
# The most honest number is the simplest. Show a clip to the referee, and count: is the colour right, the shape, the
# motion, and all three? A share of right answers needs no explanation, *if it does not stand alone*. Beside it belong
#
# - **chance**: what guessing would reach,
# - **the floor**: what clips reach that cannot be right, here real clips with their frames shuffled,
# - **the ceiling**: what cannot be passed. Our model lives in latents, so it can be no better than real clips after a
#   passage through the autoencoder.

# %%
# from minit2v.metrics import accuracy

# %%
# from minit2v.metrics import shuffled

# %%
# from minit2v.metrics import through_autoencoder

# %% [markdown]
# And the model itself: 32 clips, of the first 32 captions.

# %%
made = metrics.generate(pipe, captions[:32], num_inference_steps=6, sampler="dpm++")         # (32, 16, 64, 64, 3)
ceiling = through_autoencoder(pipe, real[:32])
figures.strip([real[4], ceiling[4], made[4], shuffled(real)[4]], scale=2, frames=8,
              titles=["real: " + captions[4], "through the autoencoder", "the model's, of this caption", "shuffled"],
              alt="Four strips: a real clip, the same after the autoencoder, the model's own, and shuffled frames.")

# %%
lots = {"chance": chance(), "shuffled": accuracy(shuffled(real), scenes), "the model": accuracy(made, scenes[:32]),
        "through the autoencoder": accuracy(ceiling, scenes[:32]), "real": accuracy(real, scenes)}
table = torch.tensor([[100 * row[what] for what in ATTRIBUTES] for row in lots.values()])
names = [name.removeprefix("through the ") for name in lots]
figures.heat(table, values=True, digits=0, rows=names, columns=list(ATTRIBUTES), limits=(0, 100), size=4.2,
             alt="Per cent right in five rows, from chance, near 0, over the model's to real clips, near 100.")

# %% tags=["nbval-check-output"]
print(f"by chance all three are right in {100 * chance()['all']:.1f} % of the clips")
print("shuffled is near chance in motion:", lots["shuffled"]["motion"] < 0.25)
print("the model is between floor and ceiling:",
      lots["shuffled"]["all"] < lots["the model"]["all"] <= lots["through the autoencoder"]["all"])
assert lots["shuffled"]["all"] < lots["the model"]["all"] <= lots["through the autoencoder"]["all"]
assert lots["real"]["all"] >= 0.97 and round(100 * chance()["all"], 1) == 0.2

# %% [markdown]
# The gap between the model and the ceiling is the model's fault. The gap between the ceiling and real clips is the
# autoencoder's, and the gap between real clips and 100 is the referee's own. (Here these two are nothing, or next to
# it.) A table that shows only the model's row mixes all three. And the model's row is of 32 clips only: each number in
# it may be off by ten points or so, as the next section computes.
#
# One row is strange. Shuffled clips have all their pictures, each with its colour and its shape. Why then is the colour
# wrong in three of four? Because the referee follows an object from frame to frame. Where it cannot, it says nothing,
# and nothing is wrong in every column. And in which clips can it still?

# %% tags=["nbval-check-output"]
followed = {scene.things[0].motion for clip, scene in zip(shuffled(real), scenes) if agrees(read(clip), scene)["all"]}
print("motions that survive any order of the frames:", sorted(followed))

# %% [markdown]
# Where a thing stays in its place, or spins there, any order will do. That is why the floor is a little above chance.

# %% [markdown]
# ## 2 · How sure?
#
# The 32 clips are few. Had we drawn 32 others, how different could the number be? There are two ways to answer.
#
# **A formula.** For a share $p$ of $n$ trials Wilson (1927) gives an interval that holds the truth in 95 cases of 100.
# With $z = 1.96$ its middle, and half of its width, are
#
# $$\frac{p + z^2/2n}{1 + z^2/n} \qquad\text{and}\qquad
#   \frac{z}{1 + z^2/n}\,\sqrt{\frac{p\,(1-p)}{n} + \frac{z^2}{4 n^2}}$$

# %%
# from minit2v.metrics import interval

# %%
# from minit2v.metrics import wilson

# %% tags=["nbval-check-output"]
for count in (32, 100, 1000, 10000):
    low, high = wilson(0.84, count)
    print(f"84 % of {count:6,} clips: from {100 * low:.1f} to {100 * high:.1f} %")
print("none of 100 clips: from {:.1f} to {:.1f} %".format(*(100 * end for end in wilson(0.0, 100))))
assert [round(100 * end) for end in wilson(0.84, 100)] == [76, 90]

# %% [markdown]
# The middle is not the share itself but a little nearer to one half, so the interval never leaves the scale. That is
# why it is written by its two ends. A "0 ± 2 %" would promise less than 2 % where the truth may be nearly 4.

# %% [markdown]
# **Drawing again.** A formula exists for shares and means. For other numbers we need something that always works, and
# that is the **bootstrap** (Efron 1979). The sample is all we have, so let it stand for the world: draw from it as many
# clips as it has, with repetition, and compute the number anew. Do this a thousand times. As much as the thousand
# numbers vary, ours might have varied.

# %%
# from minit2v.metrics import bootstrap

# %%
answers = torch.tensor([float(agrees(read(clip), scene)["all"]) for clip, scene in zip(made, scenes)])
print(f"the model: {100 * answers.mean():.0f} % right")
for name, (low, high) in {"formula": wilson(answers.mean().item(), 32), "bootstrap": bootstrap(answers)}.items():
    print(f"{name:9} from {100 * low:.0f} % to {100 * high:.0f} %")

# %% [markdown]
# They agree, more or less. Not near the ends of the scale, though: if all 32 are right, each draw is all right too,
# and a bootstrap says "from 100 to 100". So for shares take the formula.
#
# Does a bootstrap tell the truth? On real life one cannot check it. In a world of coins one can: let 84 % of all clips
# be right, take 32 of them, and see how often the interval from these holds the 84 %.

# %% tags=["nbval-check-output"]
coins = (torch.rand(400, 32, generator=Generator().manual_seed(0)) < 0.84).float()           # 400 samples of 32
held = [low <= 0.84 <= high for low, high in (bootstrap(sample, draws=200) for sample in coins)]
print(f"the truth is in {sum(held) / 4:.0f} of 100 intervals")
assert 0.85 < sum(held) / 400 < 0.99

# %% [markdown]
# A little less often than promised, as is usual with small samples. But the message is clear: **of 32 clips, a
# difference of five per cent is nothing**. To tell 84 from 89 you need hundreds.

# %% [markdown]
# ## 3 · A distance between two clouds
#
# The referee knows our world. Nobody has a referee for real video. What is done instead: a network that has been
# trained for something else turns each clip into a row of numbers, its *features*. Real clips are a cloud of points in
# the space of features, generated ones another. If the model is good, the clouds lie on each other.
#
# How far apart are two clouds? Each is taken for a Gaussian. In one dimension a Gaussian is a mean $m$ and a spread
# $s$, and the **Fréchet distance** of two of them is
#
# $$d^2 = (m_a - m_b)^2 + (s_a - s_b)^2$$
#
# It is what it costs to push the one heap of sand into the shape of the other, if a grain costs the square of its way.
# We can watch that: order both samples, and carry the smallest to the smallest, the next to the next.

# %% tags=["nbval-check-output"]
generator = Generator().manual_seed(0)
a = 1 + 0.5 * torch.randn(100_000, generator=generator)
b = 3 + 2.0 * torch.randn(100_000, generator=generator)
carried = (a.sort().values - b.sort().values).square().mean()
formula = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
print(f"carried grain by grain: {carried:.1f}, the formula: {formula:.1f}")

# %% [markdown]
# In D dimensions the means are vectors $\mathbf{m}$ and the spreads become covariance matrices $S$, (D, D). The square
# of the difference of spreads, $s_a^2 + s_b^2 - 2 s_a s_b$, becomes
#
# $$d^2 = \lVert \mathbf{m}_a - \mathbf{m}_b \rVert^2 + \mathrm{tr}\,S_a + \mathrm{tr}\,S_b
#   - 2\,\mathrm{tr}\,(S_a S_b)^{1/2}$$
#
# This is all of FID (images) and FVD (videos): this formula, on the features of some network. (What everybody calls a
# distance is its *square*.)

# %%
# from minit2v.frechet import gaussian

# %%
# from minit2v.frechet import between

# %% [markdown]
# The line to look at is `middle`. The root of $S_a S_b$ is awkward, since that matrix is not symmetric. But
# $S_a^{1/2} S_b\, S_a^{1/2}$ is, it has the same eigenvalues, and the trace of a root is the sum of the roots of the
# eigenvalues. The textbook's way, with the awkward matrix, as a test:

# %% tags=["nbval-check-output"]
x, y = torch.randn(2, 500, 16, generator=generator).double() @ torch.randn(16, 16, generator=generator).double()
(mean_x, cov_x), (mean_y, cov_y) = gaussian(x), gaussian(0.5 + 2 * y)
eigenvalues = torch.linalg.eigvals(cov_x @ cov_y)            # complex numbers, by rounding
textbook = (mean_x - mean_y).square().sum() + (cov_x + cov_y).trace() - 2 * eigenvalues.sqrt().sum().real
print("equal:", abs(between(mean_x, cov_x, mean_y, cov_y) / textbook - 1).item() < 1e-6)
assert abs(between(mean_x, cov_x, mean_y, cov_y) / textbook - 1) < 1e-6

# %% [markdown]
# ### Whose features?
#
# FID takes the 2,048 features of Inception, which was trained to name photographs. FVD takes 400 of I3D, trained to
# name what people do in videos. Our clips would look all alike to them. So the package has a small network of its own,
# the *judge*: 3-D convolutions, trained on drawn clips to tell colours, shapes and motions. Before the answers stand
# **32 features**, and those we take. It has never seen a generated clip. The Fréchet distance on these features is no
# FVD. To keep them apart we call it the **course Fréchet distance**.

# %%
features = {"real": judge.features(real), "frozen": judge.features(frozen), "shuffled": judge.features(shuffled(real))}
others = metrics.draw(judging_scenes(1, "train", 48, seed=1))                    # as many more real clips
features["other real"] = judge.features(others)
print({name: tuple(found.shape) for name, found in features.items()})

# %%
def cloud(lots, alt):
    """Sets of features, name -> (N, D), seen along the two directions in which the first of them varies most."""
    first = next(iter(lots.values()))
    _, _, directions = torch.linalg.svd(first - first.mean(0), full_matrices=False)          # (D, D)
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    panel = figure.subplots()
    for (name, lot), colour, mark in zip(lots.items(), figures.LINES, "os^D"):
        seen = (lot - first.mean(0)) @ directions[:2].T                                       # (N, 2)
        panel.plot(seen[:, 0], seen[:, 1], mark, markersize=3, color=figures.PALETTE[colour], label=name)
    panel.set(xlabel="first axis of the real clips", ylabel="second axis")
    panel.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))                     # beside the points
    return figures.picture(figure, alt)


cloud({name: features[name] for name in ("real", "other real", "frozen")},
      alt="Points of real clips and of other real clips in one cloud; points of frozen ones only in its upper half.")

# %%
for name in ("other real", "frozen", "shuffled"):
    print(f"real clips against {name:11} {frechet.distance(features['real'], features[name]):7.2f}")

# %% tags=["nbval-check-output"]
apart = {name: frechet.distance(features["real"], features[name]) for name in ("other real", "frozen", "shuffled")}
print("other real clips are nearest:", min(apart, key=apart.get) == "other real")
print("but their distance is zero:", apart["other real"] < 1e-6)
assert min(apart, key=apart.get) == "other real" and apart["other real"] > 1e-6

# %% [markdown]
# The order is right. (Whether chance could have made it, section 6 asks for 48 clips.) But look at the first number.
# Both lots are real clips, drawn in the same way, and the distance is not zero. Is our formula wrong, or the judge?

# %% [markdown]
# ## 4 · Few clips are far from everything
#
# Neither. Take two samples of the *same* Gaussian, 32 numbers a point. Their true distance is 0. Move the slider to
# take more points.

# %%
def same_world(count, dims, seed=0):
    """Two samples of the standard Gaussian in `dims` dimensions, (2, count, dims), and their distance."""
    points = torch.randn(2, count, dims, generator=Generator().manual_seed(seed))
    return points, frechet.distance(*points)


def picture_of(count, counts, dims=32):
    """Left the two samples, seen in two of their dimensions; right how the distance falls with the number."""
    points, found = same_world(count, dims)
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for sample, colour in zip(points, figures.LINES):
        left.plot(sample[:, 0], sample[:, 1], ".", markersize=3, color=figures.PALETTE[colour])
    left.set(xlim=(-4, 4), ylim=(-4, 4), title=f"{count} points each", xlabel="dimension 1", ylabel="dimension 2")
    right.loglog(counts, [same_world(n, dims)[1] for n in counts], color=figures.PALETTE["black"], linewidth=1)
    right.loglog(count, found, "o", color=figures.PALETTE["red"])
    right.set(title=f"distance {found:.2f}", xlabel="points each", ylabel="distance; the truth is 0")
    return figures.picture(figure, f"{count} points of each kind lie in one cloud; their distance is {found:.2f}.")


COUNTS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
pictures = [picture_of(count, COUNTS) for count in COUNTS]
widgets.slider(pictures, labels=[str(count) for count in COUNTS], name="clips", start=1)

# %% [markdown]
# The clouds on the left look alike at any number. The distance falls and falls, and reaches the truth nowhere. This is
# no accident of the draw but a **bias**: two samples never have the same mean, nor the same covariance, by chance, and
# the formula counts each deviation as a distance. It can only be too large. How large it is on average follows from the
# spread of a mean and of a covariance. For standard Gaussians, as long as $n$ is much larger than $D$,
#
# $$E[d^2] \approx \frac{D\,(D+5)}{2 n}$$

# %%
sizes, dims = (64, 256, 1024, 4096), (16, 64, 400)
measured = torch.tensor([[same_world(n, d)[1] for n in sizes] for d in dims])
figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.subplots()
for d, row, colour in zip(dims, measured, figures.LINES):
    axes.loglog(sizes, row, "o-", color=figures.PALETTE[colour], label=f"{d} features")
    axes.loglog(sizes, [d * (d + 5) / 2 / n for n in sizes], "--", color="grey", linewidth=1)
axes.set(xlabel="points each", ylabel="distance; the truth is 0")
axes.legend(fontsize=9)
figures.picture(figure, "Three falling lines, the more features the higher, close to their formulas in dashes.")

# %%
for d, row in zip(dims, measured):
    print(f"{d:3} features:", ", ".join(f"{n}: {value:.2f} (formula {d * (d + 5) / 2 / n:.2f})"
                                        for n, value in zip(sizes, row)))

# %% tags=["nbval-check-output"]
mean = {n: sum(same_world(n, 32, seed)[1] for seed in range(5)) / 5 for n in (200, 2000)}
print("ten times the points divide the distance by about ten:", 8 < mean[200] / mean[2000] < 13)
print(f"FVD's 400 features, 2,048 clips: {400 * 405 / 2 / 2048:.0f} for nothing at all")
assert 8 < mean[200] / mean[2000] < 13 and abs(measured[1, 3] / (64 * 69 / 2 / 4096) - 1) < 0.15

# %% [markdown]
# With $n$ in the denominator and the *square* of the number of features above it: that is why our judge has 32 of them
# and not 400. (With far fewer points than features the formula no longer holds: see the upper left of the picture.) If
# you are shown such a distance from 64 clips, what you see is the 64.
#
# ### What to do about it
#
# 1. Never compare distances from different numbers of clips.
# 2. Beside each distance stands its **floor**: real clips against other real clips, just as many.
# 3. If need be, measure at several numbers and go to $1/n = 0$ along a straight line (Chong & Forsyth 2020).

# %%
many = judge.features(metrics.draw(judging_scenes(1, "train", 400, seed=2)))                 # (400, 32)
reference, rest = many[:200], many[200:]


def curve(lot, counts):
    """The distance of the first n of a lot from the first n of the reference, for each n."""
    return [frechet.distance(reference[:n], lot[:n]) for n in counts]


counts = (24, 32, 40, 48)
lines = {"real": curve(rest, counts), "frozen": curve(features["frozen"], counts),
         "shuffled": curve(features["shuffled"], counts)}
figures.plot(lines, x=[1 / n for n in counts], xlabel="1 / number of clips", ylabel="distance",
             alt="Three lines over 1/n: frozen far above; real, lowest at first, rises past shuffled at the right.")

# %%
def at_infinity(counts, values):
    """Where the least-squares line through (1/n, value) meets 1/n = 0."""
    rows = torch.tensor([[1.0, 1 / n] for n in counts])
    return torch.linalg.lstsq(rows, torch.tensor(values)[:, None]).solution[0].item()


for name, values in lines.items():
    print(f"{name:9} of 24: {values[0]:6.2f}   of 48: {values[-1]:6.2f}   line at 1/n = 0: "
          f"{at_infinity(counts, values):6.2f}")

# %% [markdown]
# Look at the right end of the picture: of 24 clips, shuffled ones are even nearer than real ones. The distance cannot
# tell a clip from its scattered frames there, and more decimals would not help. (The line of the real clips should end
# at 0, and it ends close to it. But with so few clips each other lot gives another line. Such lines are drawn through
# thousands.)
#
# Now the model, with its 32 clips, beside the floor for 32:

# %%
floor = [frechet.distance(reference[:32], rest[i:i + 32]) for i in range(0, 192, 32)]        # six lots of real clips
ours, same = (frechet.distance(reference[:32], judge.features(lot)) for lot in (made, real[:32]))
print(f"the model: {ours:.2f}; real clips: {min(floor):.2f} to {max(floor):.2f}, of the model's captions {same:.2f}")

# %% [markdown]
# How uncertain is such a number? The six lots show it: they are all of one kind, and from the lowest to the highest it
# is chance alone. Now look for the model. If it lies among them, or even *below* them, are its clips as good as real
# ones, or better? The last number warns: real clips of the very captions that the model was given lie near the low end
# of this, close to the model. It is the captions. These 32 happen to ask for clips that lie rather near our reference,
# and others happen to lie further off, which is why the floor is so wide.
#
# So if a model lies inside the floor, or below it, that does not mean that its clips are as good as real ones. It means
# that 32 clips do not suffice to see a difference. The referee, who looks at each clip by itself and knows what was
# asked for, finds the wrong ones among the same 32.
#
# ## 5 · Does the clip fit its sentence?
#
# A Fréchet distance never reads a caption. For that, **similarity** is used: a network that brings clips and captions
# into one space, as in chapter 03, and the cosine between the two. CLIPSIM is this, with OpenAI's CLIP, on single
# frames. Our judge has such a pair of towers, and looks at whole clips.

# %%
cosines = judge.embed(real[:12]) @ judge.embed_text(captions[:12]).T             # (12, 12)
figures.heat(cosines, size=4.2, xlabel="caption", ylabel="clip", titles=["cosine of each clip and each caption"],
             alt="A table of 12 by 12 cosines: orange along the diagonal, and in a few cells beside it.")

# %%
fits = {"real": judge.similarity(real[:32], captions[:32]), "the model": judge.similarity(made, captions[:32]),
        "frozen": judge.similarity(frozen[:32], captions[:32]),
        "real, of other captions": judge.similarity(real[:32], captions[1:33])}
for name, values in fits.items():
    low, high = bootstrap(values)
    print(f"{name:24} {values.mean():.2f}   from {low:.2f} to {high:.2f}")

# %% tags=["nbval-check-output"]
print("real clips fit their own captions better than others':", bool(fits["real"].mean() > fits[
    "real, of other captions"].mean() + 0.3))
assert fits["real"].mean() > fits["real, of other captions"].mean() + 0.3

# %% [markdown]
# Is what the model reaches a good cosine? Nobody knows from the number itself: what counts is where real clips stand,
# and where wrong captions stand. What real clips reach is not 1. And it is not even a ceiling: a model that draws each
# caption in the plainest way can fit it *better* than real clips do. It has happened, as you will see in section 7.

# %% [markdown]
# ## 6 · The table of fools
#
# Now put the measures to the test themselves. We break real clips in known ways, and see which measure notices. Beside
# those that you know (*Fréchet* in the table is the course Fréchet distance) stands one more that looks at pixels
# alone, the *motion energy*. The flicker score of the opening is 1 minus it.

# %%
# from minit2v.metrics import motion_energy

# %%
# from minit2v.metrics import flicker

# %%
def grain(clips, size=25):
    """The same clips with noise on every pixel of every frame."""
    noise = size * torch.randn(clips.shape, generator=Generator().manual_seed(0))
    return (clips + noise).clamp(0, 255).round().to(torch.uint8)


broken = {"real": real, "other real clips": others, "through the autoencoder": through_autoencoder(pipe, real),
          "frozen": frozen, "shuffled frames": shuffled(real), "backwards": real.flip(1), "grain": grain(real),
          "red and blue exchanged": real.flip(-1)}
figures.strip([clips[6] for clips in broken.values()], frames=8, titles=list(broken),
              alt="Eight strips: one clip, another one, and six broken versions of the first.")

# %%
MEASURES = {"all right": lambda clips: 100 * accuracy(clips, scenes)["all"],
            "similarity": lambda clips: judge.similarity(clips, captions).mean().item(),
            "Fréchet": lambda clips: frechet.distance(reference[:48], judge.features(clips)),
            "flicker": lambda clips: flicker(clips).mean().item(),
            "smooth": lambda clips: metrics.smoothness(clips).mean().item(),
            "energy": lambda clips: motion_energy(clips).mean().item()}
found = {name: {what: measure(clips) for what, measure in MEASURES.items()} for name, clips in broken.items()}

# %%
print(f"{'':24}" + "".join(f"{what:>12}" for what in MEASURES))
for name, row in found.items():
    print(f"{name:24}" + "".join(f"{value:12.3f}" if what not in ("all right", "Fréchet") else f"{value:12.1f}"
                                 for what, value in row.items()))

# %% tags=["nbval-check-output"]
still, smooth = ({name: row[what] for name, row in found.items()} for what in ("flicker", "smooth"))
print("best flicker score:", max(still, key=still.get), "- best smoothness:", max(smooth, key=smooth.get))
print("clips played backwards that the referee finds right, less than half:", found["backwards"]["all right"] < 50)
assert max(still, key=still.get) == max(smooth, key=smooth.get) == "frozen"
assert found["backwards"]["all right"] < 50

# %%
floor = sorted(frechet.distance(reference[:48], rest[i:i + 48]) for i in range(0, 192, 48))  # four lots of real clips
print("real clips:", ", ".join(f"{value:.1f}" for value in floor))
for name in ("backwards", "red and blue exchanged", "shuffled frames", "frozen"):
    print(f"{name:23} {found[name]['Fréchet']:5.1f}")

# %% [markdown]
# Read it row by row. (The first column holds shares of 48 clips. By the formula of section 2 each of them may be off
# by up to 14 points, so ten points more or less say nothing. The last list does the same for the distance.)
#
# - **Frozen** has full marks for flicker and for smoothness. Both measure how *little* happens. They make sense only
#   beside a measure of how much happens, like the motion energy, or the count of right motions.
# - **Backwards** has three clips in four wrong, and flicker and smoothness do not notice at all. Nor does the
#   distance: it lies where those of real clips lie, in the last list. Among clips of Moving Shapes as many go left as
#   right, and as many grow as shrink, so played backwards the cloud of all clips lies about where it lay. A distance
#   between clouds asks whether clips *like these* exist, not whether each is the one that was asked for.
# - **Red and blue exchanged** is a slip that happens to those who save the colours of a pixel in the wrong order. Most
#   clips are wrong now, for pink has become purple. The distance does not notice this either, and for the same reason.
# - **Shuffled frames** it does notice, but only just: they lie a little outside of what real clips reach.
# - **Grain** leaves no eye in doubt what a clip shows, and the judge neither: its features have been trained to tell
#   colours, shapes and motions, so nothing else is in them. For the energy it is ten times as much motion. And the
#   referee, who reads by rule and counts coloured pixels, cannot read any of these clips: a measure that is right in
#   its world may be of no use a step beside it.
# - **Other real clips** are perfect clips, of other captions. The distance likes them, similarity and referee do not.
#
# So no line of the table is to be had alone. What a paper shows as one number is one column.

# %% [markdown]
# ## 7 · Why "FVD 550" does not travel
#
# An index of papers gives the released model, ModelScope's, an FVD of 550 on MSR-VTT, a collection of captioned videos
# from the web. The authors of FETV, a benchmark, measured that model again, and three others beside it, at several
# numbers of clips, and published their raw files. The package keeps the means of these, and what else has been
# published, in one list, each figure with how it was measured and how sure it is:

# %%
from minit2v.published import FIGURES

fetv = {}                                                    # model: {number of clips: FVD}
for measure, model, value, how, sure in FIGURES:
    if measure == "FVD" and "FETV" in how:
        count = int(how.split(", ")[-1].removesuffix(" videos"))
        fetv.setdefault(model, {})[count] = float(value.split(" ± ")[0])

judged = torch.tensor([*fetv["ModelScopeT2V"]])
figures.plot({model: [*found.values()] for model, found in fetv.items()}, x=judged.log2(), ylabel="FVD",
             xlabel="clips judged, as a power of 2: from 32 to 1,024",
             alt="Four curves that fall steeply with the number of clips; CogVideo lowest, ZeroScope mostly highest.")

# %% tags=["nbval-check-output"]
print("the same model, the same prompts:", fetv["ModelScopeT2V"])
print("ZeroScope on 1,024 clips beats CogVideo on 128:", fetv["ZeroScope"][1024] < fetv["CogVideo"][128])

# %% tags=["nbval-check-output"]
for measure, model, value, how, sure in FIGURES:
    if measure == "CLIPSIM" and "FETV" in how:
        print(f"{model:16} {value}")

# %% [markdown]
# The same model has an FVD of 2902 or of 674, as you like, and each of the four beats each other one if it may be
# judged on more clips. Two more things can be seen. *Text2Video-Zero*, an image model that was never trained on video,
# is ahead of ModelScope at every number of clips. And in similarity ModelScope is ahead of the *real videos*, which
# nobody can be who means by it what the word says. FETV's authors conclude that neither number agrees well with people
# who look at the clips.
#
# The number of clips is not the only thing that must be known. Each of the following is a choice that somebody makes
# and seldom writes down. We make each of them with the same 32 clips of our model, and the 32 real ones of the same
# captions.

# %%
def through_mp4(clips):
    """Saved as mp4, as for a web page, and read again."""
    with tempfile.TemporaryDirectory() as folder:
        for i, clip in enumerate(clips):
            minit2v.save(clip, f"{folder}/{i}.mp4", fps=8)
        return torch.stack([load_clip(f"{folder}/{i}.mp4") for i in range(len(clips))])


def halved(clips):
    """Half as high and half as wide; the judge enlarges them again."""
    return clips[:, :, ::2, ::2]

# %%
theirs = real[:32]
protocols = {"all clips, as they are": (theirs, made), "half of the clips": (theirs[:16], made[:16]),
             "every second frame": (theirs[:, ::2], made[:, ::2]), "the first half": (theirs[:, :8], made[:, :8]),
             "half the size": (halved(theirs), halved(made)), "generated ones through mp4": (theirs, through_mp4(made)),
             "real clips through the autoencoder": (ceiling, made)}
for name, (one, other) in protocols.items():
    value = frechet.distance(judge.features(one), judge.features(other))
    print(f"{name:36} {value:7.2f}")

# %% [markdown]
# Same model, same clips, so whatever differs between two lines is the protocol's doing. (How good the model is, none
# of them tells better than section 4 found for 32 clips.) The number of clips and the number of frames move the
# distance most. Compression moves it less, and the size hardly, in our world of flat shapes. (Do not conclude that it
# hardly does for photographs.) And compare the first line with the end of section 4: there the real clips were of
# *other* captions, here they are of the same ones, which alone divides the distance by more than anything else in the
# list.
#
# So "550" is a number only together with: which features, how many clips, which real ones, which captions, how many
# frames at what rate, what size and by which filter, saved how, the covariance divided by $n$ or by $n - 1$. If one of
# these is missing, compare only within one table, made by one program.

# %% [markdown]
# ## 8 · What the original does
#
# **The report**: FID-vid 11.09, FVD 550, CLIPSIM 0.2930 on MSR-VTT, says an index of papers. How these were measured,
# we know at **second hand** only, from a reader's notes: at 256 x 256, on captions and videos that the model has not
# been trained on, the FVD of 2,048 videos. (Of the report itself we could read no more than the abstract.) Other papers
# quote other numbers for the same weights: an FVD of 536, and of 410 on other videos, UCF-101.
#
# **FVD as the field computes it** (StyleGAN-V's code): 2,048 real and 2,048 generated clips of 16 frames, scaled to
# 224 x 224, the 400 features of I3D before its last softmax, covariances divided by n. By the formula of section 4,
# for Gaussian features of unit size, its floor with these numbers is 40.
#
# **CLIPSIM**: frames and caption through CLIP, cosines, mean over frames and clips. It never sees two frames at once,
# so a frozen picture loses nothing.
#
# **VBench** measures sixteen things one by one. Its `temporal_flickering` is ours, 1 minus the mean absolute
# difference of neighbouring frames. Its makers know what such a number likes, so they ask it only of clips that
# *should* stand still: the prompts say "frozen in time", and a filter keeps the clips in which nothing moves. How much
# moves is another of the sixteen, `dynamic_degree`.
#
# **Here**, `minit2v evaluate` makes the referee's table with chance, floor and ceiling. The judge's number is the
# course Fréchet distance, never FVD: it is good for comparing models of Moving Shapes and for nothing else.

# %% [markdown]
# ## 9 · What can go wrong
#
# ### The root that is not a number
#
# Somebody takes the textbook's formula by its word, with fewer clips than features:

# %%
def naive(features_a, features_b):
    """The Fréchet distance with the root of the product as it stands."""
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(features_a), gaussian(features_b)
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real
    return float((mean_a - mean_b).square().sum() + (cov_a + cov_b).trace() - 2 * eigenvalues.sqrt().sum())


for count in (20, 100):
    print(f"{count:3} clips: {naive(reference[:count], rest[:count]):.2f}, "
          f"ours {frechet.distance(reference[:count], rest[:count]):.2f}")

# %% tags=["nbval-check-output"]
print("with 20 clips and 32 features the naive way is not a number:", math.isnan(naive(reference[:20], rest[:20])))
assert frechet.distance(reference[:20], rest[:20]) > 0

# %% [markdown]
# Twenty points span at most 19 dimensions, so some eigenvalues are zero, and by rounding a bit less than zero. Some
# programs clip them, some add a small number to the diagonal, some throw the imaginary part away, and their results
# differ.
#
# ### The best of ten
#
# A run of a model gets its score from 32 clips. Somebody makes ten runs, with ten seeds, and reports the best.

# %% tags=["nbval-check-output"]
runs = (torch.rand(1000, 10, 32, generator=Generator().manual_seed(1)) < 0.84).float().mean(2)         # (1000, 10)
print(f"true share 84 %; one run on average {100 * runs[:, 0].mean():.0f} %, the best of ten "
      f"{100 * runs.amax(1).mean():.0f} %")
assert runs.amax(1).mean() > 0.89

# %% [markdown]
# Nine points for nothing, which is more than many a paper's improvement. The same happens, unnoticed, if guidance,
# sampler and steps are chosen by the very clips on which one then reports.
#
# ### Numbers from 0 to 1
#
# Every network for features has its own idea of what a pixel is. Ours takes bytes and turns them into numbers from -1
# to 1 by itself, and refuses anything else. Somebody gets round that, and hands numbers from 0 to 1 to the network
# within:

# %%
try:
    judge.features(real[:32].float() / 255)
except ValueError as error:
    print(error)

# %%
def in_half_range(clips):
    """The judge's features, if its network is given 0 to 1 instead of -1 to 1."""
    network = judge.load()
    seen = network.trunk(clips.permute(0, 4, 1, 2, 3).float() / 255)             # (N, 64, F', H', W')
    return network.features(seen.mean(dim=(2, 3, 4)))                            # (N, 32)


wrong = [in_half_range(lot) for lot in (real[:32], made)]
right = [judge.features(lot) for lot in (real[:32], made)]
print(f"both wrong: {frechet.distance(*wrong):.2f}; one wrong: {frechet.distance(wrong[0], right[1]):.2f}; "
      f"both right: {frechet.distance(*right):.2f}")

# %% [markdown]
# If one of the two is wrong, the distance shouts. If *both* are wrong, it whispers: a plausible number comes out, and
# compares with nobody else's. The cure is a number to check against: the distance of two fixed sets of clips, published
# with the code.
#
# The symptoms, in short:
#
# | what you see | where to look |
# |---|---|
# | a distance that others do not get | number of clips, range of pixels, size, frames, features: the whole protocol |
# | NaN, or a complex number | more features than clips; the root of a product |
# | a model better than real clips | what the measure does not see: freeze real clips and measure again |
# | the new model is three per cent better | the interval |

# %% [markdown]
# ## Recap
#
# 1. A score stands beside chance, floor and ceiling, or it says nothing.
# 2. Each number has an interval; a bootstrap gives one for whatever you can compute.
# 3. The Fréchet distance compares clouds of features, and is too large by about $D(D+5)/2n$ even between equals.
# 4. Test a measure on broken clips first: a frozen picture is the champion of flicker and of smoothness.
# 5. A number travels only with its protocol. Compare within one table, made by one program.
#
# What you now own: an honest table for a video model. Chapter 10 opens a model that is 250 times larger.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/09_measuring](../exercises/09_measuring.ipynb).
#
# 1. **Two clouds of features** (build). The Fréchet distance of two sets, from its formula.
# 2. **How sure?** (build). A 95 % interval by drawing again.
# 3. **Full marks for standing still** (repair). A measure of motion that likes shuffled clips and frozen ones.
# 4. **What guessing gets** (explore). Chance for two objects, with everything right.
#
# And without a check, for an evening: break real clips in a way that `MEASURES` does not notice at all. Or train a
# judge of your own (`python -m minit2v.judge`), and see how far its distances agree with ours.

# %% [markdown]
# ## References
#
# - M. Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*, 2017,
#   arXiv:1706.08500. FID.
# - T. Unterthiner et al., *Towards Accurate Generative Models of Video: A New Metric and Challenges*, 2018,
#   arXiv:1812.01717. FVD.
# - I. Skorokhodov, S. Tulyakov and M. Elhoseiny, *StyleGAN-V*, 2021, arXiv:2112.14683. The protocol that most follow.
# - M. Chong and D. Forsyth, *Effectively Unbiased FID and Inception Score and Where to Find Them*, 2020,
#   arXiv:1911.07023. The straight line to infinity.
# - Y. Liu et al., *FETV: A Benchmark for Fine-Grained Evaluation of Open-Domain Text-to-Video Generation*, 2023,
#   arXiv:2311.01813. The numbers of section 7.
# - S. Ge et al., *On the Content Bias in Fréchet Video Distance*, 2024, arXiv:2404.12391. FVD looks at frames more than
#   at motion.
# - Z. Huang et al., *VBench: Comprehensive Benchmark Suite for Video Generative Models*, 2023, arXiv:2311.17982.
# - B. Efron, *Bootstrap Methods: Another Look at the Jackknife*, 1979. The bootstrap.
# - E. B. Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, 1927. The interval.
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571.
