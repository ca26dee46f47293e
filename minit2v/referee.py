"""The referee: reads colour, shape, size, motion and speed back from a clip, by rule.

It sees pixels only and knows nothing of how a clip was made, so it judges a generated clip exactly as it
judges a real one. The grounds of Moving Shapes are grey, so every coloured pixel belongs to an object:

    colour   the hue of its pixels
    shape    moments of its area that do not change when it moves, grows or turns
    size     its area, as the radius of the circle of equal area
    motion   the track of its centre, its area and its angle, in fractions of the frame and in seconds

A clip in which no object can be followed from frame to frame is unreadable: it yields no readings.
Motion is motion in the picture. Where the camera pans or zooms (level 3) it is read as the object's: there colour and
shape are right, and three in four motions. No score of this project is of level 3.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .world import COLOURS, HEADINGS, ORBIT_RADIUS, SHAPES, SIZES, SPEEDS, Scene, Thing, render

CHROMA = 0.15              # max - min of R, G, B from which a pixel counts as coloured
MIN_AREA = 0.004           # of the frame: an object is not smaller (that is 16 pixels of 64 x 64)


@dataclass(frozen=True)
class Reading:
    """What the referee saw of one object. `distance` tells how far its shape is from the nearest known one."""

    colour: str
    shape: str
    motion: str
    size: str
    speed: str
    outlined: bool
    distance: float


def read(clip: Tensor, fps: float = 8.0) -> list[Reading]:
    """The objects of a clip (F, H, W, 3) uint8, the largest first; [] where the clip is unreadable.

    Raises ValueError for another shape or type, for fewer than four frames (too few to tell a motion), or no fps.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or len(clip) < 4:
        raise ValueError(f"clip is {clip.dtype} {tuple(clip.shape)}; it must be uint8 (F, H, W, 3) with F >= 4")
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be the number of frames a second, above 0")
    image = clip.float() / 255
    high, low = image.amax(-1), image.amin(-1)
    chroma = torch.where(high - low > CHROMA, high - low, 0.0)                      # (F, H, W)
    if (chroma > 0).float().mean() > 0.6:
        return []
    nearest = _nearest_colour(image)                                                # (F, H, W) index into COLOURS
    areas = torch.stack([torch.where(nearest == k, chroma / _hues()[1][k], 0.0).mean() for k in range(len(COLOURS))])
    least = max(MIN_AREA, 0.15 * float(areas.max()))
    colours = [int(k) for k in areas.argsort(descending=True)[:2] if areas[k] > least]
    if not colours:
        return []
    # Every coloured pixel goes to the nearest colour that an object has; mixed pixels at an edge are shares of it.
    # A pixel is asked together with its neighbours: the rim of something orange may look yellow after an autoencoder.
    around = F.avg_pool2d(image.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)   # (F, 3, H, W)
    nearest = _nearest_colour(around.permute(0, 2, 3, 1), colours)
    readings = [_read_object(torch.where(nearest == k, chroma / _hues()[1][k], 0.0).clamp(max=1.0), k, fps)
                for k in colours]
    return [r for r in readings if r is not None]


def agrees(readings: list[Reading], scene: Scene,
           attributes: tuple[str, ...] = ("colour", "shape", "motion")) -> dict[str, bool]:
    """Which attributes of a scene's things the readings have right; "all" is the conjunction.

    Things and readings are matched by colour first. Another number of objects than in the scene makes all wrong.
    """
    if len(readings) != len(scene.things):
        return dict.fromkeys((*attributes, "all"), False)
    things = list(scene.things)
    if len(things) == 2 and readings[0].colour != things[0].colour and (
            readings[1].colour == things[0].colour or readings[0].colour == things[1].colour):
        things.reverse()
    found = {a: all(getattr(r, a) == getattr(t, a) for r, t in zip(readings, things)) for a in attributes}
    return {**found, "all": all(found.values())}


# ---------------------------------------------------------------- colour

@cache
def _hues() -> tuple[Tensor, Tensor]:
    """Hue (0..1) and chroma (0..1) of each colour of the palette, (8,) each."""
    rgb = torch.tensor(list(COLOURS.values())) / 255
    return torch.tensor([colorsys.rgb_to_hsv(*c.tolist())[0] for c in rgb]), rgb.amax(-1) - rgb.amin(-1)


