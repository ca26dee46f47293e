"""Moving Shapes: a toy world whose clips and truth come from one scene description; so do its captions (captions.py).

A scene says what is there (colour, shape, size), what it does (motion, speed) and on which ground.
Where everything is at time t is a closed formula of t in seconds and of fractions of the frame, so a
scene can be rendered at any frame rate, length and size. y points down, as in an image.

Three levels: 1, one object on a plain ground; 2, two objects, each with its own motion; 3, a textured
ground that is fixed in the world while a camera pans or zooms, and shapes drawn as outlines.
Some (colour, shape, motion) triples never occur in training, see `unseen`: there a model must compose.
"""

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

COLOURS = {"red": (230, 30, 30), "orange": (245, 130, 10), "yellow": (240, 225, 20), "green": (30, 170, 50),
           "cyan": (20, 205, 215), "blue": (35, 65, 230), "purple": (140, 40, 205), "pink": (250, 90, 175)}
GROUNDS = {"black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}
TEXTURES = ("plain", "striped", "checkered", "dotted")
CAMERAS = ("still", "pans left", "pans right", "zooms in", "zooms out")
SIZES = {"small": 0.12, "big": 0.16}                # radius of the circle of equal area, in fractions of the frame

# Corners and the inner radius between two corners, for a corner at radius 1. A circle has no corners.
SHAPES = {"circle": (0, 1.0), "square": (4, math.cos(math.pi / 4)), "triangle": (3, 0.5), "star": (5, 0.45)}
OUTLINE = 0.35                                      # width of an outline, in units of the object's radius

HEADINGS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
            "up right": (1, -1), "up left": (-1, -1), "down right": (1, 1), "down left": (-1, 1)}
MOTIONS = (*HEADINGS, "grow", "shrink", "spin", "bounce", "orbit", "stay")
# A speed's meaning for each kind of motion: frames a second, turns a second, e-folds of the radius a second.
SPEEDS = {"slow": {"move": 0.14, "bounce": 0.30, "orbit": 0.40, "spin": 0.20, "scale": 0.22},
          "fast": {"move": 0.25, "bounce": 0.45, "orbit": 0.65, "spin": 0.39, "scale": 0.38}}
ORBIT_RADIUS = 0.20
SECONDS = 2.0                                       # the length of clip that objects are placed for


@dataclass(frozen=True)
class Thing:
    """One object. (x, y) is its place at t = 0 in fractions of the frame (for an orbit, the centre).

    Raises ValueError for a colour, shape, motion, size or speed that is not in this world.
    """

    colour: str
    shape: str
    motion: str
    size: str = "small"
    speed: str = "slow"
    x: float = 0.5
    y: float = 0.5
    heading: tuple[float, float] = (0.0, 0.0)       # unit vector of a bounce; a straight motion's is in its name
    phase: float = 0.0                              # of an orbit, radians
    sense: int = 1                                  # +1 clockwise on the screen, -1 the other way
    outlined: bool = False

    def __post_init__(self):
        _check(self, colour=COLOURS, shape=SHAPES, motion=MOTIONS, size=SIZES, speed=SPEEDS)


@dataclass(frozen=True)
class Scene:
    """Things on a ground, seen by a camera. Raises ValueError for a ground, texture or camera not in this world."""

    things: tuple[Thing, ...]
    ground: str = "black"
    texture: str = "plain"
    camera: str = "still"

    def __post_init__(self):
        _check(self, ground=GROUNDS, texture=TEXTURES, camera=CAMERAS)


def _check(thing, **known) -> None:
    for name, names in known.items():
        if getattr(thing, name) not in names:
            raise ValueError(f"{name} is {getattr(thing, name)!r}, but must be one of {', '.join(names)}")


def unseen(colour: str, shape: str, motion: str) -> bool:
    """True for the one triple in eight that is never in training: for each shape and motion, one colour."""
    c, s, m = list(COLOURS).index(colour), list(SHAPES).index(shape), MOTIONS.index(motion)
    return (3 * c + 2 * s + m) % 8 == 0


