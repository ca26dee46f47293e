"""A board to draw on: boxes, rows of cells and arrows, for first hints that say how a thing hangs together.

Pictures of numbers (heat maps, curves, film strips) are made by figures.py; what is drawn here has no data.
"""

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from minit2v.course.figures import PALETTE, Picture, picture

UNIT = 0.5                                                # inches


class Board:
    """width x height units of half an inch; x goes to the right and y goes down. Things are placed by their middle.

    Colours are names of figures.PALETTE; they are laid on thinly, so that black letters stay readable.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width * UNIT, height * UNIT))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, align: str = "center", size: float = 9) -> None:
        self.axes.text(x, y, text, ha=align, va="center", fontsize=size, linespacing=1.3)

    def box(self, x: float, y: float, text: str = "", colour: str | None = None, width: float = 2.4,
            height: float = 0.9) -> None:
        """A box with round corners: something that is done."""
        self.axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, linewidth=1,
                                           boxstyle="round,pad=0,rounding_size=0.15", **_inks(colour)))
        self.text(x, y, text)

    def cells(self, x: float, y: float, labels: list, colours: str | list | None = None, width: float = 0.8,
              height: float = 0.8) -> None:
        """A row of cells, the first with its middle at x: something that is there."""
        for i, (label, colour) in enumerate(zip(labels, _each(colours, labels), strict=True)):
            corner = (x + (i - 0.5) * width, y - height / 2)
            self.axes.add_patch(Rectangle(corner, width, height, linewidth=0.8, **_inks(colour)))
            self.text(x + i * width, y, str(label))

    def grid(self, x: float, y: float, rows: int, columns: int, side: float = 0.4, marked: dict | None = None,
             colour: str | None = None) -> None:
        """rows x columns empty cells; the upper left one has its middle at (x, y). marked: {(row, column): colour}."""
        for row in range(rows):
            colours = [(marked or {}).get((row, column), colour) for column in range(columns)]
            self.cells(x, y + row * side, [""] * columns, colours, side, side)

    def arrow(self, start: tuple, end: tuple, text: str = "", bend: float = 0.0, head: bool = True,
              colour: str = "black", align: str = "center", up: float = 0.3) -> None:
        """From start to end; the text stands `up` above its middle."""
        self.axes.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>" if head else "-", "color": PALETTE[colour], "linewidth": 1, "shrinkA": 0, "shrinkB": 0,
            "connectionstyle": f"arc3,rad={bend}"})
        if text:
            self.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - up, text, align, 8)

    def chain(self, y: float, places: list[float], labels: list[str], colours: str | list | None = None,
              width: float = 1.8) -> None:
        """Boxes in a row, with an arrow from each to the next."""
        for x, label, colour in zip(places, labels, _each(colours, labels), strict=True):
            self.box(x, y, label, colour, width)
        for left, right in zip(places, places[1:]):
            self.arrow((left + width / 2, y), (right - width / 2, y))

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A small circle in which two things are added, or whatever the sign says."""
        self.axes.text(x, y, sign, ha="center", va="center", fontsize=10,
                       bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black"})

    def picture(self, alt: str) -> Picture:
        return picture(self.figure, alt)


def _inks(colour: str | None) -> dict:
    return {"facecolor": to_rgba(PALETTE[colour], 0.4) if colour else "white", "edgecolor": "black"}


def _each(colours: str | list | None, labels: list) -> list:
    """A colour for each label, where one may be given for all."""
    return colours if isinstance(colours, list) else [colours] * len(labels)
