"""First hints of the exercises of chapters 07 to 12 that are drawn; those of 01 to 06 stand in sketches_01_06.py.

Each function makes one picture and is named after its exercise. Where numbers stand in it, they are no question's.
"""

from matplotlib.figure import Figure

from minit2v.course import figures
from minit2v.course.board import Board
from minit2v.course.figures import PALETTE, Picture


def temporal_attention() -> Picture:
    board = Board(13, 4.6)
    for frame in range(4):
        board.grid(0.9 + 1.7 * frame, 1.0, 3, 3, 0.45, {(0, 2): "orange", (2, 1): "sky"})
        board.text(1.35 + 1.7 * frame, 2.6, f"frame {frame}", size=8)
    board.arrow((7.4, 1.0), (8.8, 1.0))
    board.arrow((7.4, 1.9), (8.8, 2.4))
    board.cells(9.4, 1.0, ["0", "1", "2", "3"], "orange")
    board.text(10.6, 0.3, "one row: a pixel, frame by frame", size=8)
    board.cells(9.4, 2.4, ["0", "1", "2", "3"], "sky")
    board.text(10.6, 3.2, "the next row: another pixel", size=8)
    board.text(6.5, 4.2, "as many rows as there are pixels in all clips; the frames of a row see one another")
    return board.picture("Four frames of 3 x 3 pixels. The upper right pixel of all frames makes one row of four "
                         "tokens, another pixel makes the next row.")


def zero() -> Picture:
    board = Board(13, 3.6)
    board.text(0.5, 2.4, "x")
    board.chain(2.4, [2.6, 4.8, 7.0, 9.2], ["conv1", "conv2", "conv3", "conv4"], "sky", 1.7)
    board.arrow((0.8, 2.4), (1.75, 2.4))
    board.arrow((10.05, 2.4), (11.2, 2.4), "0")
    board.plus(11.4, 2.4)
    board.arrow((11.6, 2.4), (12.3, 2.4))
    board.text(12.6, 2.4, "x")
    board.arrow((0.5, 2.1), (0.5, 1.0), head=False)
    board.arrow((0.5, 1.0), (11.4, 1.0), "x", head=False)
    board.arrow((11.4, 1.0), (11.4, 2.1))
    board.text(5.9, 3.3, "a new one: nothing is added, whatever x is")
    return board.picture("x goes through four parts and around them. In a new module nothing comes out of the parts, "
                         "so the sum is x again.")


def reach() -> Picture:
    board = Board(9, 4.6)
    for level, (y, frames) in enumerate([(0.8, [2]), (2.2, [1, 2, 3]), (3.6, [0, 1, 2, 3, 4])]):
        board.text(0.3, y, ["after layer 2", "after layer 1", "the clip"][level], "left")
        for frame in frames:
            x = 3.6 + 1.1 * frame
            board.cells(x, y, [""], "orange", 0.7, 0.7)
            for step in (-1, 0, 1) if level < 2 else ():
                board.arrow((x, y + 0.35), (x + 1.1 * step, y + 1.05), head=False)
    return board.picture("A frame after the second layer stands on three frames of the first, and these stand on five "
                         "frames of the clip: neighbours share what they see.")


def mix() -> Picture:
    figure = Figure(figsize=(5.4, 2.4), layout="constrained")
    axes, sizes = figure.subplots(), [8, 8, 32, 8, 8, 8, 8, 32, 8, 8]
    for name, size, colour in (("batch of clips", 8, "sky"), ("batch of pictures", 32, "orange")):
        places = [place for place, found in enumerate(sizes) if found == size]
        axes.bar(places, [size] * len(places), color=PALETTE[colour], width=0.9, label=name)
    axes.set(xlabel="batch", ylabel="samples in it", xticks=range(10), ylim=(0, 44))
    axes.legend(fontsize=8, ncol=2, loc="upper center")
    return figures.picture(figure, "Ten batches: eight low bars of 8 clips each and two high ones of 32 pictures. The "
                                   "share of the batches is not that of the samples.")


def chance() -> Picture:
    board, names = Board(13, 6.4), ["red", "blue", "green", "grey"]
    board.text(3.9, 0.4, "two colours")
    for row, name in enumerate(names):
        board.text(1.0, 1.9 + row, name)
        board.text(2.4 + row, 1.1, name, size=8)
        pairs = [" abc", "a de", "bd f", "cef "][row]
        board.cells(2.4, 1.9 + row, list(pairs), ["black" if pair == " " else "sky" for pair in pairs], 1.0, 1.0)
    board.text(3.9, 5.9, "the same letter: the same guess", size=8)
    for x, which in ((7.6, "of the one"), (10.8, "of the other")):
        board.text(x + 0.8, 0.6, f"shape and motion\n{which}")
        board.grid(x, 1.7, 3, 3, 0.8, {(1, 2): "orange"})
        board.text(x + 0.8, 4.3, "one is right", size=8)
    return board.picture("A table of two colours: either order is the same guess, and no colour goes with itself. "
                         "Beside it, for each of the two objects, a table of shapes and motions in which one cell is "
                         "right.")


