"""Footage: a folder of real videos, and what a model sees of it.

    films/cat.mp4  films/cat.txt         a caption beside each film, or
    films/captions.csv                   one table of all, with the columns file and text (or captions.jsonl)

Films have any size, length and frame rate; a model wants clips of 16 frames, 8 a second, of one size. `scan` finds
what can be used and says of everything else why not; `read_clip` takes a clip out of a film: frames by their time on
the screen (so a film of 30 frames a second, one of 12, and one that changes its rate all move at their true speed),
the middle cut out in the shape that is wanted, scaled without the false patterns that come from leaving out pixels.

A film with several shots teaches cuts. Cut it first, and say of each shot what is in it.
"""

import csv
import json
import math
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from .files import write_whole
from .video import film_strip

ENDINGS = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi")
TABLES = ("captions.csv", "captions.jsonl")
GRACE = 0.01                                             # seconds; a GIF rounds its times to hundredths
LOST = 0.5                                               # seconds at the end of a film whose frames may be missing
FAR = 2.0                                                # seconds into a film from where jumping pays
TITLE = 18                                               # height in pixels of a line of text in `sheet`


@dataclass(frozen=True)
class Film:
    """A usable film: where it is, what is said of it, and its time in seconds."""

    path: Path
    caption: str
    begins: float                                        # time stamp of its first frame; seldom other than 0
    last: float                                          # when its last frame begins, counted from the first one
    seconds: float                                       # when that one ends
    frames: int

    def room(self, fps: float) -> int:
        """How many frames at `fps` fit into the film."""
        return max(1, math.ceil(self.seconds * fps - GRACE))


def scan(folder: str | Path, num_frames: int = 16, fps: float = 8.0,
         progress: bool = True) -> tuple[list[Film], list[tuple[str, str]]]:
    """Finds the films of a folder, also those in folders within it, that have a caption and are long enough.

    num_frames, fps: what a clip needs, `num_frames` frames at `fps` a second. Names that begin with a dot are passed
    over. A line of captions.csv or captions.jsonl goes before a .txt file beside the film.
    Returns the films in the order of their names, and (name, reason) of everything that cannot be used.
    Raises FileNotFoundError if there is no such folder, and ValueError, with all reasons, if nothing is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; give the one that holds the films")
    told, skipped = _tables(folder)
    films = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
             if path.suffix.lower() in ENDINGS and path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(folder).parts)}
    there = {_key(name) for name in films}
    skipped += [(name, f"{table} names it, but there is no such film") for name, (_, table) in told.items()
                if name not in there]
    usable = []
    for name, path in tqdm(films.items(), desc="looking at films", unit="film", disable=not progress, leave=False):
        try:
            caption = told[_key(name)][0] if _key(name) in told else _beside(path)
            if not caption:
                raise ValueError("its caption is empty")
            film = Film(path, caption, *_measure(path))
            if film.room(fps) < num_frames:
                raise ValueError(f"too short: {film.seconds:.2f} s, and {num_frames} frames at {fps:g} a second need "
                                 f"more than {(num_frames - 1) / fps:.2f} s")
            if num_frames > 1 and film.frames < 2:
                raise ValueError("it is one picture, and there is no motion to learn from it")
            usable.append(film)
        except (av.FFmpegError, OSError, ValueError) as error:
            skipped.append((name, _reason(error)))
    if not usable:
        found = "".join(f"\n  {name}: {reason}" for name, reason in skipped[:20])
        more = f"\n  ... and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        raise ValueError(f"no film in {str(folder)!r} can be used; it needs films ({' '.join(ENDINGS)}) and for each a "
                         f"caption, NAME.txt beside it or a line in {TABLES[0]}{found or '; there is no film'}{more}")
    return usable, skipped


def read_clip(film: Film, num_frames: int = 16, fps: float = 8.0, height: int = 256, width: int = 256,
              rng: random.Random | None = None) -> torch.Tensor:
    """A clip of `num_frames` frames at `fps` a second, (F, H, W, 3) uint8, from a random place or the middle of a film.

    rng: draws where the clip begins; None takes the middle. Frame i is what is on the screen i / fps seconds after
    that. The largest part of the middle that has the shape height : width is scaled to it, antialiased (bicubic).
    Raises ValueError if the film is too short, or damaged where it is read.
    """
    if film.room(fps) < num_frames:
        raise ValueError(f"{film.path} has room for {film.room(fps)} frames at {fps:g} a second, not {num_frames}")
    slack = max(0.0, film.seconds - num_frames / fps)
    begin = slack / 2 if rng is None else rng.uniform(0, slack)
    wanted = [begin + i / fps + GRACE for i in range(num_frames)]                         # seconds into the film
    chosen: list[np.ndarray] = []
    try:
        held = None                                      # the frame that is on the screen until the next one comes
        for frame, aspect in _frames_from(film, begin):
            while held is not None and len(chosen) < num_frames and frame.time - film.begins > wanted[len(chosen)]:
                chosen.append(_picture(held, height, width, aspect))
            if len(chosen) == num_frames:
                break
            held = frame
        if held is not None and len(chosen) < num_frames:
            if held.time - film.begins < film.last - LOST:
                raise ValueError(f"its frames end after {held.time - film.begins:.2f} s of {film.seconds:.2f} s")
            chosen += [_picture(held, height, width, aspect)] * (num_frames - len(chosen))
        if not chosen:
            raise ValueError("no frame can be decoded")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"{film.path} cannot be read: {_reason(error)}") from error
    return torch.from_numpy(np.stack(chosen))                                            # (F, H, W, 3)


def sheet(rows: list[tuple[str, torch.Tensor]], path: str | Path, frames: int = 8) -> Path:
    """Draws film strips below one another, each under its title, into a .png file.

    rows: (title, clip (F, H, W, 3) uint8). Letters beyond Latin are drawn as "?": the drawing font has no others.
    """
    strips = [Image.fromarray(film_strip(clip, frames).numpy()) for _, clip in rows]
    picture = Image.new("RGB", (max(s.width for s in strips), sum(s.height + TITLE + 4 for s in strips)), "white")
    draw, font, y = ImageDraw.Draw(picture), ImageFont.load_default(TITLE - 6), 0
    for (title, _), strip in zip(rows, strips):
        draw.text((2, y + 1), title.encode("latin-1", "replace").decode("latin-1"), fill="black", font=font)
        picture.paste(strip, (0, y + TITLE))
        y += strip.height + TITLE + 4
    with write_whole(Path(path)) as part:
        picture.save(part, format="PNG")
    return Path(path)


# ---------------------------------------------------------------- captions

def _tables(folder: Path) -> tuple[dict[str, tuple[str, str]], list[tuple[str, str]]]:
    """What the tables say, {name: (caption, table)}, and (name, reason) of lines that cannot be used."""
    told: dict[str, tuple[str, str]] = {}
    skipped = []
    for table in (name for name in TABLES if (folder / name).is_file()):
        try:
            lines = list(_lines(folder / table))
        except (ValueError, csv.Error) as error:                                         # not UTF-8, or no CSV at all
            skipped.append((table, f"it cannot be read ({error}); save it as UTF-8"))
            continue
        for number, line in lines:
            file, text = (line.get("file"), line.get("text")) if isinstance(line, dict) else (None, None)
            if isinstance(line, dict) and any(rest := line.get(None, [])):
                skipped.append((f"{table}, line {number}", f"it has more cells than the first line, from {rest[0]!r} "
                                'on; put a text that has commas in quotes, "a cat, asleep"'))
            elif isinstance(file, str) and isinstance(text, str) and file.strip():
                told[_key(file.strip().replace("\\", "/").removeprefix("./"))] = " ".join(text.split()), table
            else:
                skipped.append((f"{table}, line {number}", "it has no file and text"))
    return told, skipped


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            yield from ((reader.line_num, line) for line in reader)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None


def _beside(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise ValueError(f"no caption: there is neither {beside.name} beside it nor a line in {' or '.join(TABLES)}")
    try:
        return " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{beside.name} is not UTF-8 text; save it as such") from error


def _key(name: str) -> str:
    """A name to compare by: an umlaut may be one character in a table and two in the name of a file."""
    return unicodedata.normalize("NFC", name)


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):                      # as FFmpeg says it
        return "it holds no frames"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------- films

def _measure(path: Path) -> tuple[float, float, float, int]:
    """The numbers of a Film. Reads the packets, and decodes only one frame."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        stream = container.streams.video[0]
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None and p.size]
        base = stream.time_base
    if not packets:
        raise ValueError("it holds no frames")
    first, (last, shown) = min(packets)[0], max(packets)
    usual = (last - first) / max(1, len(packets) - 1)                              # where a packet has no duration
    with av.open(str(path)) as container:
        if next(container.decode(video=0), None) is None:
            raise ValueError("no frame of it can be decoded")
    length = last - first + (shown or usual)
    return float(first * base), float((last - first) * base), float(length * base), len(packets)