def combinations(split: str = "train") -> list[tuple[str, str, str]]:
    """All (colour, shape, motion) of a split, "train" or "unseen". A spinning circle looks still, so there is none."""
    if split not in ("train", "unseen"):
        raise ValueError(f'split is "train" or "unseen", not {split!r}')
    return [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS
            if (s, m) != ("circle", "spin") and unseen(c, s, m) == (split == "unseen")]


# ---------------------------------------------------------------- where things are

def _reach(shape: str) -> float:
    """Distance of the farthest point from the centre, for an object of radius 1 (that is, of area pi)."""
    n, inner = SHAPES[shape]
    return 1.0 if n == 0 else math.sqrt(math.pi / (n * inner * math.sin(math.pi / n)))


def state(thing: Thing, seconds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where `thing` is at `seconds` (F,): x, y, radius (fractions of the frame), angle (radians), each (F,) float64."""
    t = seconds.double()
    speed = SPEEDS[thing.speed]
    x, y, radius, angle = t * 0 + thing.x, t * 0 + thing.y, t * 0 + SIZES[thing.size], t * 0
    if thing.motion in HEADINGS:
        heading = _unit(HEADINGS[thing.motion])
        x, y = x + speed["move"] * heading[0] * t, y + speed["move"] * heading[1] * t
    elif thing.motion == "bounce":                  # a billiard: fold the straight line back into the frame
        margin = SIZES[thing.size] * _reach(thing.shape)
        x = _fold(x + speed["bounce"] * thing.heading[0] * t, margin)
        y = _fold(y + speed["bounce"] * thing.heading[1] * t, margin)
    elif thing.motion == "orbit":
        turn = thing.phase + thing.sense * 2 * math.pi * speed["orbit"] * t
        x, y = x + ORBIT_RADIUS * torch.cos(turn), y + ORBIT_RADIUS * torch.sin(turn)
    elif thing.motion == "spin":
        angle = thing.sense * 2 * math.pi * speed["spin"] * t
    elif thing.motion in ("grow", "shrink"):        # the size that the caption names is the one half-way
        sign = 1 if thing.motion == "grow" else -1
        radius = radius * torch.exp(sign * speed["scale"] * (t - SECONDS / 2))
    return x, y, radius, angle


def _fold(x: Tensor, margin: float) -> Tensor:
    """Reflects a straight motion at `margin` and 1 - margin: a triangle wave."""
    width = 1 - 2 * margin
    return margin + width - ((x - margin) % (2 * width) - width).abs()


def camera_state(camera: str, seconds: Tensor) -> tuple[Tensor, Tensor]:
    """Pan (fractions of the frame, to the right) and zoom (a factor), each (F,): none at t = 1 s, the clip's middle."""
    t = seconds.double() - SECONDS / 2
    pan = {"pans left": -0.12, "pans right": 0.12}.get(camera, 0.0) * t
    zoom = torch.exp({"zooms in": 0.2, "zooms out": -0.2}.get(camera, 0.0) * t)
    return pan, zoom


# ---------------------------------------------------------------- sampling scenes

def sample_scene(rng: random.Random, level: int = 1, split: str = "train") -> Scene:
    """A random scene of a level (1, 2, 3). With split "unseen" the (first) thing is a triple never trained on."""
    if level not in (1, 2, 3):
        raise ValueError(f"level is 1, 2 or 3, not {level!r}")
    if split not in _COMBINATIONS:
        raise ValueError(f'split is "train" or "unseen", not {split!r}')
    ground = rng.choice(list(GROUNDS))
    first = sample_thing(rng, *rng.choice(_COMBINATIONS[split]))
    if level == 1:
        return Scene((first,), ground)
    if level == 2:
        return Scene(_two_things(rng, split), ground)
    texture, camera = rng.choice(TEXTURES), rng.choice(CAMERAS)
    return Scene((replace(first, outlined=rng.random() < 0.5),), ground, texture, camera)


_COMBINATIONS = {split: combinations(split) for split in ("train", "unseen")}


def sample_thing(rng: random.Random, colour: str, shape: str, motion: str,
                 size: str | None = None, speed: str | None = None) -> Thing:
    """Places an object so that it stays inside the frame for `SECONDS` (a bounce meets a wall half-way)."""
    size = size or rng.choice(list(SIZES))
    speed = "slow" if motion == "stay" else speed or rng.choice(list(SPEEDS))
    margin = SIZES[size] * _reach(shape)
    if motion in ("grow", "shrink"):
        margin *= math.exp(SPEEDS[speed]["scale"] * SECONDS / 2)
    if motion == "orbit":
        margin += ORBIT_RADIUS
    x, y = rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin)
    heading = (0.0, 0.0)
    if motion in HEADINGS:
        heading = _unit(HEADINGS[motion])
        far = SPEEDS[speed]["move"] * SECONDS
        x, y = (_start(rng, margin, far * h) if h else p for h, p in zip(heading, (x, y)))
    elif motion == "bounce":
        heading = _unit(HEADINGS[rng.choice(("right", "left", "up", "down"))])
        before = SPEEDS[speed]["bounce"] * rng.uniform(0.6, 1.2)         # way to the wall
        x, y = (_before_wall(margin, h, before) if h else p for h, p in zip(heading, (x, y)))
    return Thing(colour, shape, motion, size, speed, x, y, heading,
                 phase=rng.uniform(0, 2 * math.pi), sense=rng.choice((1, -1)))


