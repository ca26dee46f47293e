"""Training data: scenes of the toy world, rendered, encoded once by the autoencoder, and kept on disk.

A diffusion model in latent space never sees a pixel. So the clips are encoded once, before training, into
shards of 1,000 clips each. A shard stores latents only: which scenes it shows follows from its level and its
number, because scenes are drawn with a generator seeded by these two. Captions are worded anew each time a
clip is used, in English or in Chinese.
"""

import copy
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from . import distributed
from .autoencoder import Autoencoder
from .captions import caption
from .files import write_whole
from .tensorfiles import fingerprint
from .world import Scene, render, sample_scene

SHARD = 1000


def to_model(clips: Tensor) -> Tensor:
    """Clips as shown, (N, F, H, W, 3) uint8, to clips as networks see them, (N, 3, F, H, W) float in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def scenes_of(level: int, shard: int, count: int = SHARD) -> list[Scene]:
    """The scenes of one shard: always the same ones. Unseen combinations are not among them."""
    rng = random.Random(f"level {level}, shard {shard}")
    return [sample_scene(rng, level) for _ in range(count)]


@torch.inference_mode()
def encode_world(folder: str | Path, autoencoder: Autoencoder, shards: dict[int, int], batch: int = 20,
                 progress: bool = True, device: str | torch.device = "cpu") -> None:
    """Writes shards into `folder`: `shards` says how many of each level, {1: 12, 2: 8, 3: 2} for 22,000 clips.

    device: where the autoencoder is.

    A shard that is there already is left alone, so an interrupted run goes on where it stopped. But one that was
    made by another encoder, or of another world, is made anew. Several processes (see distributed.py) share them out
    and do not wait for one another.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made_of = encoder_fingerprint(autoencoder, drawing=render(scenes_of(3, 0, 4), num_frames=2, fps=1.0))
    every = [(level, k) for level, count in shards.items() for k in range(count)]
    mine = every[distributed.rank()::distributed.world()]
    todo = [each for each in mine if _made_of(_file(folder, *each)) != made_of]
    bar = tqdm(total=len(todo) * SHARD, desc="rendering and encoding clips", unit="clip",
               disable=not (progress and todo and distributed.first()))
    for level, k in todo:
        scenes, latents = scenes_of(level, k, SHARD), []
        for i in range(0, SHARD, batch):
            clips = to_model(render(scenes[i:i + batch]))                               # (batch, 3, F, H, W)
            latents.append(autoencoder.encode(clips.to(device)).cpu())                  # (batch, 4, F, h, w)
            bar.update(batch)
        path = _file(folder, level, k)
        with write_whole(path) as part:
            save_file({"latents": torch.cat(latents).half().contiguous()}, part, metadata={"made_of": made_of})
    bar.close()


def encoder_fingerprint(autoencoder: Autoencoder, **more: Tensor) -> str:
    """A fingerprint of what latents follow from: the encoder's weights and its scale, and `more` tensors."""
    weights = {name: value for name, value in autoencoder.state_dict().items()
               if not name.startswith(("decoder", "post_quant_conv"))}
    return fingerprint({**weights, **more}, autoencoder.config.scaling_factor)


def _made_of(path: Path) -> str | None:
    """The fingerprint that a shard carries; None if there is no shard, or none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("made_of")
    except (OSError, SafetensorError):
        return None


def _file(folder: Path, level: int, shard: int) -> Path:
    return folder / f"level{level}_{shard:03d}.safetensors"


class Clips:
    """Encoded clips with their scenes. `levels` says which shards to read, {1: 12, 2: 8} for 20,000 clips."""

    def __init__(self, folder: str | Path, levels: dict[int, int]):
        names = [(level, k) for level, count in levels.items() for k in range(count)]
        shards = [load_file(_file(Path(folder), level, k))["latents"] for level, k in names]
        self.scenes = [scene for (level, k), part in zip(names, shards) for scene in scenes_of(level, k, len(part))]
        self.latents = torch.cat(shards)
        self._cum_weights, self._terse = range(1, len(self) + 1), 0.0

    def __len__(self) -> int:
        return len(self.scenes)

    def weighted(self, weight: Callable[[Scene], float]) -> "Clips":
        """The same clips; `batch` draws each as often as `weight` of its scene says, in units of one another."""
        clips = copy.copy(self)
        clips._cum_weights = list(itertools.accumulate(map(weight, self.scenes)))
        return clips

    def terse(self, share: float) -> "Clips":
        """The same clips; in `batch` a `share` of the captions does not say colour or motion, as people do not."""
        clips = copy.copy(self)
        clips._terse = share
        return clips

    def batch(self, rng: random.Random, size: int, drop: float = 0.0) -> tuple[Tensor, list[str]]:
        """`size` random clips: latents (size, 4, F, h, w) float32 and captions, each empty with probability `drop`."""
        rows = rng.choices(range(len(self)), cum_weights=self._cum_weights, k=size)
        texts = ["" if rng.random() < drop else self._caption(i, rng) for i in rows]
        return self.latents[rows].float(), texts

    def _caption(self, row: int, rng: random.Random) -> str:
        language, unsaid = rng.choice(("en", "zh")), ()
        if self._terse and rng.random() < self._terse:         # without terse ones no chance is spent on it
            unsaid = rng.choice((("colour",), ("motion",), ("colour", "motion")))
        return caption(self.scenes[row], rng, language, unsaid)
