"""Chapter 01, video as tensors: distances, places and patterns."""

import math

import torch
from einops import rearrange

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake

# 01.ring

def _grid(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 5, 7, generator=generator, dtype=torch.float64) - 0.5
    return [(x, y, 0.3, 0.1), (x, y, 0.2, 0.04)]


def _ring_oracle(x, y, radius, thickness):
    length = torch.linalg.vector_norm(torch.stack([x, y]), dim=0)
    return torch.maximum(length - (radius + thickness / 2), (radius - thickness / 2) - length)


def _ring_whole(x, y, radius, thickness):
    return (torch.hypot(x, y) - radius).abs() - thickness


def _ring_thin(x, y, radius, thickness):
    return (torch.hypot(x, y) - radius).abs()


def _ring_disc(x, y, radius, thickness):
    return torch.hypot(x, y) - radius - thickness / 2


def _ring_squared(x, y, radius, thickness):
    return (x * x + y * y - radius).abs() - thickness / 2


def _ring_inside_out(x, y, radius, thickness):
    return thickness / 2 - (torch.hypot(x, y) - radius).abs()


def _draw_ring(function=_ring_oracle):
    ys, xs = torch.meshgrid(*[(torch.arange(64, dtype=torch.float64) + 0.5) / 64 - 0.5] * 2, indexing="ij")
    cover = (0.5 - function(xs, ys, 0.3, 0.1) * 64).clamp(0, 1)
    return figures.heat(cover, alt="A white ring on black: covered inside its band, empty within and outside.",
                        limits=(0, 1))


RING = Exercise(
    name="01.ring", target="ring", kind="build", title="A ring", minutes=10, cases=_grid, oracle=_ring_oracle,
    gradients=True, celebrate=_draw_ring,
    mistakes=(
        Mistake("whole thickness", _ring_whole, "Your ring is twice as thick as asked for: the band reaches half of "
                "`thickness` to each side of the circle. (Chapter 01, section 3.)"),
        Mistake("no thickness", _ring_thin, "Your distance is nowhere negative, so nothing lies inside: that is a "
                "line without any width. (Chapter 01: inside, a signed distance is below zero.)"),
        Mistake("a disc", _ring_disc, "That is a filled disc: the middle counts as inside. What makes the two sides of "
                "a line look the same?"),
        Mistake("inside out", _ring_inside_out, "The sign is turned round: within the band the distance is negative."),
        Mistake("squared", _ring_squared, "You compare a squared length with a radius. The distance to the centre is "
                "the root of the sum of squares."),
    ),
    hints=(_draw_ring, "How far is a point from the circle line of that radius, no matter on which side of it?",
           "A signed distance gets smaller everywhere by what you make the shape thicker."),
)


# 01.pendulum

def _swings(seed):
    t = torch.linspace(0, 2, 17, dtype=torch.float64)
    return [(t, 0.5, 0.3, 2.0), (t, 0.4, 0.1, 1.3)]


def _pendulum_oracle(t, middle, reach, period):
    return middle - reach * torch.polar(torch.ones_like(t), 2 * math.pi * t / period).real


def _pendulum_middle(t, middle, reach, period):
    return middle + reach * torch.sin(2 * math.pi * t / period)


def _pendulum_right(t, middle, reach, period):
    return middle + reach * torch.cos(2 * math.pi * t / period)


def _pendulum_even(t, middle, reach, period):
    phase = (t / period) % 1
    return middle - reach * (1 - 4 * torch.minimum(phase, 1 - phase))


def _pendulum_radians(t, middle, reach, period):
    return middle - reach * torch.cos(t / period)


def _pendulum_half(t, middle, reach, period):
    return middle - reach * torch.cos(math.pi * t / period)


def _pendulum_often(t, middle, reach, period):
    return middle - reach * torch.cos(2 * math.pi * t * period)


def _draw_pendulum(function=_pendulum_oracle):
    t = torch.linspace(0, 2, 81, dtype=torch.float64)
    return figures.plot({"place": function(t, 0.5, 0.3, 2.0)}, x=t, xlabel="seconds", ylabel="x, share of the frame",
                        alt="A smooth wave that starts at its lowest point, rises to its highest at one second, and "
                            "comes back at two.")


PENDULUM = Exercise(
    name="01.pendulum", target="pendulum", kind="build", title="A pendulum", minutes=10, cases=_swings,
    oracle=_pendulum_oracle, gradients=True, celebrate=_draw_pendulum,
    mistakes=(
        Mistake("starts in the middle", _pendulum_middle, "Your pendulum hangs in the middle at t = 0. It should be "
                "let go at its left end."),
        Mistake("starts at the right", _pendulum_right, "Your pendulum starts at its right end. At t = 0 it should be "
                "at its left end, where x is smallest."),
        Mistake("even speed", _pendulum_even, "Your thing is at each end at the right moment, but it moves at an even "
                "speed, like a bounce between walls. A pendulum slows down before it turns."),
        Mistake("no turns", _pendulum_radians, "One period should be one whole turn of the circle. An angle for `cos` "
                "is counted in radians: how many of these make a turn?"),
        Mistake("half a turn", _pendulum_half, "Your pendulum needs two periods to come back. A swing is there *and* "
                "back: a whole turn of the circle."),
        Mistake("period for frequency", _pendulum_often, "A longer `period` makes your pendulum faster. The period is "
                "how many seconds a swing takes, there and back."),
    ),
    hints=(_draw_pendulum, "Think of the shadow of a wheel's handle: it goes to and fro, and is slow at its ends.",
           "At t = 0 and at t = period it is at `middle - reach`; at half of the period at `middle + reach`."),
)


