# %% [markdown]
# # 01 · Video as tensors
#
# A clip is sixteen pictures in a row, and to PyTorch it is a block of numbers. In this chapter you hold such blocks
# in your hands: you fill them, turn them, draw moving shapes into them from formulas, say in words what they show,
# and write code that reads the words back out of the pixels. Every later chapter stands on this one.

# %% [markdown]
# ## What you will build
#
# The next cell uses the finished code; at the end of the chapter you will know how it works. You see four clips as
# *film strips*: time runs from left to right, and a strip shows eight of the sixteen frames.

# %%
import random

import torch
from einops import rearrange
from torch import Tensor

from minit2v.captions import VOCABULARY, caption, unknown_words
from minit2v.course import figures
from minit2v.referee import agrees, read
from minit2v.world import Scene, Thing, combinations, render, sample_scene

rng = random.Random(23)
scenes = [sample_scene(rng, level) for level in (1, 1, 2, 3)]
sentences = [caption(scene, rng) for scene in scenes]
figures.strip(render(scenes), titles=sentences, scale=2,
              alt="Four film strips of moving shapes, each below the sentence that describes it.")

# %% [markdown]
# **You need** PyTorch tensors: indexing, broadcasting, `sum` and `mean`. No video knowledge, no GPU, no internet.
#
# **It takes** about 60 minutes to read and play with. All cells together run in less than a minute.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | one clip | 196,608 bytes |
# | error of a small circle's place, drawn with jagged edges | 0.3 pixels |
# | the same, drawn with soft edges | 0.02 pixels |
# | things to say: colour, shape and motion together | 440, of which 55 are kept out of training |
# | clips that the referee reads right, of 100 | 100 |
# | the same clips with their frames shuffled | 12 |

# %% [markdown]
# ## 1 · A clip is a tensor
#
# A colour picture is a grid of pixels, and each pixel is three numbers from 0 to 255: how much red, green and blue
# light it sends. Sixteen such pictures, stacked, are a clip. Whole numbers from 0 to 255 fit into one byte each, a
# type that PyTorch calls `uint8`.
#
# The order of the axes is **(frames, height, width, colour)**. We write it (F, H, W, 3), in every chapter.

# %% tags=["nbval-check-output"]
clip = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)         # (F, H, W, 3), all black
print(tuple(clip.shape), f"{clip.numel():,} bytes")
assert clip.numel() == 196_608

# %% [markdown]
# To draw into a clip, write numbers into it. Here is a red square of 16 x 16 pixels that starts 3 pixels further to
# the right in each frame. The height comes before the width: `clip[f, y, x]` is a pixel of frame `f`, in row `y` from
# the top and column `x` from the left. So y grows *downwards*, as in every picture format, and not as in school.

# %%
red = torch.tensor([230, 30, 30], dtype=torch.uint8)
for f in range(16):
    clip[f, 24:40, 3 * f:3 * f + 16] = red

figures.strip(clip, scale=2, alt="A film strip: a red square goes from the left edge to the right edge.")

# %% [markdown]
# A strip lays time out on paper. Played at 8 frames per second, the same sixteen frames take two seconds:

# %%
figures.play(clip, alt="The red square moves from left to right, again and again.")

# %% [markdown]
# ### As a file
#
# On disk a clip is compressed. A GIF keeps up to 256 colours exactly. An MP4 keeps what changes between frames, and
# that only nearly. Our clip goes through both and comes back:

# %%
import tempfile

from minit2v.video import load, save

with tempfile.TemporaryDirectory() as folder:
    for name in ("square.gif", "square.mp4"):
        path = save(clip, f"{folder}/{name}", fps=8)
        lost = (load(path).int() - clip.int()).abs().max().item()
        print(f"{name}: {path.stat().st_size:,} bytes instead of {clip.numel():,}; off by up to {lost}")

# %% [markdown]
# Both files are many times smaller than the tensor. What the MP4 gets wrong lies at the edges of the square, for it
# stores colour at half the resolution. So training clips never go through MP4 here; they are drawn from their formulas.
#
# ### Cutting across time
#
# Each axis can be cut. `clip[5]` is a frame, and `clip[..., 0]` is the red part of everything. The most instructive
# cut runs *across* time: keep one row of pixels, and stack its sixteen states below one another.

# %%
history = clip[:, 32]                                        # (F, W, 3): row 32 of each frame
figures.strip(history[None], frames=1, scale=6,
              alt="Row 32 over time: a red band that leans to the right, stepping three pixels with each frame.")

# %% [markdown]
# Time runs downwards in this picture. An object that rests would be an upright band; ours leans, and how far it leans
# is its speed. **Motion is slant in space-time**: remember it for chapter 07, where a network gets layers that look
# along this axis.

