"""Examples to fine-tune on: clips as latents, captions as text features, encoded once.

Neither the autoencoder nor the text encoder learns in fine-tuning, so what they answer never changes. Of a film the
frames at the wished rate are encoded, and kept in a file of their own; a training step then takes its 16 frames from
a random place. Captions are kept in the same way. A file's name holds a fingerprint of all that it follows from (the
film, the size, the rate, the encoder's weights), so that a changed film or another model is encoded anew, and a run
that was interrupted goes on where it stopped.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from .data import encoder_fingerprint, to_model
from .files import write_whole
from .footage import Film, read_clip
from .pipeline import TextToVideo
from .tensorfiles import fingerprint, read

LONGEST = 256                                            # frames kept of a film, from its middle: 32 s at 8 a second
CHUNK = 8                                                # frames that are encoded at a time


@dataclass
class Examples:
    """Encoded clips with their captions: what a step of fine-tuning draws from."""

    latents: list[Tensor]                                # of each clip (T, 4, h, w) float16, T at least num_frames
    captions: list[str]                                  # of each clip
    contexts: dict[str, Tensor]                          # by caption (L, D) float16; that of "" too
    num_frames: int
    fps: float

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one clip as the UNet sees it: (4, F, h, w)."""
        _, channels, height, width = self.latents[0].shape
        return channels, self.num_frames, height, width

    def batch(self, rng: random.Random, size: int, num_frames: int | None = None,
              drop: float = 0.0) -> tuple[Tensor, Tensor]:
        """`size` clips of random examples from random places: latents (size, 4, F, h, w), context (size, L, D).

        num_frames: 1 for single frames; None for all that a clip has. drop: probability of the empty caption.
        Both are float32 on the CPU.
        """
        frames, clips, contexts = num_frames or self.num_frames, [], []
        for _ in range(size):
            i = rng.randrange(len(self))
            first = rng.randrange(len(self.latents[i]) - frames + 1)
            clips.append(self.latents[i][first:first + frames].movedim(0, 1).float())                 # (4, F, h, w)
            contexts.append(self.contexts["" if rng.random() < drop else self.captions[i]].float())   # (L, D)
        return torch.stack(clips), torch.stack(contexts)     # float32 first: autocast cannot stack float16

    def middle(self, i: int) -> Tensor:
        """The middle of example i: latents (1, 4, F, h, w) float32."""
        first = (len(self.latents[i]) - self.num_frames) // 2
        return self.latents[i][first:first + self.num_frames].movedim(0, 1)[None].float()


def of_clips(pipe: TextToVideo, clips: Tensor | list[Tensor], captions: list[str],
             fps: float | None = None, progress: bool = True) -> Examples:
    """Encodes clips that are in memory: (N, F, H, W, 3) uint8, or a list of N clips (F, H, W, 3) of one size.

    A clip may be longer than those that the model is to learn; the shortest decides, up to the model's own number
    of frames. Raises ValueError for another shape or type, and if there is not one caption for each clip.
    """
    clips = list(clips)
    if not clips or len(clips) != len(captions):
        raise ValueError(f"{len(clips)} clips and {len(captions)} captions; give at least one, and a caption for each")
    for clip in clips:
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[1:] != clips[0].shape[1:] or clip.shape[-1] != 3:
            raise ValueError(f"a clip is {clip.dtype} {tuple(clip.shape)}; all must be uint8 (F, H, W, 3) of one size")
    pipe.check_size(*clips[0].shape[1:3])
    frames = min(pipe.config.num_frames, *map(len, clips))
    latents = [_encode(pipe, clip) for clip in tqdm(clips, desc="encoding clips", disable=not progress, leave=False)]
    contexts = {caption: _read(pipe, caption) for caption in dict.fromkeys(["", *captions])}
    return Examples(latents, list(captions), contexts, frames, fps or pipe.config.fps)


def of_films(pipe: TextToVideo, films: list[Film], cache: str | Path, num_frames: int, fps: float, height: int,
             width: int, progress: bool = True) -> tuple[Examples, list[tuple[str, str]]]:
    """Encodes films into the folder `cache`, or finds them there. Returns also (name, reason) of what failed.

    Raises ValueError for a size that the model cannot have, or if no film can be decoded.
    """
    pipe.check_size(height, width)
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    encoder, reader = encoder_fingerprint(pipe.autoencoder), fingerprint(pipe.text_encoder.state_dict())
    latents, captions, skipped = [], [], []
    for film in tqdm(films, desc="encoding films", unit="film", disable=not progress, leave=False):
        count = min(film.room(fps), max(LONGEST, num_frames))

        def encoded(film=film, count=count):
            return _encode(pipe, read_clip(film, count, fps, height, width))
        try:
            with film.path.open("rb") as file:
                digest = hashlib.sha256(f"{encoder} {count} {fps} {height} {width} ".encode())
                while block := file.read(2 ** 20):
                    digest.update(block)
            latents.append(_kept(cache / f"clip_{digest.hexdigest()[:24]}.safetensors", encoded))
            captions.append(film.caption)
        except (OSError, ValueError) as error:
            skipped.append((film.path.name, str(error)))
    if not latents:
        raise ValueError("no film can be decoded:" + "".join(f"\n  {name}: {why}" for name, why in skipped[:20]))
    contexts = {}
    for caption in dict.fromkeys(["", *captions]):
        digest = hashlib.sha256(reader.encode() + pipe.tokenizer([caption]).numpy().tobytes()).hexdigest()[:24]
        contexts[caption] = _kept(cache / f"text_{digest}.safetensors", lambda: _read(pipe, caption))
    return Examples(latents, captions, contexts, num_frames, fps), skipped


@torch.inference_mode()
def _encode(pipe: TextToVideo, clip: Tensor) -> Tensor:
    """(T, H, W, 3) uint8 -> latents (T, 4, h, w) float16 on the CPU: the mean of the posterior, a few frames a time."""
    weight = next(pipe.autoencoder.parameters())
    parts = [pipe.autoencoder.encode(to_model(part[None]).to(weight))[0] for part in clip.split(CHUNK)]
    return torch.cat(parts, dim=1).movedim(1, 0).half().cpu().contiguous().clone()                  # (T, 4, h, w)


@torch.inference_mode()
def _read(pipe: TextToVideo, caption: str) -> Tensor:
    """One caption -> its context (L, D) float16 on the CPU."""
    return pipe.encode_text([caption])[0].half().cpu().clone()


def _kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in a file, mapped; made and written first if there is none, or none that is whole."""
    try:
        return read(path)["value"]
    except (OSError, ValueError, KeyError):
        with write_whole(path) as part:
            save_file({"value": make()}, part)
        return read(path)["value"]
