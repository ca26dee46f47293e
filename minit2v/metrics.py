"""How good is it? Caption accuracy by the referee, beside its chance level, its floor and its ceiling.

A number alone says little. So each score of a model stands beside what guessing would reach, what the same
clips reach with their frames shuffled (a measure of motion that does not fall then measures something else),
what real clips reach after a passage through the autoencoder (no latent model can do better), and what real
clips reach (how well the referee itself reads).
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import ModelConfig
from .data import to_model
from .pipeline import TextToVideo
from .referee import agrees, read
from .video import to_uint8
from .world import COLOURS, MOTIONS, SHAPES, Scene, combinations, render, sample_scene

ATTRIBUTES = ("colour", "shape", "motion", "all")
SETS = {  # name: (level, split, language)
    "seen, English": (1, "train", "en"), "unseen, English": (1, "unseen", "en"),
    "seen, Chinese": (1, "train", "zh"), "unseen, Chinese": (1, "unseen", "zh"),
    "two objects, English": (2, "train", "en"), "two objects, Chinese": (2, "train", "zh"),
}


def judging_scenes(level: int, split: str, count: int, seed: int = 0) -> list[Scene]:
    """Scenes to judge with. They are drawn apart from those of training, from the same distribution."""
    rng = random.Random(f"test {level} {split} {seed}")
    return [sample_scene(rng, level, split) for _ in range(count)]


def accuracy(clips: Tensor, scenes: list[Scene], fps: float = 8.0) -> dict[str, float]:
    """The share of clips (N, F, H, W, 3) whose colour, shape, motion, and all three, are those of `scenes`."""
    found = [agrees(read(clip, fps), scene) for clip, scene in zip(clips, scenes, strict=True)]
    return {name: sum(f[name] for f in found) / len(found) for name in ATTRIBUTES}


def chance(level: int = 1) -> dict[str, float]:
    """What guessing reaches: an attribute guessed evenly among its names, "all" evenly among the combinations.

    Two objects (level 2) have different colours, and the referee matches by colour: which is named first is free.
    """
    total = len(combinations("train")) + len(combinations("unseen"))
    if level == 1:
        return {"colour": 1 / len(COLOURS), "shape": 1 / len(SHAPES), "motion": 1 / len(MOTIONS), "all": 1 / total}
    one, colours = chance(1), math.comb(len(COLOURS), 2)
    return {"colour": 1 / colours, "shape": one["shape"] ** 2, "motion": one["motion"] ** 2,
            "all": (len(COLOURS) / total) ** 2 / colours}


def interval(share: float, count: int) -> float:
    """Half the width of the 95 % interval of a share of `count` trials (Wilson 1927)."""
    z = 1.96
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The ends of that interval. Its middle is not the share but a little nearer to one half, so it stays in [0, 1]."""
    z2, half = 1.96 ** 2 / count, interval(share, count)
    middle = (share + z2 / 2) / (1 + z2)
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)         # rounding aside