# %% [markdown]
# ### A trap: bytes run over
#
# A byte holds nothing above 255. Add ten to 250, and it starts again from zero, without a word of warning.

# %% tags=["nbval-check-output"]
bright = torch.tensor([250], dtype=torch.uint8)
print((bright + 10).item(), (bright.float() + 10).item())

# %% [markdown]
# The rule that follows: **store in bytes, compute in floats**. Round and go back to bytes at the very end.

# %% [markdown]
# ## 2 · The order of the axes
#
# (F, H, W, 3) is the order in which clips are shown and saved. Networks want another one: the batch first, the colour
# *channels* next, and numbers between -1 and 1. That is (B, C, F, H, W): clips, channels, frames, height, width.
#
# We turn axes with `rearrange` from the library einops. It takes a pattern with a name for each axis, before and
# after the arrow, and the pattern says what happens better than any comment could.

# %% tags=["nbval-check-output"]
clips = torch.stack([clip, clip.flip(2)])                    # two clips, the second mirrored: (B, F, H, W, 3)
x = rearrange(clips, "b f h w c -> b c f h w").float() / 127.5 - 1
print(tuple(x.shape), f"from {x.min():.2f} to {x.max():.2f}")

# %% [markdown]
# Dividing by 127.5 makes 0 to 2 out of 0 to 255, and subtracting 1 centres it. The largest number here is 0.80 and not
# 1, because the brightest channel is the square's red, 230.
#
# The way back is a function of the package. Wherever a chapter ends with the package's own code, it stands in a cell
# that begins with the line it would be imported by. The text is filled in from the package when the chapter is built,
# so you always read the code that runs. (What `rounding` is for, section 6 will show.)

# %%
# from minit2v.video import to_uint8

# %% tags=["nbval-check-output"]
print("there and back:", torch.equal(to_uint8(x), clips))

# %% [markdown]
# ### Clips as many pictures: `(b f)`
#
# Most layers of our network were made for pictures. They want (N, C, H, W) and treat each of the N pictures by
# itself. To give them a video, we pretend that its frames are a batch. In an einops pattern, parentheses lay two axes
# into one:

# %% tags=["nbval-check-output"]
images = rearrange(x, "b c f h w -> (b f) c h w")
print(tuple(x.shape), "->", tuple(images.shape))

# %% [markdown]
# The way back splits the axis again; it must be told one of the two lengths. In between may stand any picture layer.
# Here is a convolution. Frame 5 of clip 1 comes out exactly as if it had gone through the layer alone:

# %% tags=["nbval-check-output"]
conv = torch.nn.Conv2d(3, 8, kernel_size=3, padding=1)
y = rearrange(conv(images), "(b f) c h w -> b c f h w", b=2)
alone = conv(x[1, :, 5][None])[0]
print(tuple(y.shape), torch.allclose(y[1, :, 5], alone, atol=1e-5))

# %% [markdown]
# So a layer behind `(b f)` **cannot know about motion**: it sees each frame as if there were no other.

# %% [markdown]
# ### Pixels as many histories: `(b h w)`
#
# Turn it round: lay everything *but* the frames into the batch. Then each of the 2 x 64 x 64 places has a short
# history of 16 steps, and a layer that works on sequences sees time, and nothing but time.

# %% tags=["nbval-check-output"]
histories = rearrange(x, "b c f h w -> (b h w) c f")
print(tuple(histories.shape))

# %%
here = histories[32 * 64 + 24]                               # clip 0, row 32, column 24: (C, F)
figures.plot({"red": here[0], "green": here[1], "blue": here[2]}, colours=["red", "green", "blue"],
             xlabel="frame", ylabel="value, -1 to 1",
             alt="One pixel over 16 frames: black, then red in frames 3 to 8, then black again.")

# %% [markdown]
# The square comes by in frames 3 to 8 and is gone. (Green and blue are equal, so one curve hides the other.) This
# pixel alone cannot tell where the square came from; its neighbours could. That is why a video network needs both
# kinds of layers, and takes them in turns.
#
# ### In parentheses, the last name runs fastest
#
# `(b f)` and `(f b)` are axes of the same length with another order in them. Take two clips of three frames,
# numbered:

# %% tags=["nbval-check-output"]
numbers = torch.tensor([[10, 11, 12],                        # clip 1: frames 0, 1, 2
                        [20, 21, 22]])                       # clip 2
print("(b f):", rearrange(numbers, "b f -> (b f)").tolist())
print("(f b):", rearrange(numbers, "b f -> (f b)").tolist())