def _nearest_colour(image: Tensor, among: list[int] | None = None) -> Tensor:
    """The palette colour whose hue is nearest, for each pixel: (..., 3) -> (...). Mixing with grey keeps a hue."""
    r, g, b = image.unbind(-1)
    hue = torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b)                        # angle on the colour circle
    # the palette's own hues on the same circle
    palette = torch.tensor(list(COLOURS.values())).float()
    own = torch.atan2(math.sqrt(3) * (palette[:, 1] - palette[:, 2]), 2 * palette[:, 0] - palette[:, 1] - palette[:, 2])
    among = list(range(len(own))) if among is None else among
    apart = torch.stack([torch.cos(hue - own[k]) for k in among])                   # (colours, ...)
    return torch.tensor(among)[apart.max(0).indices]


# ---------------------------------------------------------------- one object

def _read_object(mask: Tensor, colour: int, fps: float) -> Reading | None:
    """Reads an object from how much of each pixel it covers, (F, H, W) in [0, 1]."""
    area, x, y, moments = _moments(mask)                                            # (F,), (F,), (F,), (F, 4) complex
    if (area < MIN_AREA / 2).float().mean() > 0.1:                                  # gone in more than a frame in ten
        return None
    seen = area >= MIN_AREA / 2
    shape, outlined, distance = _shape(moments[seen])
    if distance > 1.0:
        return None
    # an outline covers less than the shape that it bounds
    filled = area / _coverage_of(shape) if outlined else area
    radius = (filled / math.pi).sqrt()
    t = torch.arange(len(mask)) / fps
    corners = SHAPES[shape][0]
    angle = moments[:, corners - 2].angle() if corners else torch.zeros(len(mask))
    motion, speed = _motion(t[seen], x[seen], y[seen], radius[seen], _unwrap(angle[seen]) / max(corners, 1))
    if motion is None:
        return None
    middle = float(radius[seen].log().median().exp())
    size = min(SIZES, key=lambda s: abs(math.log(middle / SIZES[s])))
    return Reading(list(COLOURS)[colour], shape, motion, size, speed, outlined, distance)