def bootstrap(values: Tensor, statistic: Callable[[Tensor], float | Tensor] = torch.mean, draws: int = 1000,
              level: float = 0.95, seed: int = 0, centred: bool = False,
              reference: Tensor | None = None) -> tuple[float, float]:
    """An interval for `statistic` of a sample: how much it would vary if other clips had been drawn.

    The sample `values`, (N, ...), one row a clip, is drawn again from itself, with repetition, `draws` times; the
    interval holds the middle `level` of what the statistic then says (Efron 1979; the percentile interval).
    centred: shifts it so that the draws' mean lies on the statistic of `values`. For one that grows when rows are
    repeated, as the Frechet distance does: the interval then tells its spread, and says nothing of its bias.
    reference: the sample (M, ...) that `statistic(values, reference)` compares with. It is drawn again too, on its
    own: it might have been another one as well.
    Raises ValueError for an empty sample, fewer than 20 draws, or a level not between 0 and 1.
    """
    if values.ndim == 0 or len(values) == 0 or draws < 20 or not 0 < level < 1:
        raise ValueError(f"the sample has the shape {tuple(values.shape)}, with draws={draws}, level={level}; it needs "
                         "one row or more, 20 draws or more and a level between 0 and 1")
    values = values if values.is_floating_point() else values.double()
    samples = [values] if reference is None else [values, reference]
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(len(one), (draws, len(one)), generator=generator) for one in samples]         # (draws, N)
    if statistic is torch.mean:                                                               # all draws at once
        one = values.double().flatten(1).mean(1) if values.ndim > 1 else values.double()
        found = one[rows[0]].mean(1)                                                          # (draws,)
    else:
        drawn = ([one[row] for one, row in zip(samples, draw)] for draw in zip(*rows))
        found = torch.tensor([float(statistic(*again)) for again in drawn], dtype=torch.float64)        # (draws,)
    if centred:
        found = found - found.mean() + float(statistic(*samples))
    low, high = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def shuffled(clips: Tensor, seed: int = 0) -> Tensor:
    """The frames of each clip (N, F, ...) in a random order: the same pictures, no motion."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([clip[torch.randperm(len(clip), generator=generator)] for clip in clips])


@torch.inference_mode()
def through_autoencoder(pipe: TextToVideo, clips: Tensor, batch: int = 10) -> Tensor:
    """Clips (N, F, H, W, 3) uint8, encoded and decoded where the model is: what a perfect latent model would show."""
    like, found = next(pipe.autoencoder.parameters()), []
    for part in clips.split(batch):
        latents = pipe.autoencoder.encode(to_model(part).to(like))
        found.append(to_uint8(pipe.autoencoder.decode(latents).float().clamp(-1, 1)).cpu())
    return torch.cat(found)


def motion_energy(clips: Tensor) -> Tensor:
    """How much changes from frame to frame: the mean |difference| of neighbouring frames, as a share of full scale.

    Clips (N, F, H, W, 3) uint8 with at least two frames -> (N,) float32 in [0, 1]; 0 is a frozen picture.
    Raises ValueError for another shape or dtype, and for clips of one frame.
    """
    check_clips(clips, least=2)
    return torch.stack([(clip[1:].float() - clip[:-1].float()).abs().mean() for clip in clips]) / 255         # (N,)


def flicker(clips: Tensor) -> Tensor:
    """VBench's temporal flickering (Huang et al. 2023): 1 - motion energy, so that 1 is "no flicker" at all.

    Clips (N, F, H, W, 3) uint8 -> (N,) in [0, 1]. It cannot tell flicker from motion: a frozen picture gets a full 1.
    """
    return 1 - motion_energy(clips)


def centroids(clips: Tensor) -> Tensor:
    """Where the things of each frame are on average, (N, F, 2): x and y in fractions of the frame, from the top left.

    A pixel weighs as much as it differs from the frame's median colour, which is the ground as long as things cover
    less than half. A frame with nothing but ground has its middle, (0.5, 0.5).
    """
    check_clips(clips, least=1)
    found = []
    for clip in clips:
        pixels = clip.flatten(1, 2).float()                                                   # (F, H W, 3)
        away = (pixels - pixels.median(dim=1, keepdim=True).values).abs().amax(-1)            # (F, H W)
        away = torch.where(away > 25, away, 0.0).unflatten(1, clip.shape[1:3])                # (F, H, W); 25: noise
        total = away.sum((1, 2))                                                              # (F,)
        x, y = ((torch.arange(size) + 0.5) / size for size in (clip.shape[2], clip.shape[1]))
        centre = torch.stack([away.sum(1) @ x, away.sum(2) @ y], dim=1)                       # (F, 2)
        found.append(torch.where(total[:, None] > 0, centre / total.clamp(min=1)[:, None], 0.5))
    return torch.stack(found)


def smoothness(clips: Tensor) -> Tensor:
    """How evenly things move: 1 - the mean length of the second difference of the centroid's track.

    Clips (N, F, H, W, 3) uint8 with at least three frames -> (N,); 1 is an even, straight motion, or none at all.
    The length is in fractions of the frame: 0.02 in a slow orbit, 0.05 in a fast one.
    """
    check_clips(clips, least=3)
    return 1 - centroids(clips).diff(n=2, dim=1).norm(dim=-1).mean(1)                         # (N,)


def check_clips(clips: Tensor, least: int) -> None:
    """Raises ValueError for what is not clips (N, F, H, W, 3) uint8 of at least `least` frames."""
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or 0 in clips.shape or (
            clips.shape[1] < least):
        raise ValueError(f"these are {tuple(clips.shape)} of {clips.dtype}, but must be clips, (clips, frames, height, "
                         f"width, 3) of torch.uint8, with {least} frames or more; of a single clip, take clip[None]")


def draw(scenes: list[Scene], batch: int = 50, **size) -> Tensor:
    """Real clips of scenes, (N, F, H, W, 3) uint8; `size` is what `world.render` takes: frames, rate, pixels."""
    return torch.cat([render(scenes[i:i + batch], **size) for i in range(0, len(scenes), batch)])


def size_of(config: ModelConfig) -> dict[str, float]:
    """The size and rate of a model's clips, as `draw` takes them: only clips of one kind can be compared."""
    return {name: getattr(config, name) for name in ("num_frames", "fps", "height", "width")}


