"""The judge: a small network that looks at clips, trained apart from every generator.

The referee (referee.py) reads a clip by rule and can say only "right" or "wrong". The judge gives numbers that a
generator can be a little better or worse in:

    features(clips)               32 numbers a clip, for the *course Frechet distance* (frechet.py)
    similarity(clips, captions)   how well a clip fits a sentence, the cosine of two vectors, as CLIP's

    clip ─ four 3D convolutions ─ mean over place and time ─┬─ 32 features ─ colour? shape? motion?
                                                            └─ vector ┐
    caption ─ tokens ─ GRU, both ways ───────────────────────  vector ┴ cosine

The features are the bottleneck of a classifier, as FID's are of one of photographs and FVD's of one of actions; but
those see our shapes as "something flat", and need thousands of clips for their hundreds of features. The number that
comes of ours is good for comparing models of Moving Shapes, and for nothing else: it is not FVD.

The text half is its own, not the tower that the generator reads: a generator would be judged by its own ears. Only
the vocabulary (how letters are joined to tokens) is shared. The judge knows all combinations, those too that
generators never see in training; it is there to judge them. It ships in minit2v/weights; `python -m minit2v.judge DIR`
trains one anew, in twelve minutes of one core, and says how good it is; so was the one that ships. Of 500 real clips
that it had not seen it names 100 % of the colours, 99.8 % of the shapes and 99.6 % of the motions right (chance: 12, 25
and 7). Of two captions that differ in one of these it takes the right one for 100, 99.6 and 100 % in English, and for
100, 98.8 and 100 % in Chinese (chance: 50).
"""

import argparse
import math
import random
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from .captions import caption
from .config import mini
from .data import to_model
from .files import write_whole
from .metrics import check_clips
from .text import WEIGHTS, Tokenizer
from .training import Plan, fit
from .world import COLOURS, GROUNDS, HEADINGS, MOTIONS, SHAPES, Scene, combinations, render, sample_scene, sample_thing

FEATURES = 32                            # few, so that 512 clips are enough for their covariance
LEAST_FRAMES = 4                         # of a clip; it was trained on 16
CLASSES = {"colour": tuple(COLOURS), "shape": tuple(SHAPES), "motion": MOTIONS}
PLAN = Plan(steps=4000, batch=48, lr=2e-3, weight_decay=0.02, ema=0.995, save_every=250)


class Judge(nn.Module):
    """The network: 3D convolutions for clips, a GRU for captions. About 300,000 parameters."""

    def __init__(self, width: int = 64, vocab_size: int = 896):
        super().__init__()
        self.trunk = nn.Sequential(                                               # (N, 3, 16, 64, 64) at best
            nn.Conv3d(3, 32, (1, 6, 6), stride=(1, 4, 4), padding=(0, 1, 1)), nn.GELU(),      # (N, 32, 16, 16, 16)
            nn.Conv3d(32, 48, 3, stride=2, padding=1), nn.GroupNorm(8, 48), nn.GELU(),        # (N, 48, 8, 8, 8)
            nn.Conv3d(48, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.GELU(),        # (N, 64, 4, 4, 4)
            nn.Conv3d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.GELU(),                  # (N, 64, 4, 4, 4)
        )
        self.features = nn.Linear(64, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(names)) for name, names in CLASSES.items()})
        self.video = nn.Linear(64, width)
        self.embedding = nn.Embedding(vocab_size, 32)
        self.gru = nn.GRU(32, 48, batch_first=True, bidirectional=True)
        self.text = nn.Linear(2 * 48, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def look(self, clips: Tensor) -> Tensor:
        """Clips (N, F, H, W, 3) uint8 -> what the trunk sees, (N, 64). Other sizes than 64 x 64 are scaled first."""
        x = to_model(clips)                                                                   # (N, 3, F, H, W)
        if x.shape[-2:] != (64, 64):
            n, _, frames = x.shape[:3]
            x = F.interpolate(x.transpose(1, 2).flatten(0, 1), (64, 64), mode="bilinear", antialias=True)
            x = x.unflatten(0, (n, frames)).transpose(1, 2)                                   # (N, 3, F, 64, 64)
        return self.trunk(x).mean(dim=(2, 3, 4))                                              # (N, 64)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L), zeros at the end -> vectors of length one (N, width)."""
        lengths = (tokens != 0).sum(1)                                                        # (N,)
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True,
                                                   enforce_sorted=False)
        _, last = self.gru(packed)                                                            # (2, N, 48)
        return F.normalize(self.text(last.transpose(0, 1).flatten(1)), dim=-1)

    def loss(self, clips: Tensor, scenes: list[Scene], tokens: Tensor) -> tuple[Tensor, dict]:
        """Row i of all three belongs together -> (loss, parts): classification and contrast, added.

        Of a scene of two things each class is half right: the target is the mean of both.
        """
        seen = self.look(clips)                                                               # (N, 64)
        features = self.features(seen)                                                        # (N, 32)
        classify, right = 0.0, {}
        for name, names in CLASSES.items():
            target = torch.zeros(len(scenes), len(names))
            for row, scene in zip(target, scenes):
                for thing in scene.things:
                    row[names.index(getattr(thing, name))] += 1 / len(scene.things)
            logits = self.heads[name](features)                                               # (N, names)
            classify = classify + F.cross_entropy(logits, target)
            right[name] = target.gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
        video, text = F.normalize(self.video(seen), dim=-1), self.embed_text(tokens)          # (N, width) each
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        contrast = ClipLoss()(video, text, scale)
        found = (text @ video.T).argmax(1) == torch.arange(len(text))
        return classify + contrast, {**right, "found": found.float().mean(), "contrast": contrast.detach()}


