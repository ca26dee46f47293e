"""First hints of the exercises of chapters 01 to 06 that are drawn: what the thing looks like, not how it is written.

Each function makes one picture and is named after its exercise. Where numbers stand in it, they are no question's.
"""

import math

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from minit2v.course import figures
from minit2v.course.board import Board
from minit2v.course.figures import PALETTE, Picture


def unmix() -> Picture:
    board = Board(11, 4.2)
    board.text(0.4, 0.8, "mixed", "left")
    board.cells(3.8, 0.8, ["a0", "b0", "a1", "b1", "a2", "b2"], ["orange", "sky"] * 3)
    for letter, colour, left, first in (("a", "orange", 2.6, 0), ("b", "sky", 7.0, 1)):
        for frame in range(3):
            board.arrow((3.8 + 0.8 * (2 * frame + first), 1.2), (left + 0.8 * frame, 2.5))
        board.cells(left, 2.9, [f"{letter}{frame}" for frame in range(3)], colour)
        board.text(left + 0.8, 3.7, f"clip {letter}")
    return board.picture("Six frames in a row, a0 b0 a1 b1 a2 b2, go to two clips: a0 a1 a2 and b0 b1 b2.")


def bytes_() -> Picture:
    board = Board(13, 4)
    for i in range(3):
        board.grid(0.8 + 0.3 * i, 0.9 + 0.3 * i, 4, 5)
    board.text(1.9, 3.6, "frames of\nheight x width pixels")
    board.arrow((3.4, 1.9), (5.2, 1.9), "one of them")
    board.cells(5.9, 1.9, ["red", "green", "blue"], ["red", "green", "blue"], 1.0)
    board.text(6.9, 3.0, "a pixel: three numbers")
    board.arrow((8.6, 1.9), (10.3, 1.9), "one of them")
    board.cells(11.4, 1.9, ["float32"], "yellow", 1.6)
    board.text(11.4, 3.0, "a number: ? bytes")
    return board.picture("Frames of many pixels, a pixel of three numbers, and a number in float32, which takes a "
                         "number of bytes that is asked for.")


def pixel_attention() -> Picture:
    areas = torch.ones(4, 6)
    areas[1:3, 2:5] = -1
    heard = [(area * areas * 4).flatten().softmax(0).view(4, 6) for area in (areas[0, 0], areas[1, 3])]
    return figures.heat([areas, *heard], size=2.4,
                        titles=["x: two areas", "whom the upper left hears", "whom the middle hears"],
                        alt="A field of 4 x 6 pixels with two areas, and the weights of two pixels. The one in the "
                            "corner hears the 18 pixels of its own area, 0.06 each, the one in the middle the 6 of "
                            "its own, 0.17 each. Each pixel's weights add up to 1.")


def shift() -> Picture:
    board = Board(13, 5.2)
    for row, (name, cells) in enumerate([("the frame", 16), ("after one halving", 8), ("after two", 4)]):
        width, y = 8 / cells, 0.9 + 1.4 * row
        board.text(0.3, y, name, "left")
        board.cells(4.2 + width / 2, y, [""] * cells, ["orange"] + [None] * (cells - 1), width, 0.7)
    board.text(8.2, 4.7, "orange: as far as one pixel of each picture reaches in the frame")
    return board.picture("A row of 16 pixels, below it one of 8 and one of 4 that are as long: a pixel of the second "
                         "covers two of the first, one of the third covers four.")


def merge() -> Picture:
    board = Board(13, 5.2)
    words = [("low", 2, ["lo", "w"]), ("slow", 1, ["s", "lo", "w"]), ("lot", 1, ["lo", "t"])]
    for row, (word, count, joined) in enumerate(words):
        y = 1.2 + 1.3 * row
        board.text(0.3, y, "twice" if count == 2 else "once", "left")
        board.cells(2.4, y, list(word), ["orange" if letter in "lo" else None for letter in word])
        board.arrow((5.4, y), (9.6, y))
        for i, symbol in enumerate(joined):
            board.cells(10.2 + 1.0 * i, y, [symbol], "orange" if symbol == "lo" else None, 1.0)
    board.text(7.5, 0.4, "l o: 2 + 1 + 1 times\no w: 2 + 1,  s l: 1,  o t: 1")
    return board.picture("The words low, twice, slow and lot, letter by letter. The neighbours l and o stand together "
                         "four times, more often than any others; joined, the words are lo w, s lo w and lo t.")