# %% [markdown]
# The name on the right counts fastest, like the last digit of a number. `(b f)` keeps the frames of a clip together;
# `(f b)` keeps the clips of a moment together. At the end of the chapter you will mix them up on purpose.
#
# With the same idea, a film strip is one line: put the frame beside the width, as the slower of the two.

# %%
strip = rearrange(clip[::2], "f h w c -> h (f w) c")
figures.strip(strip[None], frames=1, scale=2, alt="The film strip of the red square once more, made by one rearrange.")

# %% [markdown]
# ## 3 · A renderer, grown from one formula
#
# Squares are easy to draw with slices. Circles, triangles and stars need another idea, and it should be one idea for
# all: **for each pixel, ask how far it is from the edge of the shape.** Negative means inside.
#
# ### Where the pixels are
#
# We measure places in *fractions of the frame*, from 0 at the left or top edge to 1 at the right or bottom edge. Then
# the same scene can be drawn at any size. A pixel is a small square, and its place is the centre of it: in a row of
# 8, the first pixel's centre is at 0.5 / 8.

# %%
def grid(height, width):
    """Pixel centres in fractions of the frame: ys and xs, (H, W) each."""
    ys = (torch.arange(height) + 0.5) / height
    xs = (torch.arange(width) + 0.5) / width
    return torch.meshgrid(ys, xs, indexing="ij")

# %%
ys, xs = grid(8, 8)
figures.heat([ys, xs], values=True, titles=["ys", "xs"], size=4,
             alt="Two 8 by 8 grids of numbers: ys grows from 0.06 at the top to 0.94 below, xs from left to right.")

# %% [markdown]
# ### How far it is to the edge
#
# A circle with its centre at (x, y) and radius r is easy. For the pixel at $(x_s, y_s)$ it is the distance to the
# centre, minus r.
#
# $$d = \sqrt{(x_s - x)^2 + (y_s - y)^2} - r$$

# %%
def circle_distance(ys, xs, y, x, radius):
    """Signed distance of each pixel to a circle's edge, negative inside; in fractions of the frame."""
    return ((ys - y) ** 2 + (xs - x) ** 2).sqrt() - radius

# %%
ys, xs = grid(64, 64)
distance = circle_distance(ys, xs, y=0.5, x=0.4, radius=0.2)
figures.heat(distance, contour=0, xlabel="x (pixels)", ylabel="y (pixels)",
             alt="Distance to a circle: below zero inside, above outside; the line at 0 is the circle.")

# %% [markdown]
# No circle has been drawn yet, but it is there: the black line is where the distance is zero.
#
# ### Yes or no makes stairs
#
# The obvious way to draw it: a pixel belongs to the circle if its distance is below zero. Better: ask how much of the
# pixel is covered. If the edge passes through a pixel's centre, half of it; if the edge is half a pixel away, all or
# nothing; in between, a straight line.
#
# $$\text{coverage} = \text{clamp}\left(\tfrac{1}{2} - d,\; 0,\; 1\right) \qquad d \text{ in pixels}$$
#
# Distances here are fractions of a frame of 64 pixels, so we multiply them by 64.

# %%
def coverage(distance, size=64):
    """How much of each pixel lies inside, 0 to 1, from the signed distance."""
    return (0.5 - distance * size).clamp(0, 1)

# %%
distance = circle_distance(ys, xs, y=0.5, x=0.5, radius=0.05)
hard, soft = (distance < 0).float(), coverage(distance)
figures.heat([hard[26:38, 26:38], soft[26:38, 26:38]], titles=["yes or no", "coverage"], values=True, size=4.5,
             alt="A circle of radius 3.2 pixels twice: as a block of ones, and with softer values at its edge.")

# %% [markdown]
# The soft circle looks rounder, but looks are not the reason. The reason is motion. A slow object moves about one
# pixel a frame, so its place has to be right to a *part* of a pixel. Let us push the circle to the right in steps of
# a twentieth of a pixel, and measure each time where the drawing says it is: the mean of `xs`, weighted by the
# drawing.

# %%
true = 0.5 + torch.arange(41) / 20 / 64                      # (41,): from the middle, two pixels to the right
distance = circle_distance(ys, xs, 0.5, true[:, None, None], 0.05)               # (41, H, W)
hard, soft = (distance < 0).float(), coverage(distance)
errors = {name: ((drawn * xs).sum((1, 2)) / drawn.sum((1, 2)) - true) * 64       # in pixels
          for name, drawn in {"yes or no": hard, "coverage": soft}.items()}
figures.plot(errors, x=(true - 0.5) * 64, xlabel="true shift (pixels)", ylabel="error (pixels)",
             alt="Error of the measured place: yes or no jumps up to 0.3 pixels, coverage stays near 0.")