def load() -> Picture:
    rows = [("conv.weight  (4, 3)", "conv.weight  (4, 3)", "taken", "green"),
            ("proj.weight  (4, 3, 1)", "proj.weight  (4, 3)", "taken, as (4, 3)", "green"),
            ("", "proj.bias  (4,)", "ValueError: .. proj.bias ..", "red"),
            ("scale  (4,)", "", "ValueError: .. scale ..", "red"),
            ("norm.weight  (8,)", "norm.weight  (4,)", "ValueError: .. norm.weight ..", "red")]
    board = Board(14, 5.8)
    for x, name in ((2.4, "in the file"), (6.9, "expected"), (11.6, "what happens")):
        board.text(x, 0.4, name)
    for y, (stored, expected, told, colour) in enumerate(rows, start=1):
        board.cells(2.4, 0.2 + 0.95 * y, [stored], "sky" if stored else None, 4.2)
        board.cells(6.9, 0.2 + 0.95 * y, [expected], "sky" if expected else None, 4.2)
        board.cells(11.6, 0.2 + 0.95 * y, [told], colour, 4.6)
    return board.picture("Five cases. Equal names and shapes are taken, and (4, 3, 1) as (4, 3), too. A tensor that is "
                         "missing, one that is too much and one of another length are each told by name.")


