"""Clips as tensors, and as files.

A clip is a uint8 tensor of shape (F, H, W, 3): F frames of H x W pixels, red, green and blue from 0
to 255. That is what the pipeline returns, what the referee reads and what this module writes and reads.

Four kinds of file, told apart by the name's ending: `.mp4` (H.264, what players and phones expect),
`.gif` and `.webp` (short loops for a web page), `.png` (a film strip: the frames side by side, the only
one that can be printed). The settings that made a clip travel inside its file, as JSON, so that a clip
found months later still says which prompt, seed and sampler made it: `read_settings` reads them back.
"""

import base64
import html
import io
import json
import os
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minit2v.files import check_file, write_whole

FASTEST = {".mp4": 1000, ".gif": 50, ".webp": 500, ".png": 1000}      # frames a second; a GIF counts in hundredths
ENDINGS = tuple(FASTEST)
IMAGE_DESCRIPTION = 0x010E                                            # the Exif tag in which webp keeps the settings


def to_uint8(frames: torch.Tensor, rounding: str = "round") -> torch.Tensor:
    """Turns what the autoencoder decodes, float in about [-1, 1], into a clip of whole numbers 0 to 255.

    frames: (..., 3, F, H, W) float -> (..., F, H, W, 3) uint8; what lies outside [-1, 1] is clipped.
    rounding: "round" to the nearest (diffusers' output_type="pil"), or "truncate" (ModelScope's
    tensor2vid, and diffusers' export_to_video), which makes half of the values one step darker.
    """
    if rounding not in ("round", "truncate"):
        raise ValueError(f'rounding is "round" or "truncate", not {rounding!r}')
    levels = (frames / 2 + 0.5).clamp(0, 1) * 255
    if rounding == "round":
        levels = levels.round()
    return levels.to(torch.uint8).movedim(-4, -1).contiguous()        # (..., 3, F, H, W) -> (..., F, H, W, 3)


def film_strip(clip: torch.Tensor, frames: int = 8, scale: int | None = None, gap: int = 2) -> torch.Tensor:
    """Puts evenly spaced frames (the first and the last among them) side by side, as one picture.

    clip: (F, H, W, 3) uint8 -> (H * scale, W', 3) uint8, with `gap` white pixels between frames. Each
    pixel becomes a square of `scale` pixels; by default small frames grow to about 128 pixels.
    """
    _check_clip(clip)
    scale = max(1, 128 // clip.shape[1]) if scale is None else scale
    if frames < 1 or scale < 1:
        raise ValueError(f"a film strip needs frames >= 1 and scale >= 1, not frames={frames}, scale={scale}")
    chosen = clip[_evenly_spaced(clip.shape[0], min(frames, clip.shape[0]))]
    chosen = chosen.repeat_interleave(scale, 1).repeat_interleave(scale, 2)   # (F', H * scale, W * scale, 3)
    white = torch.full_like(chosen[0, :, :1], 255).repeat(1, gap, 1)          # (H * scale, gap, 3)
    pieces = [piece for frame in chosen for piece in (white, frame)][1:]      # no gap before the first frame
    return torch.cat(pieces, dim=1)                                           # (H * scale, W', 3)


def save(clip: torch.Tensor, path: str | os.PathLike, fps: float = 8, settings: dict | None = None) -> Path:
    """Writes a clip to `path`; the ending (.mp4 .gif .webp .png) says how. Returns the path.

    clip: (F, H, W, 3) uint8. settings: anything JSON can hold; fps and the number of frames are added.
    The file appears whole or not at all: it is written under another name and then renamed.
    Raises ValueError for an unknown ending, a wrong tensor, a frame rate that this kind of file does not know, and
    for odd sizes as .mp4; OSError where the file cannot be written.
    """
    _check_clip(clip)
    path = check_path(path, fps, tuple(clip.shape[1:3]))
    frames = clip.cpu().numpy()
    note = json.dumps({**(settings or {}), "num_frames": len(frames), "fps": fps})      # ASCII: safe in every format
    with write_whole(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(frames, temporary, fps, note)
        elif path.suffix.lower() == ".png":
            text = PngInfo()
            text.add_text("minit2v", note)
            Image.fromarray(film_strip(clip).cpu().numpy()).save(temporary, format="PNG", pnginfo=text)
        else:
            _write_loop(frames, temporary, fps, note, kind=path.suffix[1:].upper())
    return path


def load(path: str | os.PathLike, num_frames: int | None = None) -> torch.Tensor:
    """Reads a .mp4, .gif or .webp file (any other moving picture that FFmpeg knows works too).

    num_frames: how many frames to take, evenly spaced from the first to the last; None takes all.
    Returns (F, H, W, 3) uint8. Raises FileNotFoundError, and ValueError for a film strip, for a file
    that holds no clip and for more frames than there are.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        raise ValueError(f"{path} is a picture, not a clip; load reads .mp4, .gif and .webp")
    with _readable(path):
        frames = _read_loop(path) if path.suffix.lower() in (".gif", ".webp") else _read_movie(path)
    clip = torch.from_numpy(np.stack(frames))                         # (F, H, W, 3)
    if num_frames is None:
        return clip
    if not 1 <= num_frames <= len(clip):
        raise ValueError(f"num_frames={num_frames}, but {path} has {len(clip)} frames: ask for 1 to {len(clip)}")
    return clip[_evenly_spaced(len(clip), num_frames)]


def read_settings(path: str | os.PathLike) -> dict:
    """The settings that `save` wrote into a file; an empty dict if there are none."""
    path = Path(path)
    with _readable(path):
        if path.suffix.lower() in (".gif", ".webp", ".png"):
            with Image.open(path) as image:
                return _settings_of(image)
        with av.open(str(path)) as container:
            return _parse(container.metadata.get("comment"))


def show(clip: torch.Tensor, fps: float = 8, size: int = 256, alt: str = "a generated clip"):
    """Plays a clip in a notebook, in a loop; several clips, (N, F, H, W, 3), stand side by side.

    size: height on the page in screen pixels; pixels stay square, so that a 64 x 64 clip can be seen.
    Returns an IPython HTML object that carries the clip in itself: a saved notebook still plays.
    """
    from IPython.display import HTML  # only notebooks need IPython

    _check_fps(fps, ".gif")
    images = []
    for one in clip if clip.dim() == 5 else [clip]:
        _check_clip(one)
        buffer = io.BytesIO()
        _write_loop(one.cpu().numpy(), buffer, fps, note="{}", kind="GIF")
        data = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<img src="data:image/gif;base64,{data}" alt="{html.escape(alt)}" height="{size}" '
                      'style="image-rendering: pixelated; display: inline-block; margin: 2px">')
    return HTML("".join(images))


def check_path(path: str | os.PathLike, fps: float | None = None, size: tuple[int, int] | None = None) -> Path:
    """Says before the work begins whether `save` could write here; raises ValueError or OSError if not.

    fps, size: frames a second, and (height, width) in pixels, of the clip to come; None is not known yet.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"cannot write {str(path)!r}: the name must end in one of {', '.join(ENDINGS)}")
    if fps is not None:
        _check_fps(fps, ending)
    if ending == ".mp4" and size is not None and (size[0] % 2 or size[1] % 2):
        raise ValueError(f"an .mp4 needs even sizes (its colours are stored at half size), not {size[0]} x {size[1]}; "
                         "save as .gif or .webp")
    return check_file(path)


def _check_fps(fps: float, ending: str) -> None:
    if not 0 < fps <= FASTEST[ending]:
        raise ValueError(f"fps is {fps}, but must be above 0 and, for a {ending}, at most {FASTEST[ending]} frames a "
                         f"second; an .mp4 may have up to {FASTEST['.mp4']}")


def _write_mp4(frames: np.ndarray, path: Path, fps: float, note: str) -> None:
    _, height, width, _ = frames.shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = note
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "10"}                                # 0 is lossless, 51 the worst; ModelScope takes 10
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())                                # what the encoder still holds back