# %% tags=["nbval-check-output"]
for name, error in errors.items():
    print(f"{name:10} off by up to {error.abs().max():.2f} pixels")
assert errors["yes or no"].abs().max() > 0.25 and errors["coverage"].abs().max() < 0.03

# %% [markdown]
# Drawn with yes or no, the circle stands still for a while and then jumps by a third of a pixel. A network that
# learns from such clips would learn the jumps. This way of drawing with soft edges is called *anti-aliasing*.

# %% [markdown]
# ### Colour over ground
#
# Coverage is also a recipe for mixing. Where it is 0 we see the ground, where it is 1 the colour, and at an edge a
# bit of each. (Painters of pixels call it *alpha*.)
#
# $$\text{pixel} = \text{ground} + \alpha \, (\text{colour} - \text{ground})$$

# %%
def paint(alpha, colour, ground):
    """Mixes a colour over a ground, both three numbers 0 to 255: (..., H, W) -> (..., H, W, 3) uint8."""
    colour, ground = torch.tensor(colour).float(), torch.tensor(ground).float()
    return (ground + alpha[..., None] * (colour - ground)).round().to(torch.uint8)

# %%
alpha = coverage(circle_distance(ys, xs, 0.5, 0.5, 0.3))
pictures = torch.stack([paint(alpha, (230, 30, 30), (0, 0, 0)), paint(alpha, (240, 225, 20), (128, 128, 128)),
                        paint(alpha, (35, 65, 230), (255, 255, 255))])
figures.strip(pictures, scale=3, alt="A red disc on black, a yellow one on grey, a blue one on white; smooth edges.")

# %% [markdown]
# ### Motion is a formula of the time
#
# Nothing in the renderer has to change for a moving object. We let the centre depend on the time t, in seconds, and
# compute all frames at once: t has the shape (F,), and `[:, None, None]` makes it (F, 1, 1), which broadcasts against
# the (H, W) of the grid to (F, H, W).

# %%
t = torch.arange(16) / 8.0                                   # 16 frames, 8 a second: (F,)
x = 0.2 + 0.25 * t                                           # a quarter of the frame each second
distance = circle_distance(ys, xs, 0.5, x[:, None, None], 0.16)                  # (F, H, W)
moving = paint(coverage(distance), (230, 30, 30), (0, 0, 0))                     # (F, H, W, 3)
figures.play(moving, alt="A red disc moves smoothly from left to right.")

# %% [markdown]
# Other motions are other formulas. An *orbit* has a cosine for x and a sine for y. *Growing* is an exponential of t
# in the place of the radius. A *bounce* is the nicest one: let the object run on in a straight line through the wall,
# and fold the line back like a strip of paper.

# %%
# from minit2v.world import _fold

# %% [markdown]
# Below, `state` says where an object is at each time. It is our first version, and it knows three motions.

# %%
# first version: three motions that start in the middle; the package's has all fourteen, with sizes, speeds and angles
def state(motion, t):
    """Where an object is at the times t (F,): its x and its y, (F,) each."""
    x, y = 0.5 + 0 * t, 0.5 + 0 * t
    if motion == "right":
        x = x + 0.14 * t
    elif motion == "bounce":
        x = _fold(x + 0.45 * t, margin=0.16)
    elif motion == "orbit":
        x, y = x + 0.2 * torch.cos(2.5 * t), y + 0.2 * torch.sin(2.5 * t)
    return x, y

# %%
tracks = {motion: state(motion, t)[0] for motion in ("right", "bounce", "orbit")}
figures.plot(tracks, x=t, xlabel="t (seconds)", ylabel="x (fractions of the frame)",
             alt="x over two seconds: right is a straight rising line, bounce rises and folds back, orbit is a wave.")

# %% [markdown]
# Because time is just a number in a formula, any frame rate will do. Draw the same two seconds at 16 frames a second,
# take every second frame, and you have the old clip, bit for bit:

# %% tags=["nbval-check-output"]
def circle_clip(motion, t):
    x, y = state(motion, t)
    distance = circle_distance(ys, xs, y[:, None, None], x[:, None, None], 0.16)
    return paint(coverage(distance), (35, 65, 230), (255, 255, 255))


fine = circle_clip("orbit", torch.arange(32) / 16)
print(len(fine), "frames; every second one as before:", torch.equal(fine[::2], circle_clip("orbit", t)))

