"""Pictures for the chapters: film strips, clips that play, heat maps, plots.

Every function returns a `Picture` and asks for `alt`, a sentence that says what one sees: for a reader who
cannot see it, and for a page that shows no pictures. It goes out as `<img alt="...">`, because viewers of notebooks
show an `image/png` output without any alt text. All pictures are PNG inside, a playing clip too (an animated one).

Colours are those of Okabe & Ito (2008), which stay apart in every common kind of colour blindness.
"""

import base64
import html
import io

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minit2v.video import film_strip

PALETTE = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
           "blue": "#0072B2", "red": "#D55E00", "purple": "#CC79A7"}
LINES = ("blue", "orange", "green", "purple", "sky", "red", "black")                       # in this order
DPI = 150                                           # of plots; they are shown at 100, so that they stay sharp
TITLE = 15                                          # height of a title's letters, pixels
GAP, GREY = 2, 190                                  # between two frames: a line that shows on white and on black


class Picture:
    """A PNG with its description; the last line of a cell shows it."""

    def __init__(self, png: bytes, alt: str, width: int | None = None):
        if len(alt.split()) < 4:
            raise ValueError(f"alt is {alt!r}; say in a sentence what one sees, for a reader who cannot see it")
        self.png, self.alt, self.width = png, alt, width

    def _repr_html_(self) -> str:
        width = f' width="{self.width}"' if self.width else ""
        data = base64.b64encode(self.png).decode()
        return f'<img alt="{html.escape(self.alt)}"{width} src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"[picture: {self.alt}]"


def strip(clips, alt: str, titles: list[str] | None = None, frames: int = 8, scale: int = 1) -> Picture:
    """Film strips below one another. clips: one (F, H, W, 3) uint8, or several of them as a list or a batch.

    titles: one above each strip, in letters that the drawing font knows (no Chinese). frames: how many, evenly
    spaced, the first and the last among them. scale: screen pixels along the side of each of the clip's pixels.
    """
    clips = _listed(clips)
    titles = [""] * len(clips) if titles is None else titles
    if len(titles) != len(clips):
        raise ValueError(f"{len(titles)} titles for {len(clips)} clips; give each clip one")
    rows = [_greyed(film_strip(clip, frames, scale, GAP), clip.shape[2] * scale).numpy() for clip in clips]
    above = TITLE + 9 if any(titles) else 4
    width, height = max(row.shape[1] for row in rows), sum(row.shape[0] + above for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE), 0
    for row, title in zip(rows, titles):
        draw.text((1, y + 3), _drawable(title), fill="black", font=font)
        sheet.paste(Image.fromarray(row), (0, y + above))
        y += row.shape[0] + above
    return Picture(_png(sheet), alt)


def play(clips, alt: str, fps: float = 8.0, scale: int = 3, gap: int = GAP) -> Picture:
    """Plays a clip in a loop, several side by side. clips: as in `strip`, all of one size and length.

    The frames share 256 colours: exact where there are no more than these, otherwise hard to see, and a quarter of
    the bytes. Strips keep every colour.
    """
    clips = [clip.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for clip in _listed(clips)]
    line = torch.full_like(clips[0][:, :, :1], GREY).repeat(1, 1, gap, 1)                 # (F, H * scale, gap, 3)
    pieces = [piece for clip in clips for piece in (line, clip)][1:]                      # none before the first
    frames = torch.cat(pieces, dim=2)                                                     # (F, H', W', 3)
    sheet, height = Image.fromarray(frames.flatten(0, 1).numpy()), frames.shape[1]
    how = Image.Quantize.MEDIANCUT if sheet.getcolors(256) else Image.Quantize.FASTOCTREE
    few = sheet.quantize(256, how, dither=Image.Dither.NONE)
    first, *rest = [few.crop((0, y, few.width, y + height)) for y in range(0, few.height, height)]
    return Picture(_png(first, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0), alt)