def penultimate() -> Picture:
    board = Board(13, 4)
    board.text(0.8, 1.2, "tokens")
    board.chain(1.2, [2.8, 5.2, 7.6, 10.0], ["block 1", "block 2", "block 3", "block 4"], ["sky"] * 3 + [None])
    board.arrow((1.4, 1.2), (1.9, 1.2))
    board.text(12.0, 1.2, "the clip loss\nreads END")
    board.arrow((10.9, 1.2), (11.1, 1.2))
    board.arrow((8.8, 1.2), (8.8, 3.0), head=False)
    board.arrow((8.8, 3.0), (9.3, 3.0))
    board.box(10.0, 3.0, "norm", "green", 1.4)
    board.arrow((10.7, 3.0), (11.3, 3.0))
    board.text(12.1, 3.0, "context")
    return board.picture("Tokens go through four blocks. Before the last one a way branches off, through the norm: it "
                         "leads to the context.")


def known() -> Picture:
    board = Board(11, 5.6)
    alike = {(row, column): "orange" if row == column else "sky" for row in range(9) for column in range(9)
             if row // 3 == column // 3}
    board.grid(2.2, 1.2, 9, 9, 0.45, alike)
    board.text(4.0, 0.5, "9 clips")
    board.text(1.0, 3.0, "9\ncaptions")
    board.text(6.6, 2.4, "orange: the caption's own clip", "left")
    board.text(6.6, 3.0, "blue: others of the same colour", "left")
    board.text(6.6, 3.6, "white: told apart by the colour", "left")
    return board.picture("A table of 9 captions and 9 clips. Each caption has the colour of three clips, marked as "
                         "blocks along the diagonal; one of the three is its own.")


def add_noise() -> Picture:
    bar = torch.linspace(0, 1, 41, dtype=torch.float64)
    return figures.plot({"as it should be": torch.ones(41), "the broken version": (bar ** 2 + (1 - bar) ** 2).sqrt()},
                        x=bar, xlabel="alpha-bar (1 is clean)", ylabel="size of x_t",
                        alt="The size of x_t against alpha-bar. It should be 1 all the way; the broken version is 1 at "
                            "both ends and 0.71 in the middle.")


def split() -> Picture:
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes, angle = figure.subplots(), math.radians(35)
    axes.add_artist(Circle((0, 0), 1, fill=False, color="#BBBBBB"))
    for name, turn, colour in (("$x_0$", 0.0, "blue"), (r"$\epsilon$", math.pi / 2, "green"), ("$x$", angle, "red"),
                               ("$v$", angle + math.pi / 2, "purple")):
        end = (math.cos(turn), math.sin(turn))
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[colour], "shrinkB": 0})
        axes.text(1.14 * end[0], 1.14 * end[1], name, ha="center", va="center", fontsize=12)
    axes.plot([math.cos(angle)] * 2, [0, math.sin(angle)], color=PALETTE["red"], linestyle=":")
    axes.text(math.cos(angle) / 2, -0.1, "alpha", ha="center", fontsize=9)
    axes.text(math.cos(angle) - 0.03, math.sin(angle) / 2, "sigma", va="center", ha="right", fontsize=9)
    axes.set(xlim=(-0.9, 1.4), ylim=(-0.3, 1.3), aspect="equal")
    axes.axis("off")
    return figures.picture(figure, "A quarter of a circle: x_0 points right and the noise up. x and v stand at a right "
                                   "angle, too: they are the other two, turned by one angle. alpha and sigma are x's "
                                   "shares of x_0 and of the noise.")


def noise_loss() -> Picture:
    board = Board(13, 4.6)
    for y, name in ((1.0, "noise"), (2.1, "x_0"), (3.2, "t, from 1")):
        board.cells(1.4, y, [name], "yellow", 2.0)
        board.arrow((2.4, y + 0.1), (3.5, 2.1 + (y - 2.1) / 4))
    board.box(4.5, 2.1, "noise it", "sky", 2.0)
    board.arrow((5.5, 2.1), (6.6, 2.1), "x_t")
    board.box(7.6, 2.1, "network", "orange", 2.0)
    board.arrow((2.4, 3.5), (7.6, 3.9), head=False)
    board.arrow((7.6, 3.9), (7.6, 2.6))
    board.text(8.0, 3.4, "counted from 0", "left", 8)
    board.arrow((8.6, 2.1), (9.8, 2.1), "answer")
    board.box(11.2, 2.1, "mean squared\ndifference", "green", 2.8)
    board.arrow((2.4, 0.8), (11.2, 0.8), "what it should have found: the noise", head=False)
    board.arrow((11.2, 0.8), (11.2, 1.6))
    return board.picture("x_0, noise and the time t become x_t. The network sees x_t and the time, counted from 0; its "
                         "answer is compared with the noise.")