def _write_loop(frames: np.ndarray, path: Path | io.BytesIO, fps: float, note: str, kind: str) -> None:
    unit = 10 if kind == "GIF" else 1                                 # a GIF counts time in hundredths of a second
    starts = [unit * round(1000 / fps / unit * i) for i in range(len(frames) + 1)]         # milliseconds
    durations = [after - before for before, after in zip(starts, starts[1:])]
    first, *rest = [Image.fromarray(frame) for frame in frames]
    if kind == "GIF":
        how = {"comment": note.encode()}
    else:
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = note
        how = {"exif": exif.tobytes(), "lossless": True}
    first.save(path, format=kind, save_all=True, append_images=rest, duration=durations, loop=0, **how)


def _read_loop(path: Path) -> list[np.ndarray]:
    """Frames of a GIF or WebP. The writers store equal neighbours once, with a longer duration: undo that."""
    frames, time = [], 0.0
    with Image.open(path) as image:
        settings = _settings_of(image)
        fps = settings.get("fps")
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frame = np.asarray(image.convert("RGB"))                  # (H, W, 3)
            time += image.info.get("duration", 0) / 1000              # when the next frame begins, in seconds
            frames += [frame] * max(1, round(time * fps) - len(frames) if fps else 1)
    return frames + [frames[-1]] * (settings.get("num_frames", 0) - len(frames))    # a WebP of one frame has no time


def _read_movie(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _settings_of(image: Image.Image) -> dict:
    if image.format == "WEBP":
        return _parse(image.getexif().get(IMAGE_DESCRIPTION))
    return _parse(image.info.get("minit2v") or image.info.get("comment"))


def _parse(note: str | bytes | None) -> dict:
    try:
        settings = json.loads(note or "{}")
    except ValueError:                                                # somebody else's comment
        return {}
    return settings if isinstance(settings, dict) else {}


@contextmanager
def _readable(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        yield
    except (OSError, ValueError, EOFError, SyntaxError) as error:     # what Pillow and FFmpeg raise for broken files
        raise ValueError(f"{path} cannot be read as a clip: {error}") from error


def _evenly_spaced(total: int, count: int) -> list[int]:
    return torch.linspace(0, total - 1, count).round().long().tolist()


def _check_clip(clip: torch.Tensor) -> None:
    if clip.dim() == 5:
        raise ValueError(f"these are {len(clip)} clips, shape {tuple(clip.shape)}: take one, clips[0], at a time")
    if clip.dim() != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8 or 0 in clip.shape:
        raise ValueError(f"a clip is a uint8 tensor of shape (frames, height, width, 3), not {clip.dtype} of shape "
                         f"{tuple(clip.shape)}; to_uint8 makes one from decoded frames")