# ---------------------------------------------------------------- judging

@cache
def load(path: str | Path = WEIGHTS / "judge.safetensors") -> Judge:
    """The judge that ships with the package, or another one of the same make; read once, then kept.

    Raises FileNotFoundError where there is no such file, and ValueError for a file of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no judge in {path}; it comes with the package, and "
                                "`python -m minit2v.judge DIR` trains one")
    judge = Judge()
    try:
        judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except Exception as error:
        raise ValueError(f"{path} does not hold a judge: {error}") from error
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def features(clips: Tensor, judge: Judge | None = None, batch: int = 50) -> Tensor:
    """Clips (N, F, H, W, 3) uint8, of four frames or more -> features (N, 32) float32, for `frechet.distance`."""
    check_clips(clips, LEAST_FRAMES)
    judge = judge or load()
    return torch.cat([judge.features(judge.look(part)) for part in clips.split(batch)])


@torch.inference_mode()
def classify(clips: Tensor, judge: Judge | None = None) -> list[dict[str, str]]:
    """What the classifier takes each clip for: {"colour": .., "shape": .., "motion": ..}, of one thing."""
    judge = judge or load()
    found = features(clips, judge)
    best = {name: judge.heads[name](found).argmax(1).tolist() for name in CLASSES}
    return [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(len(clips))]


@torch.inference_mode()
def embed(clips: Tensor, judge: Judge | None = None, batch: int = 50) -> Tensor:
    """Clips (N, F, H, W, 3) uint8 -> vectors of length one (N, 64), to be compared with those of captions."""
    check_clips(clips, LEAST_FRAMES)
    judge = judge or load()
    return torch.cat([F.normalize(judge.video(judge.look(part)), dim=-1) for part in clips.split(batch)])


@torch.inference_mode()
def embed_text(captions: list[str], judge: Judge | None = None) -> Tensor:
    """Captions in English or Chinese -> vectors of length one (N, 64)."""
    return (judge or load()).embed_text(_tokenizer()(captions))


def similarity(clips: Tensor, captions: list[str], judge: Judge | None = None) -> Tensor:
    """How well each clip (N, F, H, W, 3) uint8 fits its caption -> cosines (N,), from -1 to 1."""
    if len(clips) != len(captions):
        raise ValueError(f"there are {len(clips)} clips and {len(captions)} captions, but each clip needs its own")
    return (embed(clips, judge) * embed_text(captions, judge)).sum(1)


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer(mini().text)


# ---------------------------------------------------------------- training

def draw_scenes(count: int) -> list[Scene]:
    """Scenes to learn from, always the same ones: three quarters of one thing, of all combinations, the rest of two."""
    rng, everything = random.Random("judge"), [*combinations("train"), *combinations("unseen")]
    one = [Scene((sample_thing(rng, *rng.choice(everything)),), rng.choice(list(GROUNDS)))
           for _ in range(count - count // 4)]
    return one + [sample_scene(rng, 2, rng.choice(("train", "unseen"))) for _ in range(count // 4)]


def turned(scene: Scene, mirrored: bool, backwards: bool) -> Scene:
    """What a clip of `scene` shows in a mirror (left is right), or played backwards, as far as words can tell."""
    names = {}
    for name, (x, y) in HEADINGS.items():
        goes = (-x if mirrored != backwards else x, -y if backwards else y)
        names[name] = next(other for other, heading in HEADINGS.items() if heading == goes)
    if backwards:
        names |= {"grow": "shrink", "shrink": "grow"}
    return replace(scene, things=tuple(replace(t, motion=names.get(t.motion, t.motion)) for t in scene.things))


def train(folder: str | Path, plan: Plan = PLAN, clips: int = 4000, progress: bool = True) -> Path:
    """Trains a judge on real clips and writes folder/judge.safetensors, in float16. A killed run goes on by the
    same call.

    `clips` are drawn once, since drawing takes longer than learning; mirrored and backwards they are four times as
    many. A third of each batch shares its colour, a third its motion: else a caption finds its clip by these two
    alone, and shapes are hardly learnt.
    """
    folder, tokenizer, scenes = Path(folder), _tokenizer(), draw_scenes(clips)
    drawn = _draw(scenes, "drawing clips", progress)
    groups = defaultdict(list)                           # rows by what their first thing is and does
    for row, scene in enumerate(scenes):
        groups["all", ""].append(row)
        for kind in ("colour", "motion"):
            groups[kind, getattr(scene.things[0], kind)].append(row)
    judge = Judge()
    _initialise(judge)

    def objective(judge, generator, rng):
        rows = []
        for kind in ("all", "colour", "motion"):
            rows += rng.choices(groups[rng.choice([key for key in groups if key[0] == kind])], k=plan.batch // 3)
        rows = list(dict.fromkeys(rows))                 # a clip drawn twice would be its own rival
        mirrored, backwards = rng.random() < 0.5, rng.random() < 0.5
        seen = drawn[rows].flip([axis for axis, flipped in ((1, backwards), (3, mirrored)) if flipped])
        told = [turned(scenes[i], mirrored, backwards) for i in rows]
        return judge.loss(seen, told, tokenizer([caption(scene, rng, rng.choice(("en", "zh"))) for scene in told]))

    average = fit(judge, objective, plan, folder / "run", progress=progress)
    path = folder / "judge.safetensors"
    with write_whole(path) as part:
        save_file({name: value.half().contiguous() for name, value in average.items()}, part)
    return path


def _draw(scenes: list[Scene], what: str, progress: bool) -> Tensor:
    """Clips of scenes, (N, 16, 64, 64, 3) uint8."""
    starts = tqdm(range(0, len(scenes), 50), what, unit="50 clips", disable=not progress)
    return torch.cat([render(scenes[i:i + 50]) for i in starts])


def _initialise(judge: Judge) -> None:
    """Draws the first weights from a generator of our own: uniform within 1 / sqrt(fan-in), as torch's layers do."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in judge.named_parameters():
            if p.ndim >= 2:
                bound = 1.0 if name.startswith("embedding") else p[0].numel() ** -0.5
                p.uniform_(-bound, bound, generator=generator)
            elif name.endswith("bias") or ".bias" in name:
                p.zero_()