def half() -> Picture:
    root = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64)
    bar = (1 - root ** 2).cumprod(0)
    return figures.plot({"signal, alpha^2": bar, "noise, sigma^2": 1 - bar}, x=torch.arange(1, 1001), xlabel="t",
                        ylabel="variance", alt="Over the times 1 to 1000 the variance of the signal falls from 1 to "
                        "nothing, that of the noise rises from 0 to 1. Their ratio is the signal-to-noise ratio.")


def cross_attention() -> Picture:
    board = Board(14, 5.2)
    for y, name, layers in ((1.0, "pixels x\n(N, L, width)", ["to_q"]), (3.7, "words\n(N, K, ...)", ["to_k", "to_v"])):
        board.text(1.2, y, name)
        for i, layer in enumerate(layers):
            at = y + (i - (len(layers) - 1) / 2) * 1.3
            board.arrow((2.3, y), (3.0, at))
            board.box(3.7, at, layer, "sky", 1.4)
            board.arrow((4.4, at), (5.0, at))
            board.cells(5.25, at, [""] * 4, ["orange"] * 2 + ["green"] * 2, 0.5)
    for y, head, colour in ((1.7, "head 1", "orange"), (3.5, "head 2", "green")):
        for at in (1.0, 3.05, 4.35):
            board.arrow((7.0, at), (8.0, y), colour=colour, head=False)
        board.box(9.0, y, f"attention,\n{head}", colour, 2.0, 1.1)
        board.arrow((10.0, y), (10.6, 2.6 + (y - 2.6) / 4))
    board.cells(10.85, 2.6, [""] * 4, ["orange"] * 2 + ["green"] * 2, 0.5)
    board.arrow((12.6, 2.6), (12.9, 2.6))
    board.box(13.4, 2.6, "to_out", "sky", 1.0)
    return board.picture("Pixels make queries, words make keys and values. The first half of the numbers of all three "
                         "goes to head 1, the second to head 2; what the heads answer is laid side by side again and "
                         "goes through to_out.")


def geglu() -> Picture:
    board = Board(13, 4)
    board.text(0.7, 2.0, "x")
    board.arrow((1.0, 2.0), (2.0, 2.0))
    board.box(3.3, 2.0, "weight, bias:\n2 M rows", "sky", 2.4, 2.4)
    for y, name, colour in ((1.2, "M numbers", "orange"), (2.8, "M numbers", "green")):
        board.arrow((4.5, y), (5.3, y))
        board.cells(6.3, y, [name], colour, 2.0)
    board.text(8.4, 0.5, "one half is the value, the other the gate", size=8)
    for y in (1.2, 2.8):
        board.arrow((7.3, y), (9.4, 2.0 + (y - 2.0) / 6))
    board.box(11.0, 2.0, "value x GELU(gate)", "yellow", 3.2)
    return board.picture("The layer makes 2 M numbers of x. One half of them is the value, the other one, through "
                         "GELU, the gate; they are multiplied. Which half is which is the question.")


def resblock() -> Picture:
    board = Board(14, 5.4)
    board.text(0.5, 1.2, "x")
    board.arrow((0.7, 1.2), (1.0, 1.2))
    board.chain(1.2, [1.7, 3.4, 5.1], ["norm1", "SiLU", "conv1"], "sky", 1.3)
    board.arrow((5.75, 1.2), (6.3, 1.2))
    board.plus(6.55, 1.2)
    board.arrow((6.8, 1.2), (7.2, 1.2))
    board.chain(1.2, [7.8, 9.3, 10.8, 12.3], ["norm2", "SiLU", "dropout", "conv2"], "sky", 1.2)
    board.arrow((12.9, 1.2), (13.3, 1.2))
    board.plus(13.5, 1.2)
    board.chain(2.9, [2.7, 4.7], ["SiLU", "time_proj"], "orange", 1.5)
    board.text(1.1, 2.9, "emb")
    board.arrow((1.5, 2.9), (1.95, 2.9))
    board.arrow((5.45, 2.9), (6.55, 1.5))
    board.arrow((0.5, 1.5), (0.5, 4.5), head=False)
    board.arrow((0.5, 4.5), (6.0, 4.5))
    board.box(7.0, 4.5, "shortcut", "green", 2.0)
    board.arrow((8.0, 4.5), (13.5, 4.5), head=False)
    board.arrow((13.5, 4.5), (13.5, 1.5))
    return board.picture("x goes through norm1, SiLU and conv1; the time, through SiLU and time_proj, is added; then "
                         "come norm2, SiLU, dropout and conv2. At the end the input is added, through shortcut.")