def generate(pipe: TextToVideo, prompts: list[str], seed: int = 0, batch: int = 25, progress: bool = True,
             **settings) -> Tensor:
    """A clip for each prompt, prompt i with the seed `seed + i`; `settings` are those of the pipeline."""
    clips = []
    bar = tqdm(total=len(prompts), desc="generating clips", unit="clip", disable=not progress)
    for i in range(0, len(prompts), batch):
        part = prompts[i:i + batch]
        clips.append(pipe(part, seed=list(range(seed + i, seed + i + len(part))), progress=False, **settings))
        bar.update(len(part))
    bar.close()
    return torch.cat(clips)


def referee_rows(pipe: TextToVideo, count: int, seed: int = 0) -> list[dict]:
    """How well the referee reads clips whose truth is known: real, passed through the VAE, shuffled, noise."""
    rows, size = [], size_of(pipe.config)
    for level, name in ((1, "one object"), (2, "two objects")):
        scenes = judging_scenes(level, "train", count, seed)
        real = draw(scenes, **size)
        kinds = {"real": real, "through the VAE": through_autoencoder(pipe, real),
                 "frames shuffled": shuffled(real, seed)}
        rows += [{"clips": f"{name}, {kind}", **accuracy(clips, scenes, size["fps"])} for kind, clips in kinds.items()]
        rows.append({"clips": f"{name}, chance", **chance(level)})
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    readable = sum(bool(read(clip, size["fps"])) for clip in noise) / count
    return rows + [{"clips": "noise that was readable", "all": readable}]


def per_cent(share: float, count: int, digits: int = 1) -> str:
    """A share of `count` trials with its 95 % interval: "91.8 (88.7-94.1)"."""
    low, high = wilson(share, count)
    return f"{100 * share:.{digits}f} ({100 * low:.{digits}f}-{100 * high:.{digits}f})"


def table(rows: list[dict], count: int) -> str:
    """Rows as a Markdown table in per cent; in brackets the 95 % interval of the last column, Wilson's."""
    lines = ["| clips | colour | shape | motion | all three |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{100 * row[a]:.1f}" if a in row else "" for a in ATTRIBUTES]
        if "chance" not in row["clips"]:
            cells[-1] = per_cent(row["all"], count)
        lines.append("| " + " | ".join([row["clips"], *cells]) + " |")
    return "\n".join(lines)