# 01.flip_book

def _two_clips(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8),)
            for size in ((2, 4, 3, 5, 3), (3, 2, 4, 4, 3))]


def _flip_book_oracle(clips):
    return torch.cat([torch.cat(list(clip), dim=1) for clip in clips], dim=0)


def _flip_book_turned(clips):
    return rearrange(clips, "n f h w c -> (f h) (n w) c")


def _flip_book_sliced(clips):
    return rearrange(clips, "n f h w c -> (h n) (w f) c")


def _flip_book_mirrored(clips):
    return rearrange(clips, "n f h w c -> (n w) (f h) c")


def _flip_book_reshaped(clips):
    n, f, h, w, _ = clips.shape
    return clips.reshape(n * h, f * w, 3)


def _flip_book_columns(clips):
    return rearrange(clips, "n f h w c -> (n h) (w f) c")


def _draw_book():
    from minit2v.world import Scene, Thing, render

    clips = render([Scene((Thing(colour, "circle", motion, "big", "fast", 0.3, 0.5, heading),), "white")
                    for colour, motion, heading in (("red", "right", (1.0, 0.0)), ("blue", "up", (0.0, -1.0)))])
    return figures.strip(clips[:, ::4], frames=4, alt="Two strips of four frames: a red disc moves right, and below "
                         "it a blue disc moves up.")


FLIP_BOOK = Exercise(
    name="01.flip_book", target="flip_book", kind="build", title="The flip book", minutes=10, cases=_two_clips,
    oracle=_flip_book_oracle, forbidden=("film_strip",), points=2,
    mistakes=(
        Mistake("clips side by side", _flip_book_turned, "Time runs downwards in your sheet, and the clips stand side "
                "by side. Frames belong along the width, clips along the height."),
        Mistake("sliced", _flip_book_sliced, "Each frame is cut into lines and dealt out like cards. In brackets the "
                "first name changes slowest: which should, the frame or the pixel?"),
        Mistake("lying on its side", _flip_book_mirrored, "Every frame lies on its side: its height goes along the "
                "sheet's width."),
        Mistake("reshaped", _flip_book_reshaped, "`reshape` only breaks the lines elsewhere; it never moves a pixel. "
                "(Chapter 01, the section on reshape and rearrange.)"),
        Mistake("columns dealt out", _flip_book_columns, "The rows are right, but along the width you have first all "
                "first columns, then all second ones. In brackets the first name changes slowest."),
    ),
    hints=(_draw_book, "The sheet is n * h pixels high and f * w wide. Only two brackets are needed.",
           "Say it aloud: down the sheet, clip after clip, and within a clip row after row."),
)


# 01.unmix

def _mixed(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, 256, (frames * clips, 2, 3, 3), generator=generator, dtype=torch.uint8), frames)
            for clips, frames in ((2, 4), (3, 5))]


def _unmix_oracle(mixed, frames):
    count = len(mixed) // frames
    return torch.stack([mixed[i::count] for i in range(count)])


def _unmix_broken(mixed, frames):
    return rearrange(mixed, "(n f) h w c -> n f h w c", f=frames)


def _unmix_half(mixed, frames):
    return rearrange(mixed, "(f n) h w c -> f n h w c", f=frames)


def _unmix_counted(mixed, frames):
    return rearrange(mixed, "(f n) h w c -> n f h w c", n=frames)


UNMIX = Exercise(
    name="01.unmix", target="unmix", kind="repair", title="Unmix", minutes=10, cases=_mixed, oracle=_unmix_oracle,
    mistakes=(
        Mistake("as it came", _unmix_broken, "The clips are still mixed. They were folded with the frames outside and "
                "the clips inside; you unfold as if it had been the other way round."),
        Mistake("frames first", _unmix_half, "You found the fold. But your result is frames of clips, and clips of "
                "frames were asked for: (N, F, H, W, 3)."),
        Mistake("counted wrong", _unmix_counted, "The pattern is right, but `frames` is given to the wrong name."),
    ),
    hints=(sketches.unmix,
           "Two clips of three frames, folded with the frames outside, lie as a0 b0 a1 b1 a2 b2.",
           "Unfold with the very brackets that folded, whatever order you then want the axes in."),
)


# 01.bytes

def _size(rng):
    return {"frames": rng.choice((8, 16, 24)), "height": rng.choice((64, 128)), "width": rng.choice((96, 192, 320))}


BYTES = Exercise(
    name="01.bytes", target="answer_bytes", kind="explore", title="How heavy is a clip?", minutes=5, points=1,
    options=_size, oracle=lambda frames, height, width: frames * height * width * 3 * 4,
    mistakes=(
        Mistake("as bytes", lambda frames, height, width: frames * height * width * 3, "That is its size as uint8, one "
                "byte a number. A network sees float32."),
        Mistake("one colour", lambda frames, height, width: frames * height * width * 4, "A pixel has three numbers."),
        Mistake("in bits", lambda frames, height, width: frames * height * width * 3 * 32, "Those are bits; a byte has "
                "eight of them."),
    ),
    hints=(sketches.bytes_,
           "How many numbers is a pixel, and how many bytes is a float32? `torch.zeros(1).element_size()` tells."),
)

EXERCISES = [RING, PENDULUM, FLIP_BOOK, UNMIX, BYTES]