def words() -> Picture:
    board = Board(14, 4.6)
    for x, name, width, source in ((1.7, "to_q", 1.8, "a pixel"), (5.0, "to_k", 2.6, "a word"),
                                   (8.7, "to_v", 2.6, "a word"), (11.7, "to_out", 1.8, "what was heard")):
        board.text(x, 0.4, name)
        board.cells(x, 2.0, ["weight"], "sky", width, 1.8)
        board.text(x, 4.2, f"reads {source}", size=8)
        board.arrow((x, 3.9), (x, 3.0))
    board.cells(12.9, 2.0, [""], "orange", 0.2, 1.8)
    board.text(12.6, 3.3, "bias", size=8)
    return board.picture("Four weights as rectangles: to_q and to_out are square, to_k and to_v are wider, for they "
                         "read words. Only to_out has a bias.")


def ddim() -> Picture:
    bar_t, bar_s, etas = 0.3, 0.6, torch.tensor([0.0, 0.5, 1.0])
    fresh = etas ** 2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    figure = Figure(figsize=(5.4, 2.8), layout="constrained")
    axes, left = figure.subplots(), torch.zeros(3)
    for name, share, colour in (("the clip", torch.full((3,), bar_s), "blue"), ("the noise found",
                                1 - bar_s - fresh, "orange"), ("fresh noise", fresh, "green")):
        axes.barh(["eta 0", "eta 0.5", "eta 1"], share, left=left, color=PALETTE[colour], label=name)
        left = left + share
    axes.set(xlabel="shares of the variance of x_s, here for alpha-bar 0.3 to 0.6")
    axes.invert_yaxis()
    figure.legend(fontsize=8, loc="outside upper center", ncol=3)
    return figures.picture(figure, "Three bars, each of length 1, for eta 0, 0.5 and 1. The clip's share is 0.6 in "
                                   "all; of the rest a part is fresh noise, none at eta 0 and 0.29 at eta 1.")


def ddpm() -> Picture:
    places, bars = torch.linspace(-2.5, 5, 121), {"from x_0": (0.775, 0.4), "from x_t": (2.12, 1.0)}
    precision = sum(1 / variance for _, variance in bars.values())
    bars["from both"] = (sum(mean / variance for mean, variance in bars.values()) / precision, 1 / precision)
    return figures.plot({name: torch.exp(-(places - mean) ** 2 / 2 / variance) / (2 * math.pi * variance) ** 0.5
                         for name, (mean, variance) in bars.items()}, x=places, xlabel="x_s", ylabel="density",
                        alt="Two bells say where x_s may be: one as seen from x_0, a wider one as seen from x_t. "
                            "Where both agree stands a third, narrower than either and between them.")


def dpm() -> Picture:
    figure = Figure(figsize=(5.4, 2.6), layout="constrained")
    axes, (before, now, coming) = figure.subplots(), (-1.1, -0.4, 0.2)
    axes.plot([before, now], [0.2, 0.6], "o-", color=PALETTE["blue"])
    middle = (now + coming) / 2
    high = 0.6 + 0.4 * (middle - now) / (now - before)
    axes.plot([now, middle], [0.6, high], "--", color=PALETTE["blue"])
    axes.plot(middle, high, "D", color=PALETTE["orange"])
    for x, y, name in ((before, 0.2, "before"), (now, 0.6, "x0"), (middle, high, "the guess to use")):
        axes.annotate(name, (x, y), xytext=(6, -12), textcoords="offset points", fontsize=9)
    axes.set(xticks=[before, now, coming], xlabel="lambda", yticks=[], ylabel="guess of the clip", xlim=(-1.3, 0.5),
             ylim=(0, 1))
    axes.set_xticklabels(["at the time\nbefore", "at t", "at s"])
    axes.grid(axis="x", alpha=0.4)
    return figures.picture(figure, "Over lambda the guess rises from `before` to `x0`. The line is drawn on half of "
                                   "the coming step, which is shorter than the last one; there stands the guess to "
                                   "use.")


def cost() -> Picture:
    board = Board(11, 4.6)
    for row in range(3):
        board.text(0.4, 1.2 + row, f"clip {row + 1}", "left")
        board.cells(2.8, 1.2 + row, ["?"] * 7, "sky", 0.9)
    board.text(5.6, 0.4, "step 1, 2, 3, ..")
    board.text(5.5, 4.1, "in each cell: how many questions to the network?")
    return board.picture("A table of three clips and seven steps. In each cell stands a question mark: how often is "
                         "the network asked there?")