def report(judge: Judge, count: int = 500, progress: bool = True) -> dict[str, float]:
    """How good a judge is on real clips that it has not seen: shares of right answers.

    "colour", "shape", "motion" and "all" of one thing, seven in eight of them combinations that generators train on.
    "colour in English" and so on: of two captions that differ in this alone, how often the right one fits better.
    """
    rng = random.Random("the judge's own test")
    scenes = [sample_scene(rng, 1, "train" if rng.random() < 7 / 8 else "unseen") for _ in range(count)]
    clips = _draw(scenes, "drawing clips it has not seen", progress)
    found = [{name: one[name] == getattr(scene.things[0], name) for name in CLASSES}
             for one, scene in zip(classify(clips, judge), scenes)]
    shares = {name: sum(f[name] for f in found) / count for name in CLASSES}
    shares["all"] = sum(all(f.values()) for f in found) / count
    seen = embed(clips, judge)
    for language, its_name in (("en", "English"), ("zh", "Chinese")):
        for name, names in CLASSES.items():
            wrong = [replace(scene, things=(replace(scene.things[0], **{name: rng.choice(
                [other for other in names if other != getattr(scene.things[0], name)])}),)) for scene in scenes]
            cosines = [(seen * embed_text([caption(scene, random.Random(i), language) for i, scene in enumerate(told)],
                                          judge)).sum(1) for told in (scenes, wrong)]           # (N,) each
            shares[f"{name} in {its_name}"] = float((cosines[0] > cosines[1]).float().mean())
    return shares


def main(argv: list[str] | None = None) -> int:
    """`python -m minit2v.judge DIR`: trains, writes DIR/judge.safetensors, and says how good it is."""
    parser = argparse.ArgumentParser(prog="python -m minit2v.judge", description="Train the judge.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=PLAN.steps, metavar="N")
    args = parser.parse_args(argv)
    path = train(args.folder, replace(PLAN, steps=args.steps))
    print(f"{path}: {path.stat().st_size:,} bytes; on real clips it has not seen, right:")
    for name, share in report(load(path)).items():
        print(f"  {name:20} {100 * share:.1f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