def chunks() -> Picture:
    board = Board(13, 4.8)
    board.text(0.3, 0.9, "latents", "left")
    board.text(0.3, 3.9, "frames", "left")
    for start, count, colour in ((0, 3, "orange"), (3, 3, "sky"), (6, 1, "green")):
        x = 3.2 + 0.8 * start + 0.5 * (start // 3)
        middle = x + 0.4 * (count - 1)
        board.cells(x, 0.9, list(range(start, start + count)), colour)
        board.arrow((middle, 1.3), (middle, 2.0))
        board.box(middle, 2.4, "decode", None, 1.5, 0.7)
        board.arrow((middle, 2.75), (3.2 + 0.8 * (start + (count - 1) / 2), 3.5))
        board.cells(3.2 + 0.8 * start, 3.9, list(range(start, start + count)), colour)
    board.text(11.7, 2.4, "size 3,\nseven frames")
    return board.picture("Seven frames of latents are cut into 0 1 2, 3 4 5 and 6. Each piece is decoded alone; the "
                         "frames 0 to 6 stand in one row again.")


def count() -> Picture:
    board = Board(14, 5.4)
    board.chain(0.9, [2.6, 5.6, 8.6, 11.6], ["part 1", "part 2", "part 3", "part 4"], "sky", 2.0)
    for x in (1.6, 3.6):
        board.arrow((x, 1.35), (1.2 if x == 1.6 else 12.8, 2.3), head=False)
    board.text(2.4, 2.7, "group norm")
    board.cells(1.9, 3.5, ["", ""], "yellow", 1.0, 0.3)
    board.text(2.4, 4.2, "C and C numbers", size=8)
    board.text(5.1, 2.7, "SiLU")
    board.text(5.1, 4.2, "none", size=8)
    board.text(9.4, 2.4, "convolution over three frames")
    for i in range(3):
        board.grid(7.0 + 1.5 * i, 3.0, 4, 4, 0.28, colour="orange")
    board.text(8.9, 4.5, "three tables, C x C", size=8)
    board.cells(12.4, 3.5, [""], "orange", 1.2, 0.3)
    board.text(12.4, 4.2, "C numbers", size=8)
    return board.picture("Four parts in a row. The first, enlarged, has a group norm with two rows of C numbers, SiLU "
                         "without any, and a convolution with three tables of C x C numbers and one row of C.")


def text_attention() -> Picture:
    board = Board(14, 4.8)
    board.text(0.2, 0.4, "x: a row for\neach frame", "left", 8)
    for row, (letter, colour) in enumerate((("a", "orange"), ("b", "sky"))):
        y = 1.7 + 2.1 * row
        for frame in range(3):
            board.cells(0.7, y - 0.5 + 0.5 * frame, [f"{letter}{frame}"] * 2, colour, 0.7, 0.5)
        board.arrow((1.9, y), (3.1, y))
        board.cells(3.5, y, [f"{letter}{frame}" for frame in (0, 0, 1, 1, 2, 2)], colour, 0.7)
        board.arrow((7.4, y), (9.3, y), "asks")
        board.cells(9.9, y, ["", "", "", ""], colour, 0.7, 0.5)
        board.text(11.0, y + 0.7, f"keys and values of the prompt of clip {letter}, once", size=8)
    board.text(5.2, 0.4, "queries: a row for each clip", size=8)
    return board.picture("Two clips, a and b, of three frames with two tokens each. The queries of all frames of a "
                         "clip stand in one long row, which asks the keys and values of its own prompt; these are "
                         "there once.")


def room() -> Picture:
    board = Board(13, 5)
    for x, rows, columns, frames in ((0.8, 3, 3, 2), (6.4, 4, 6, 3)):
        for frame in reversed(range(frames)):
            board.grid(x + 0.35 * frame, 1.7 - 0.35 * frame, rows, columns, 0.6)
        for row in range(rows):
            for column in range(columns):
                if row or column:
                    board.arrow((x, 1.7), (x + 0.6 * column, 1.7 + 0.6 * row), head=False, colour="orange")
    board.text(2.0, 4.5, "a small clip")
    board.text(8.3, 4.5, "a larger one: more cells in a frame, and more frames")
    return board.picture("Two clips as stacks of frames, of 3 x 3 and of 4 x 6 cells. In both, one cell is joined to "
                         "every other cell of its frame; every other cell looks as far.")


def lora() -> Picture:
    board = Board(13, 4.4)
    board.text(0.5, 1.2, "x")
    board.arrow((0.8, 1.2), (4.6, 1.2))
    board.box(6.2, 1.2, "linear, as it is", "sky", 3.2)
    board.arrow((7.8, 1.2), (11.2, 1.2))
    board.plus(11.4, 1.2)
    board.arrow((11.65, 1.2), (12.3, 1.2))
    board.text(12.6, 1.2, "y")
    board.arrow((0.5, 1.5), (0.5, 3.2), head=False)
    board.arrow((0.5, 3.2), (2.0, 3.2))
    board.box(3.0, 3.2, "down", "orange", 2.0, 0.9)
    board.arrow((4.0, 3.2), (6.0, 3.2), "rank numbers")
    board.box(7.0, 3.2, "up", "orange", 2.0, 0.9)
    board.arrow((8.0, 3.2), (9.2, 3.2))
    board.plus(9.5, 3.2, "x")
    board.text(9.5, 3.95, "a factor", size=8)
    board.arrow((9.8, 3.2), (11.4, 3.2), head=False)
    board.arrow((11.4, 3.2), (11.4, 1.5))
    board.text(5.0, 4.1, "orange learns", size=8)
    return board.picture("Two ways from x to y that are added: the linear layer as it is, and a detour through down "
                         "and up, with few numbers between them and a factor at its end. Only down and up learn.")


def temporal() -> Picture:
    board = Board(14, 3.8)
    for x, many in ((1.0, 0), (2.7, 1), (5.2, 0), (6.9, 1), (8.6, 0), (10.3, 1)):
        for frame in reversed(range(3 if many else 1)):
            board.cells(x + 0.15 * frame, 1.6 - 0.15 * frame, [""], "orange" if many else "sky", 0.8, 0.8)
        board.arrow((x + 0.75, 1.6), (x + 1.15 + 0.8 * (x == 2.7), 1.6))
    board.text(12.3, 1.6, "and so on")
    board.text(1.9, 2.7, "before the first\nblock", size=8)
    board.text(7.9, 2.7, "the first block of the way down", size=8)
    board.text(7.0, 3.5, "orange: layers that see all frames; blue: layers that see one", size=8)
    return board.picture("The layers of the UNet in their order. Before the first block stands one that sees single "
                         "frames and one that sees all; in the first block they take turns.")


def forgotten() -> Picture:
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(0, 0.2, color="#DDDDDD")
    axes.text(0.5, 0.1, "guessing", ha="center", va="center", fontsize=9)
    axes.bar(["before", "after"], [0.85, 0.5], color=[PALETTE["sky"], PALETTE["orange"]], width=0.5)
    axes.set(ylim=(0, 1), xlim=(-0.5, 1.5), ylabel="share of clips right")
    axes.annotate("", (0.5, 0.85), (0.5, 0.2), arrowprops={"arrowstyle": "<->"})
    axes.text(0.47, 0.35, "skill", ha="right", fontsize=9)
    axes.annotate("", (1.35, 0.85), (1.35, 0.5), arrowprops={"arrowstyle": "<->"})
    axes.text(1.32, 0.66, "lost", ha="right", fontsize=9)
    axes.plot([0.25, 1.4], [0.85, 0.85], color="black", linewidth=0.6, linestyle=":")
    return figures.picture(figure, "Two bars, 0.85 before and 0.5 after, and a grey floor of 0.2 that guessing "
                                   "reaches. Skill is what stands above the floor; the loss is the difference of the "
                                   "bars.")