def _moments(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area, centre, and the moments 2, 3, 4, 5 about it, made independent of size: see `_shape`.

    Moment 2 is the mean of |z|^2, moments 3 to 5 are the means of z^n, z = x + iy from the centre: a shape that
    looks the same after a third of a turn has a large moment 3, and its angle tells how far the shape is turned.
    """
    frames, height, width = mask.shape
    ys, xs = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    area = mask.mean((1, 2))                                                        # in units of the frame
    total = mask.sum((1, 2)).clamp(min=1e-6)
    x, y = (mask.sum(1) @ xs) / total, (mask.sum(2) @ ys) / total                   # (F,) each
    dx, dy = (xs - x[:, None])[:, None, :], (ys - y[:, None])[:, :, None]           # (F, 1, W), (F, H, 1)
    z = torch.complex(dx.expand(mask.shape), dy.expand(mask.shape))                 # (F, H, W)
    size = area.clamp(min=1e-6).sqrt()
    square = z * z                                                                  # powers of complex numbers are slow
    cube = square * z
    powers = [z.abs().square().to(z.dtype), cube, square * square, square * cube]
    means = [(mask * p).sum((1, 2)) / total / size ** n for n, p in zip((2, 3, 4, 5), powers)]
    return area, x, y, torch.stack(means, dim=1)


def _features(moments: Tensor) -> Tensor:
    """(F, 4) complex -> (4,): the middle of each moment's size over the frames, scaled to matter alike.

    The phases of frames are left out, except that noise in a moment should not add up: hence the median.
    """
    sizes = moments.abs().median(0).values
    return sizes * torch.tensor([40.0, 60.0, 60.0, 60.0])


@cache
def _known_shapes() -> dict[tuple[str, bool], tuple[Tensor, float]]:
    """Features and area (of a filled one) of every shape, filled and outlined, measured on a large drawing of it."""
    known = {}
    for shape in SHAPES:
        for outlined in (False, True):
            thing = Thing("red", shape, "stay", "big", outlined=outlined)
            clip = render([Scene((thing,))], num_frames=1, height=256, width=256)[0]
            mask = clip[..., 0].float() / COLOURS["red"][0]
            area, _, _, moments = _moments(mask)
            known[shape, outlined] = _features(moments), float(area) / (math.pi * SIZES["big"] ** 2)
    return known


def _shape(moments: Tensor) -> tuple[str, bool, float]:
    """The nearest known shape, whether it is an outline, and its distance."""
    features = _features(moments)
    distances = {key: float((features - known).norm()) for key, (known, _) in _known_shapes().items()}
    best = min(distances, key=distances.get)
    return *best, distances[best] / 8.0


def _coverage_of(shape: str) -> float:
    return _known_shapes()[shape, True][1]


# ---------------------------------------------------------------- motion

def _unwrap(angle: Tensor) -> Tensor:
    """Angles without jumps of a whole turn."""
    step = torch.diff(angle)
    step = (step + math.pi) % (2 * math.pi) - math.pi
    return torch.cat([angle[:1], angle[:1] + step.cumsum(0)])


def _motion(t: Tensor, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor) -> tuple[str | None, str]:
    """Names a track. Rules in order: does the centre travel? In a circle, there and back, or straight?
    If not: does the radius change, does it turn? Returns (None, "") for a track that jumps about."""
    place = torch.stack([x, y], dim=1)                                              # (F, 2)
    steps = place.diff(dim=0)                                                       # (F - 1, 2)
    seconds = float(t[-1] - t[0])
    path = steps.norm(dim=1)
    if path.max() > 0.15 + 1.2 / max(len(t) - 1, 1):                                # no object is that fast: a jump
        return None, ""
    turns = steps.diff(dim=0).norm(dim=1).sum()                                     # 0 for a straight, even motion,
    if turns > path.sum() + 0.015 * len(steps):                                     # 1.4 path for a random walk
        return None, ""
    spread = (place - place.mean(0)).norm(dim=1).max()
    if spread < 0.06:
        growth = _slope(t, radius.clamp(min=1e-4).log())                            # e-folds a second
        turns = abs(_slope(t, angle)) / (2 * math.pi)                               # turns a second
        if abs(growth) > 0.10:
            return ("grow" if growth > 0 else "shrink"), _speed("scale", abs(growth))
        if turns > 0.09:
            return "spin", _speed("spin", turns)
        return "stay", "slow"
    # principal axes of the track
    centred = place - place.mean(0)
    long, short = torch.linalg.svdvals(centred).div(math.sqrt(len(t))).tolist()     # standard deviations
    speed = float(path.sum()) / seconds
    if short > 0.25 * long and short > 0.03:
        radius_of_track = _circle(place)
        if not 0.4 * ORBIT_RADIUS < radius_of_track < 2.5 * ORBIT_RADIUS:
            return None, ""
        return "orbit", _speed("orbit", speed / (2 * math.pi * radius_of_track))
    axis = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    along = centred @ axis                                                          # (F,) position on the line
    net = float(along[-1] - along[0])
    if float(along.max() - along.min()) > abs(net) + 0.08:                          # it went further than it ended
        return "bounce", _speed("bounce", speed)
    dx, dy = ((axis * net).tolist())
    heading = max(HEADINGS, key=lambda h: (dx * HEADINGS[h][0] + dy * HEADINGS[h][1]) / math.hypot(*HEADINGS[h]))
    return heading, _speed("move", abs(net) / seconds)


def _slope(t: Tensor, values: Tensor) -> float:
    """Slope of the least-squares line through `values` over `t`."""
    t = t - t.mean()
    return float((t * (values - values.mean())).sum() / (t * t).sum())


def _circle(place: Tensor) -> float:
    """Radius of the circle of least squares through points (F, 2) (Kasa's linear fit)."""
    a = torch.cat([2 * place, torch.ones(len(place), 1)], dim=1)
    solution = torch.linalg.lstsq(a, place.square().sum(1, keepdim=True)).solution.flatten()
    return math.sqrt(max(float(solution[2] + solution[:2].square().sum()), 0.0))


def _speed(kind: str, value: float) -> str:
    """The named speed whose value is nearest, in ratio."""
    return min(SPEEDS, key=lambda name: abs(math.log(max(value, 1e-6) / SPEEDS[name][kind])))