def _frames_from(film: Film, begin: float) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames from `begin` seconds on, or from somewhat earlier: a film can be entered at its key frames only.

    With each comes how wide a pixel is for its height, seldom other than 1.
    """
    with av.open(str(film.path)) as container:
        stream = container.streams.video[0]
        aspect = float(stream.sample_aspect_ratio or 1)
        jump = begin > FAR and film.path.suffix.lower() != ".gif"
        if jump:
            container.seek(int((film.begins + begin) / stream.time_base), stream=stream)
        frames = ((frame, aspect) for frame in container.decode(stream) if frame.pts is not None)
        first = next(frames, None)
        if first is not None and not (jump and first[0].time - film.begins > begin + GRACE):
            yield first
            yield from frames
            return
    if jump:                                             # it landed too late, or beyond the end: from the beginning
        yield from _frames_from(film, 0.0)


def _picture(frame: av.VideoFrame, height: int, width: int, aspect: float) -> np.ndarray:
    """The middle of a frame in the shape height : width, scaled. Returns (height, width, 3) uint8."""
    pixels = frame.to_ndarray(format="rgb24")                                            # (H, W, 3)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4                                # a phone held upright
    if turns:
        pixels, aspect = np.rot90(pixels, turns), aspect if turns == 2 else 1 / aspect
    tall, wide = pixels.shape[:2]                        # pixels, each `aspect` times as wide as it is high
    cut_wide = min(wide, tall * width / height / aspect)
    cut_tall = min(tall, wide * aspect * height / width)
    left, top = (wide - cut_wide) / 2, (tall - cut_tall) / 2
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC,
                                   box=(left, top, min(wide, left + cut_wide), min(tall, top + cut_tall))))