def _unit(v: tuple[int, int]) -> tuple[float, float]:
    length = math.hypot(*v)
    return v[0] / length, v[1] / length


def _start(rng: random.Random, margin: float, far: float) -> float:
    """A coordinate from which moving `far` (signed) ends inside; the best compromise where there is no room."""
    low, high = margin + max(-far, 0), 1 - margin - max(far, 0)
    return rng.uniform(low, high) if low < high else (low + high) / 2


def _before_wall(margin: float, heading: float, way: float) -> float:
    way = min(way, 1 - 2 * margin)
    return 1 - margin - way if heading > 0 else margin + way


def _two_things(rng: random.Random, split: str) -> tuple[Thing, Thing]:
    """Two things of different colours that never touch within `SECONDS`."""
    seconds = torch.linspace(0, SECONDS, 17)
    first = rng.choice(_COMBINATIONS[split])
    while True:
        second = rng.choice(_COMBINATIONS["train"])
        if first[0] == second[0]:
            continue
        # Many places are tried before other things are drawn, or motions that need room would be rare.
        for _ in range(100):
            pair = tuple(sample_thing(rng, *what, "small" if rng.random() < 0.7 else "big") for what in (first, second))
            (xa, ya, ra, _), (xb, yb, rb, _) = (state(thing, seconds) for thing in pair)
            room = ra * _reach(pair[0].shape) + rb * _reach(pair[1].shape) + 0.02
            if bool(((xa - xb) ** 2 + (ya - yb) ** 2 > room ** 2).all()):
                return pair


# ---------------------------------------------------------------- drawing

def times(num_frames: int = 16, fps: float = 8.0) -> Tensor:
    """The times of a clip's frames in seconds, (F,) float64, from 0."""
    if num_frames < 1 or fps <= 0:
        raise ValueError(f"need num_frames >= 1 and fps > 0, got {num_frames} and {fps}")
    return torch.arange(num_frames, dtype=torch.float64) / fps


def render(scenes: list[Scene], num_frames: int = 16, fps: float = 8.0, height: int = 64, width: int = 64,
           seconds: Tensor | None = None) -> Tensor:
    """Draws scenes, anti-aliased: (N, F, H, W, 3) uint8. `seconds` (F,) asks for certain times instead of a rate."""
    if not scenes:
        raise ValueError("scenes is empty, but there must be at least one to draw")
    t = times(num_frames, fps) if seconds is None else seconds
    pan, zoom = (torch.stack(v)[:, :, None, None] for v in zip(*(camera_state(s.camera, t) for s in scenes)))
    # pixel centres in fractions of the frame, then where the camera sees them in the world
    ys, xs = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    moving = any(s.camera != "still" for s in scenes)
    px = ((xs - 0.5) / zoom.float() + 0.5 + pan.float() if moving else xs[None, None])      # (N or 1, F or 1, H, W)
    py = ((ys - 0.5) / zoom.float() + 0.5 if moving else ys[None, None])
    pixel = 1 / (min(height, width) * zoom.float())                                         # (N, F, 1, 1)
    image = _ground(scenes, px, py, len(t))                                                 # (N, F, H, W, 3)
    for slot in range(max(len(s.things) for s in scenes)):
        rows = [i for i, s in enumerate(scenes) if slot < len(s.things)]
        things = [scenes[i].things[slot] for i in rows]
        pick = rows if moving else [0]
        alpha = _coverage(things, t, px[pick], py[pick], pixel[rows])[..., None]            # (n, F, H, W, 1)
        colour = torch.tensor([COLOURS[k.colour] for k in things], dtype=torch.float32)[:, None, None, None]
        image[rows] += alpha * (colour - image[rows])
    return image.round_().to(torch.uint8)