# %% [markdown]
# ### Corners by folding
#
# What about a triangle, a square, a star? Look at one from its centre. It repeats: a triangle three times, a square
# four times, a star five times around. And each of the repeated wedges is its own mirror image. So *fold* the plane,
# like paper for a snowflake, until only half a wedge is left. In it, every one of these shapes is a single straight
# line.
#
# The fold is two operations on the angle: a remainder (all wedges onto one) and an absolute value (its two halves
# onto one). Here it is for a star, angle first, and the folded angle beside it:

# %%
theta = torch.atan2(ys - 0.5, xs - 0.5) + torch.pi / 2       # angle of each pixel from straight up
wedge = torch.pi / 5                                         # half a wedge, for five corners
folded = ((theta + wedge) % (2 * wedge) - wedge).abs()       # 0 at a corner, `wedge` between two
figures.heat([theta % (2 * torch.pi), folded], titles=["angle", "folded angle"],
             alt="Left, the angle grows once around. Right, folded: five dark rays at the corners, bright between.")

# %% [markdown]
# The package does this for circles, polygons and stars in one function, for many shapes and frames at once. The line
# in half a wedge runs from the corner, which lies at (R, 0), to the inner point, where the outline comes nearest to
# the centre: the middle of a side, or the notch between two tips of a star. The distance to a line is a product with
# its normal vector, the arrow that stands upright on it. R is chosen so that all shapes of one `radius` have the same
# area: a big square should not look bigger than a big circle.
#
# The code that follows is quoted from the package and needs a few names from around it, which we import first. A name
# that begins with an underscore is an inner part of its module. (`_reach` says how far out the corners of a shape lie,
# if its radius is 1; `SHAPES` how many there are, and how far in the inner points.)

# %%
import math

from minit2v.world import SHAPES, _reach

# %%
# from minit2v.world import shape_distance

# %%
dx, dy = (axis.expand(4, 1, 64, 64) - 0.5 for axis in (xs, ys))                  # four shapes, one frame
radius, angle = torch.full((4, 1, 1, 1), 0.25), torch.zeros(4, 1, 1, 1)
distances = shape_distance(list(SHAPES), dx, dy, radius, angle)                  # (4, 1, H, W)
figures.heat(list(distances[:, 0]), contour=0, titles=list(SHAPES), size=2.4,
             alt="Signed distances to a circle, a square, a triangle and a star, each with its outline at zero.")

# %% tags=["nbval-check-output"]
for name, distance in zip(SHAPES, distances[:, 0]):
    print(f"{name:8} covers {coverage(distance).mean():.3f} of the frame")
print(f"expected {math.pi * 0.25 ** 2:.3f}")

# %% [markdown]
# ### The package's renderer
#
# Now the pieces come together as the package has them. First, the whole `state`. You know its bounce and its orbit.
# New are eight straight directions, turning (an angle that grows), and growing and shrinking, by a constant share per
# second. What a caption leaves open stands in the thing itself: `heading`, the direction in which a bounce sets out;
# `sense`, which way round something turns; and `phase`, where on its circle an orbit begins.

# %%
from minit2v.world import HEADINGS, ORBIT_RADIUS, SECONDS, SIZES, SPEEDS, _unit

# %%
# from minit2v.world import state

# %% [markdown]
# Then the coverage. An object may also be drawn as an outline: the points that are close to the edge on either side,
# which is one absolute value of the distance.

# %%
from minit2v.world import COLOURS, OUTLINE, _ground, camera_state, times

# %%
# from minit2v.world import _coverage

# %% [markdown]
# And last the renderer. It draws N scenes together. A *scene* is one or more things on a ground. What is new besides
# the batch is a camera, which moves the pixel grid over the world, and textured grounds; later chapters will need
# them.

# %%
# from minit2v.world import render

# %% [markdown]
# Does it draw what we drew? A `Thing` has a colour, a shape, a motion, a size, a speed and a place. A big, fast, red
# circle that starts at x = 0.2 and moves to the right is our moving disc from above.

# %% tags=["nbval-check-output"]
thing = Thing("red", "circle", "right", size="big", speed="fast", x=0.2, y=0.5)
theirs = render([Scene((thing,), ground="black")])[0]
apart = (theirs.int() - moving.int()).abs().max().item()
print(tuple(theirs.shape), "largest difference:", apart)
assert apart <= 1

# %%
row = [Scene((Thing("blue", shape, motion, size="big", x=0.5, y=0.5, heading=(1.0, 0.0)),), ground="white")
       for shape, motion in [("square", "spin"), ("star", "grow"), ("triangle", "bounce"), ("circle", "orbit")]]
figures.play(render(row), alt="Four clips: a square spins, a star grows, a triangle bounces, a circle goes round.")