def tint(maps: Tensor, limit: float = 2.5, scale: int = 8) -> Tensor:
    """Numbers of both signs as pictures for `strip` or `play`: (F, h, w) -> (F, h * scale, w * scale, 3) uint8.

    Purple is below zero, white is zero, orange above, as in `heat`; the colours are full at `limit` and beyond.
    """
    shades = (maps.detach().float() / limit).clamp(-1, 1) / 2 + 0.5
    pictures = torch.from_numpy(colormaps["PuOr_r"](shades.numpy(), bytes=True)[..., :3].copy())
    return pictures.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def heat(matrices, alt: str, titles: list[str] | None = None, values: bool = False, contour: float | None = None,
         rows: list[str] | None = None, columns: list[str] | None = None, limits: tuple | None = None,
         digits: int = 2, size: float = 3.0, xlabel: str = "", ylabel: str = "") -> Picture:
    """Numbers as colours: (H, W), or a list of such, side by side, each with its own scale unless `limits` are given.

    Where numbers have both signs, purple is below zero, white is zero, orange above. values: writes each number
    into its cell, with so many digits. contour: draws the line at this height. size: inches a panel. xlabel stands
    below each panel, ylabel at the first.
    """
    matrices = [matrices] if isinstance(matrices, Tensor) else list(matrices)
    figure = Figure(figsize=(size * 1.25 * len(matrices), size), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, matrix, title in zip(panels, matrices, titles or [""] * len(matrices)):
        matrix = matrix.detach().float()
        signed = bool(matrix.min() < 0 < matrix.max())
        most = float(matrix.abs().max()) if signed else None
        low, high = limits or ((-most, most) if signed else (None, None))
        how = {"cmap": "PuOr_r" if signed else "cividis", "vmin": low, "vmax": high}
        shown = axes.imshow(matrix, interpolation="nearest", **how)
        figure.colorbar(shown, ax=axes, shrink=0.8)
        if contour is not None:
            axes.contour(matrix, levels=[contour], colors="black", linewidths=1)
        for r, c in [(r, c) for r in range(len(matrix)) for c in range(matrix.shape[1])] if values else []:
            dark = abs(float(shown.norm(matrix[r, c])) - 0.5) > 0.35 if signed else shown.norm(matrix[r, c]) < 0.5
            axes.text(c, r, f"{matrix[r, c]:.{digits}f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel=xlabel, ylabel=ylabel if axes is panels[0] else "")
        axes.locator_params(integer=True)                                      # cells are counted: no 2.5
        if rows:
            axes.set_yticks(range(len(rows)), rows)
        if columns:
            axes.set_xticks(range(len(columns)), columns)
    return picture(figure, alt)


def plot(lines: dict, alt: str, x=None, xlabel: str = "", ylabel: str = "", colours: list[str] | None = None,
         size: tuple = (6.0, 2.6), beside: bool = False) -> Picture:
    """Curves in one frame, told apart by colour and by their marks. lines: name -> (n,) values; colours: of PALETTE.

    beside: puts the legend to the right of the frame, for curves that leave no corner free.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, mark in zip(lines.items(), colours or LINES, "os^Dvx+"):
        values = torch.as_tensor(values)
        axes.plot(torch.arange(len(values)) if x is None else torch.as_tensor(x), values, color=PALETTE[colour],
                  marker=mark, markersize=4 if len(values) <= 40 else 0, linewidth=1.5, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=9, **({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if beside else {}))
    return picture(figure, alt)


def stations(stops: list[tuple], ways: list[str], alt: str) -> Picture:
    """A map, from top to bottom. stops: (name, shape, what is seen there): a text, (H, W) numbers, or (H, W, 3) uint8.

    ways: what leads from each stop to the next; it is written beside the arrow between them.
    """
    if len(ways) != len(stops) - 1:
        raise ValueError(f"{len(ways)} ways between {len(stops)} stops; give one for each two neighbours")
    width, gap = 5.0, 0.42                                                     # inches
    heights = [0.3 if isinstance(seen, str) else max(0.3, width * seen.shape[0] / seen.shape[1]) for *_, seen in stops]
    figure = Figure(figsize=(width + 2.2, sum(heights) + gap * len(stops)))
    top = figure.get_figheight()
    for (name, shape, seen), height, way in zip(stops, heights, [*ways, None]):
        bottom = top - height - gap / 2
        axes = figure.add_axes((2.1 / figure.get_figwidth(), bottom / figure.get_figheight(),
                                width / figure.get_figwidth(), height / figure.get_figheight()))
        axes.set(xticks=[], yticks=[])
        label = f"{name}\n{shape}".strip()
        axes.text(-0.02, 0.5, label, ha="right", va="center", transform=axes.transAxes, fontsize=10)
        if isinstance(seen, str):
            axes.text(0.5, 0.5, _drawable(seen), ha="center", va="center", transform=axes.transAxes, fontsize=10)
        else:
            most = float(seen.abs().max()) if seen.dim() == 2 else None
            signed = most is not None and bool(seen.min() < 0)
            axes.imshow(seen, aspect="auto", interpolation="nearest", cmap="PuOr_r" if signed else "cividis",
                        vmin=-most if signed else None, vmax=most)
        if way is not None:
            axes.text(0.5, -gap / 2 / height, f"\u2193  {way}", ha="center", va="center", transform=axes.transAxes,
                      fontsize=9, color=PALETTE["blue"])
        top -= height + gap
    return picture(figure, alt)


def picture(figure: Figure, alt: str) -> Picture:
    """Any matplotlib figure as a `Picture`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)        # a third of the bytes
    return Picture(_png(image), alt, width=round(figure.get_figwidth() * 100))


def _listed(clips) -> list[Tensor]:
    return [clips] if isinstance(clips, Tensor) and clips.dim() == 4 else list(clips)


def _greyed(row: Tensor, width: int) -> Tensor:
    """A film strip whose gaps, white at first, become grey. width: of one frame, in the strip's pixels."""
    for start in range(width, row.shape[1], width + GAP):
        row[:, start:start + GAP] = GREY
    return row


def _drawable(title: str) -> str:
    if any(ord(letter) > 0x2E7F for letter in title):
        raise ValueError(f"the font that draws pictures has no letters for {title!r}; print it in the cell instead")
    return title


def _png(image: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, **how)
    return buffer.getvalue()