def _coverage(things: list[Thing], t: Tensor, px: Tensor, py: Tensor, pixel: Tensor) -> Tensor:
    """How much of each pixel a thing covers, (N, F, H, W) in [0, 1], from the distance to its edge."""
    x, y, radius, angle = (torch.stack(v).float()[:, :, None, None] for v in zip(*(state(k, t) for k in things)))
    dx, dy = px - x, py - y                                                                 # (N, F, H, W)
    distance = shape_distance([k.shape for k in things], dx, dy, radius, angle)
    outlined = torch.tensor([k.outlined for k in things])[:, None, None, None]
    if outlined.any():
        half = OUTLINE / 2 * radius
        distance = torch.where(outlined, (distance + half).abs() - half, distance)
    return (0.5 - distance / pixel).clamp_(0, 1)


def shape_distance(shapes: list[str], dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Signed distance to the outline (negative inside), (N, F, H, W); shapes of one `radius` have one area.

    A polygon or star repeats one wedge n times: fold the plane into half a wedge, and the outline is a line
    from the corner (R, 0) to the inner point at angle pi/n.
    """
    out = torch.empty(torch.broadcast_shapes(dx.shape, radius.shape))
    for name in set(shapes):
        rows = [i for i, s in enumerate(shapes) if s == name]
        x, y, r = dx[rows], dy[rows], radius[rows]
        n, inner = SHAPES[name]
        length = torch.sqrt(x * x + y * y)
        if n == 0:
            out[rows] = length - r
            continue
        wedge = math.pi / n
        # the first corner points up; a square stands on its side, so that its corners point up left and up right
        up = math.pi / 2 + (wedge if n == 4 else 0)
        theta = torch.atan2(y, x) - angle[rows] + up
        theta = ((theta + wedge) % (2 * wedge) - wedge).abs()                   # angle from the nearest corner
        nx, ny = inner * math.sin(wedge), 1 - inner * math.cos(wedge)           # normal of the edge, for a corner at 1
        scale = math.hypot(nx, ny)
        corner = _reach(name) * r
        out[rows] = ((length * torch.cos(theta) - corner) * nx + length * torch.sin(theta) * ny) / scale
    return out


def _ground(scenes: list[Scene], px: Tensor, py: Tensor, frames: int) -> Tensor:
    """The ground, (N, F, H, W, 3) float in 0..255. Textures are shades of grey, fixed in the world."""
    base = torch.tensor([GROUNDS[s.ground] for s in scenes], dtype=torch.float32)[:, None, None, None]
    size = (len(scenes), frames, px.shape[2], px.shape[3], 3)
    image = base.expand(size).clone()
    for i, scene in enumerate(scenes):
        if scene.texture == "plain":
            continue
        x, y = (p[i if len(p) > 1 else 0] * 2 * math.pi * 3 for p in (px, py))              # three periods a frame
        wave = {"striped": torch.sin(x), "checkered": torch.sin(x) * torch.sin(y),
                "dotted": torch.cos(x) + torch.cos(y) - 1.2}[scene.texture]
        other = {"black": 90.0, "grey": 70.0, "white": 165.0}[scene.ground]
        mix = (0.5 + 4 * wave).clamp(0, 1)[..., None]                                       # (F, H, W, 1)
        image[i] += mix * (other - image[i])
    return image