# %% [markdown]
# ## 4 · What people say of it: captions
#
# A text-to-video model learns from pairs, a clip and a sentence. Our world writes its own sentences. The same scene
# can be told in many ways, as people do: size, speed and ground are named about half of the time, and there is more
# than one word for most things.

# %% tags=["nbval-check-output"]
scene = Scene((Thing("blue", "star", "spin", size="big", speed="fast"),), ground="white")
rng = random.Random(0)
for _ in range(4):
    print(caption(scene, rng))

# %% [markdown]
# And in Chinese. The released model reads English only; ours learns both. Chinese puts no spaces between words, which
# will matter in chapter 03, where text is cut into pieces.

# %% tags=["nbval-check-output"]
for _ in range(4):
    print(caption(scene, rng, "zh"))

# %% [markdown]
# How many things are there to say? Eight colours, four shapes and fourteen motions make 448 combinations. A spinning
# circle looks like a resting one, so its eight are left out. Of the 440 that remain, one in eight is **never shown in
# training**. If the model can draw those, it has not learnt clips by heart: it has learnt to *compose*.

# %% tags=["nbval-check-output"]
train, held_out = combinations("train"), combinations("unseen")
print(len(train), "for training,", len(held_out), "unseen, for example:", " ".join(held_out[0]))
print("words:", len(VOCABULARY["en"]), "English,", len(VOCABULARY["zh"]), "Chinese")
assert len(train) + len(held_out) == 440 and len(held_out) == 55

# %% [markdown]
# A world this small has a small language, and it is honest to say where it ends:

# %% tags=["nbval-check-output"]
print(unknown_words("a red elephant dances to the right"))

# %% [markdown]
# ## 5 · The referee: reading a clip
#
# Soon a network will make clips. Who says whether they are right? Looking is slow and generous. A training loss, as
# chapter 08 shows, says next to nothing about motion. So we write a judge: a program that gets the pixels and nothing
# else, and answers with colour, shape and motion. Our world was made so that this can be done by rule.
#
# ### By colour
#
# All grounds are grey, that is, their red, green and blue are equal. So the difference between a pixel's largest and
# smallest channel, its *chroma*, is zero on the ground, and above zero on an object.

# %%
def chroma(clip):
    """(F, H, W, 3) uint8 -> (F, H, W): how colourful each pixel is, 0 to 1."""
    return (clip.float().amax(-1) - clip.float().amin(-1)) / 255

# %%
grey = render([Scene((Thing("orange", "star", "down right", x=0.3, y=0.3),), ground="grey")])[0]
figures.heat([grey[8].float().mean(-1) / 255, chroma(grey[8])], titles=["brightness", "chroma"], limits=(0, 1),
             alt="In brightness the star cannot be told from the grey ground; in chroma it stands alone, on zero.")

# %% [markdown]
# Orange is as bright as this grey, and the star is gone. In chroma there is nothing but the star. *Which* colour it
# is comes from the hue, the direction of its colour on the colour wheel, and the nearest of eight wins.
#
# ### By track
#
# With chroma as a weight, the mean of the pixels' places is the centre of the object. One centre for each frame is a
# track.

# %%
def track(clip):
    """The centre of the coloured area in each frame: x and y, (F,) each."""
    weight = chroma(clip)
    total = weight.sum((1, 2))
    return (weight * xs).sum((1, 2)) / total, (weight * ys).sum((1, 2)) / total

# %%
clips = render(row)                                          # the spinning, growing, bouncing, orbiting ones
figures.plot({scene.things[0].motion: track(clip)[0] for scene, clip in zip(row, clips)}, x=t,
             xlabel="t (seconds)", ylabel="measured x",
             alt="Measured x of four clips: flat for spin and grow, folded for bounce, a wave for orbit.")

# %% [markdown]
# Bounce and orbit can be told from the track alone. Spin and grow both rest at 0.5, so that one curve hides the other;
# they show in the area and in the angle.
#
# ### By shape
#
# How can code see a triangle? Put the origin at the object's centre, and read each pixel's place as a complex number,
# z = x + iy. The third power turns every angle three times as far: points a third of a turn apart, like the corners
# of a triangle, then all point the same way, and their mean is large. For a circle they point everywhere, and the
# mean is zero. So the size of the mean of $z^n$ says how strongly a shape repeats n times around. It is called a
# *moment*.

# %%
def moment(frame, n):
    """Size of the mean of z^n over the coloured area of a frame, in units that do not depend on its size."""
    weight = chroma(frame[None])[0]
    x, y = (v[0] for v in track(frame[None]))
    z = torch.complex(xs - x, ys - y)
    area = weight.mean() / weight.max()
    return ((weight * z ** n).sum() / weight.sum()).abs() / area ** (n / 2)

