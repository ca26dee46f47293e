"""How good is it? Caption accuracy by the referee, beside its chance level, its floor and its ceiling.

A number alone says little. So each score of a model stands beside what guessing would reach, what the same
clips reach with their frames shuffled (a measure of motion that does not fall then measures something else),
what real clips reach after a passage through the autoencoder (no latent model can do better), and what real
clips reach (how well the referee itself reads).
"""

import json
import math
import random
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .captions import caption
from .data import to_model
from .pipeline import TextToVideo, load
from .referee import agrees, read
from .video import to_uint8
from .world import COLOURS, MOTIONS, SHAPES, Scene, combinations, render, sample_scene

ATTRIBUTES = ("colour", "shape", "motion", "all")
SETS = {  # name: (level, split, language)
    "seen, English": (1, "train", "en"), "unseen, English": (1, "unseen", "en"),
    "seen, Chinese": (1, "train", "zh"), "unseen, Chinese": (1, "unseen", "zh"),
    "two objects, English": (2, "train", "en"),
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


def shuffled(clips: Tensor, seed: int = 0) -> Tensor:
    """The frames of each clip (N, F, ...) in a random order: the same pictures, no motion."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([clip[torch.randperm(len(clip), generator=generator)] for clip in clips])


@torch.inference_mode()
def through_autoencoder(pipe: TextToVideo, clips: Tensor, batch: int = 10) -> Tensor:
    """Clips (N, F, H, W, 3) uint8 encoded and decoded: what a perfect latent model would show."""
    return torch.cat([to_uint8(pipe.autoencoder.decode(pipe.autoencoder.encode(to_model(part))).clamp(-1, 1))
                      for part in clips.split(batch)])


def motion_energy(clips: Tensor) -> Tensor:
    """How much changes from frame to frame: the mean |difference| of neighbouring frames, as a share of full scale.

    Clips (N, F, H, W, 3) uint8 with at least two frames -> (N,) float32 in [0, 1]; 0 is a frozen picture.
    Raises ValueError for another shape or dtype, and for clips of one frame.
    """
    _check_clips(clips, least=2)
    return torch.stack([(clip[1:].float() - clip[:-1].float()).abs().mean() for clip in clips]) / 255         # (N,)


def _check_clips(clips: Tensor, least: int) -> None:
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or 0 in clips.shape or (
            clips.shape[1] < least):
        raise ValueError(f"these are {tuple(clips.shape)} of {clips.dtype}, but must be clips, (clips, frames, height, "
                         f"width, 3) of torch.uint8, with {least} frames or more; of a single clip, take clip[None]")


def draw(scenes: list[Scene], batch: int = 50) -> Tensor:
    """Real clips of scenes, (N, F, H, W, 3) uint8."""
    return torch.cat([render(scenes[i:i + batch]) for i in range(0, len(scenes), batch)])


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
    rows = []
    for level, name in ((1, "one object"), (2, "two objects")):
        scenes = judging_scenes(level, "train", count, seed)
        real = draw(scenes)
        rows += [{"clips": f"{name}, real", **accuracy(real, scenes)},
                 {"clips": f"{name}, through the VAE", **accuracy(through_autoencoder(pipe, real), scenes)},
                 {"clips": f"{name}, frames shuffled", **accuracy(shuffled(real, seed), scenes)},
                 {"clips": f"{name}, chance", **chance(level)}]
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    readable = sum(bool(read(clip)) for clip in noise) / count
    return rows + [{"clips": "noise that was readable", "all": readable}]


def model_rows(pipe: TextToVideo, count: int, seed: int = 0, progress: bool = True, **settings) -> list[dict]:
    """The model's caption accuracy on every set, each followed by its shuffled frames, its ceiling and chance."""
    rows = []
    for name, (level, split, language) in SETS.items():
        scenes = judging_scenes(level, split, count, seed)
        rng = random.Random(f"captions {name} {seed}")
        clips = generate(pipe, [caption(s, rng, language) for s in scenes], seed=seed, progress=progress, **settings)
        real = through_autoencoder(pipe, draw(scenes))
        rows += [{"clips": name, **accuracy(clips, scenes)},
                 {"clips": "  its frames shuffled", **accuracy(shuffled(clips, seed), scenes)},
                 {"clips": "  real, through the VAE", **accuracy(real, scenes)},
                 {"clips": "  chance", **chance(level)}]
    return rows


def table(rows: list[dict], count: int) -> str:
    """Rows as a Markdown table in per cent, with the 95 % interval of the last column."""
    lines = ["| clips | colour | shape | motion | all three |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{100 * row[a]:.1f}" if a in row else "" for a in ATTRIBUTES]
        if "chance" not in row["clips"]:
            cells[-1] += f" ± {100 * interval(row['all'], count):.1f}"
        lines.append("| " + " | ".join([row["clips"], *cells]) + " |")
    return "\n".join(lines)


def main_evaluate(args) -> int:
    """`minit2v evaluate`: prints a table of the model, or with --referee of the referee; --json writes the numbers."""
    pipe = load(args.weights)
    scale = pipe.config.guidance_scale if args.guidance_scale is None else args.guidance_scale
    settings = {"num_inference_steps": args.steps, "guidance_scale": scale, "sampler": args.sampler}
    if args.referee:
        rows = referee_rows(pipe, args.clips, args.seed)
        print(f"The referee on {args.clips} clips a row, per cent right")
    else:
        rows = model_rows(pipe, args.clips, args.seed, **settings)
        print(f"{args.clips} clips a row, per cent right; {args.sampler}, {args.steps} steps, guidance "
              f"{scale:g}, seeds from {args.seed}")
    print(table(rows, args.clips))
    if args.json:
        found = {"clips": args.clips, "seed": args.seed, **settings, "rows": rows}
        Path(args.json).write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0