# %%
stills = [render([Scene((Thing("red", shape, "stay", size="big"),))])[0, 0] for shape in SHAPES]
table = torch.stack([torch.stack([moment(frame, n) for n in (3, 4, 5)]) for frame in stills])
figures.heat(table, values=True, digits=3, rows=list(SHAPES), columns=["n = 3", "n = 4", "n = 5"],
             alt="Table of moments: the triangle is large at n = 3, the square at 4, the star at 5, others near 0.")

# %% [markdown]
# Each shape has its own column, and the circle has none. (The triangle's number is the largest, because its corners
# stick out farthest.) Turning a shape turns $z^n$ but does not change its size, so the table holds for spinning shapes
# too, up to what the pixel grid adds:

# %% tags=["nbval-check-output"]
spinning = render([Scene((Thing("red", "triangle", "spin", size="big"),))])[0]
print("third moment of a spinning triangle, every fourth frame:",
      " ".join(f"{moment(frame, 3):.3f}" for frame in spinning[::4]))

# %% [markdown]
# ### The package's referee
#
# `read` puts the three together, with a few thresholds. It names what it saw, or says that there is nothing to be
# read by giving back an empty list.

# %% tags=["nbval-check-output"]
for reading in read(grey):
    print(reading.colour, reading.shape, reading.motion, reading.size, reading.speed)

# %% [markdown]
# A judge has to be judged first. Here are a hundred random scenes whose truth we know, since we made them; `agrees`
# compares what was read with what was drawn.

# %% tags=["nbval-check-output"]
rng = random.Random(0)
scenes = [sample_scene(rng) for _ in range(100)]
real = render(scenes)


def count_right(readings):
    """How many of the hundred were read as their scene says: colour, shape and motion, all three."""
    return sum(agrees(found, scene)["all"] for found, scene in zip(readings, scenes))


right = count_right([read(clip) for clip in real])
print("right:", right, "of 100")
assert right == 100

# %% [markdown]
# It should be just as sure of what is *not* a clip. Noise first:

# %% tags=["nbval-check-output"]
noise = torch.randint(0, 256, (16, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
print("noise:", read(noise))

# %% [markdown]
# And then something more cunning: real frames, every one of them perfect, in a random order. Colour and shape are all
# there. Only the motion is gone.

# %%
order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
figures.strip([real[17], real[17][order]], frames=16, titles=["as it was", "shuffled"],
              alt="Sixteen frames of a clip in order, and the same frames shuffled, so that the object jumps about.")

# %% tags=["nbval-check-output"]
shuffled = [read(clip[order]) for clip in real]
print("shuffled: right", count_right(shuffled), "of 100, unreadable", shuffled.count([]))
assert count_right(shuffled) == 12

# %% [markdown]
# Nearly three quarters are unreadable now: from one frame to the next the object jumps farther than any motion of this
# world goes. Which twelve are still right?

# %% tags=["nbval-check-output"]
still = [scene.things[0].motion for found, scene in zip(shuffled, scenes) if agrees(found, scene)["all"]]
print({motion: still.count(motion) for motion in sorted(set(still))})

# %% [markdown]
# Those in which nothing travels, so that the order hardly matters. The same thought, turned into a sharper test: play
# every clip *backwards*. Each frame is real, each step is small. Only the arrow of time is wrong.

# %% tags=["nbval-check-output"]
backwards = [read(clip.flip(0)) for clip in real]
pairs = {(scene.things[0].motion, readings[0].motion) for readings, scene in zip(backwards, scenes)}
print("\n".join(f"{was:10} reads as {now}" for was, now in sorted(pairs)))

# %% [markdown]
# Right becomes left, growing becomes shrinking, and what has no direction in its name keeps it. So the referee reads
# order, and not only looks. When our model has learnt to move things, we shall judge it with the same eye.

# %% [markdown]
# ## 6 · What the original does
#
# **ModelScope's clips** have 16 frames as ours do, of 256 x 256 pixels. Its network holds them as `b c f h w`,
# exactly the order of section 2. The spatial layers and the autoencoder see `(b f) c h w`; the temporal attention
# sees `(b h w) c f`. A video model is a picture model, plus layers that are shown the second pattern.
#
# **Back to bytes** it goes a little differently: where we round to the nearest whole number, the original cuts off
# what stands behind the point. Half of all values come out one step darker. `to_uint8` can do both: the package's
# tests compare with the original number by number, and chapter 11 meets the darker half in clips:

# %% tags=["nbval-check-output"]
decoded = torch.rand(3, 16, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
darker = to_uint8(decoded).int() - to_uint8(decoded, rounding="truncate").int()
print(f"{(darker == 1).float().mean():.2f} of the values differ, by {darker.max()} at most")

# %% [markdown]
# **Its data** are films from the web with a caption each, and pictures with captions. Nobody can write down the truth
# of such a clip, so nobody can write a referee for it. The original is measured by statistics instead: how far apart
# generated and real clips lie as clouds of features (a *Fréchet distance*), and how well clip and caption fit in the
# eyes of another network. Chapter 09 builds both and compares them with our referee, who knows.

# %% [markdown]
# ## 7 · What can go wrong
#
# ### The wrong parentheses
#
# Here are a red and a yellow clip, on their way through a layer for pictures. The way there says `(f b)`, the way
# back `(b f)`. To see what happens, the layer in between does nothing.

# %%
pair = render([Scene((Thing(colour, "circle", motion, size="big", speed="fast", x=x, y=0.5),), ground="black")
               for colour, motion, x in [("red", "right", 0.25), ("yellow", "left", 0.75)]])
images = rearrange(pair, "b f h w c -> (f b) h w c")         # wrong: should be (b f)
mixed = rearrange(images, "(b f) h w c -> b f h w c", b=2)
print(tuple(pair.shape), "->", tuple(mixed.shape))

# %%
figures.strip([*pair, *mixed], titles=["red, before", "yellow, before", "first clip, after", "second clip, after"],
              frames=16, alt="Two clean strips, one red, one yellow. Below: both colours alternate in each strip.")

# %% [markdown]
# The shapes are right, no line fails, and the clips have been shuffled like two packs of cards. The first holds the
# first halves of both, the second holds the second halves. Nothing would stop the training of a network that does this;
# only its clips would come out wrong. The cure is one line: **send a clip there and back, and look**.

# %% tags=["nbval-check-output"]
print("before:", [reading.motion for reading in read(pair[0])], "- after:", read(mixed[0]))
assert read(mixed[0]) == []

# %% [markdown]
# ### `reshape` is not `rearrange`
#
# `reshape` also gives any shape you ask for, as long as the number of values fits. But it never moves a value: it
# reads memory in the old order and only breaks the lines elsewhere.

# %%
wrong = pair[0].reshape(16, 3, 64, 64)                       # (F, H, W, 3) -> "(F, 3, H, W)"
back = rearrange(wrong, "f c h w -> f h w c")
figures.strip(back, scale=2, alt="Large, broken discs of green dots on black, where a small red disc should be.")

# %% [markdown]
# Memory holds red, green, blue, red, green, blue. Read as (3, H, W), its first third becomes all of red, its second
# third all of green. The disc lies in the middle of the frame, so it turns green, and one value in three of it is
# bright, hence the dots. Name the axes, and this cannot happen.

# %% [markdown]
# ## Recap
#
# 1. A clip is (F, H, W, 3) in bytes to be seen, and (B, C, F, H, W) in floats to be computed with.
# 2. `(b f)` makes pictures of a clip, `(b h w)` makes histories; a layer knows only what its batch leaves it.
# 3. Distance to the edge, coverage, colour over ground, and places as formulas of time: that is the renderer.
# 4. Captions say the same scene in many ways and two languages; one combination in eight is kept for the test.
# 5. The referee reads colour, shape and motion from pixels alone, and finds shuffled frames out.
#
# What you now own: a world with as much data as you like, and a judge. Chapter 02 makes its
# frames 48 times smaller, and brings them back.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/01_video_as_tensors](../exercises/01_video_as_tensors.ipynb).
#
# 1. **A ring** (build). Draw an outlined circle out of its signed distance, with one absolute value.
# 2. **A pendulum** (build). Write a motion as a formula of time: a swing, slower at its ends.
# 3. **The flip book** (build). Write the film strip for several clips, one below the other, as a single `rearrange`.
# 4. **Unmix** (repair). Clips were folded as `(f n)` and unfolded as `(n f)`. Find the pattern that brings them back.
# 5. **How heavy is a clip?** (explore). Predict its bytes, then compute them.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The original.
# - A. Rogozhnikov, *Einops: Clear and Reliable Tensor Manipulations with Einstein-like Notation*, ICLR 2022.
# - I. Quilez, *2D distance functions*, iquilezles.org/articles/distfunctions2d. Distances to many more shapes.
# - M.-K. Hu, *Visual Pattern Recognition by Moment Invariants*, 1962. Moments that do not mind turning.
# - N. Srivastava, E. Mansimov and R. Salakhutdinov, *Unsupervised Learning of Video Representations using LSTMs*,
#   2015, arXiv:1502.04681. Moving MNIST, an older toy world of moving things.
