"""Ablations: what a part is worth, found by leaving it out. Training at equal compute, sampling with one model.

The training runs are small, so that anyone can repeat them: a corner of Moving Shapes (one object, two shapes, three
colours, six motions, one ground), clips of eight frames, a UNet of 0.9 million parameters, and for each run the same
number of floating-point operations in that UNet, `BUDGET`. A network without some layers is cheaper, so it makes
more steps. Everything else is the recipe's: its autoencoder and text tower, its loss, its times, its optimizers.
What the referee then finds right in generated clips stands beside its 95 % interval and beside chance.

    order      spatial layers first, then all of them; against all together from the start
    layers     without temporal convolution; without temporal attention
    mixing     without single frames among the clips
    languages  captions in English only
    steps      1 to 1000 steps of each sampler, with the model that ships
    guidance   1 to 15, likewise
"""

import copy
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from . import metrics
from .captions import caption
from .config import ModelConfig
from .data import to_model
from .files import write_whole
from .pipeline import FUNCTIONS, TextToVideo, load
from .recipe import IMAGE_SHARE, _initialise, unet_objective
from .training import Plan, fit
from .unet import TemporalConv, TemporalTransformer, UNet
from .world import Scene, render, sample_thing

RESULTS = Path(__file__).parent / "course" / "ablations.json"
COLOURS, SHAPES, GROUND = ("red", "yellow", "blue"), ("circle", "square"), "black"
MOTIONS = ("right", "left", "up", "down", "grow", "shrink")
FRAMES, FPS, SIDE = 8, 4, 32                             # two seconds, every second frame, of 32 x 32 pixels
TRAINING_CLIPS = 2000
BUDGET = 4e12                                            # floating-point operations of a training run
BATCH, IMAGES = 32, 192                                  # clips, or single frames, a step
IMAGE_PART = 0.3                                         # of the budget, for single frames first
PLAN = Plan(steps=1, batch=BATCH, lr=1.5e-2, warmup=20, ema=0.98, save_every=150)
CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(SHAPES), "motion": 1 / len(MOTIONS),
          "all": 1 / (len(COLOURS) * len(SHAPES) * len(MOTIONS))}


@dataclass(frozen=True)
class Arm:
    """One way to train. What is not said is as in the recipe."""

    image_part: float = IMAGE_PART                       # 0: everything from the start
    image_share: float = IMAGE_SHARE
    languages: tuple[str, ...] = ("en", "zh")
    without: tuple[type, ...] = ()


ARMS = {
    "the recipe": Arm(),
    "all layers from the start": Arm(image_part=0.0),
    "no temporal convolution": Arm(without=(TemporalConv,)),
    "no temporal attention": Arm(without=(TemporalTransformer,)),
    "no single frames among the clips": Arm(image_share=0.0),
    "English captions only": Arm(languages=("en",)),
}
TRAINING = {"order": ("the recipe", "all layers from the start"),
            "layers": ("the recipe", "no temporal convolution", "no temporal attention"),
            "mixing": ("the recipe", "no single frames among the clips"),
            "languages": ("the recipe", "English captions only")}


# ---------------------------------------------------------------- the small world

def small(weights: str | Path | None = None) -> TextToVideo:
    """The model that a run begins with: tokenizer, text tower and autoencoder are learnt, the UNet is new and small."""
    pipe = load(weights)
    unet = replace(pipe.config.unet, channels=16, multipliers=(1, 3), head_dim=16, norm_groups=4)
    config = replace(pipe.config, name="small", unet=unet, num_frames=FRAMES, fps=FPS, height=SIDE, width=SIDE)
    return TextToVideo(config, pipe.text_encoder.requires_grad_(False), UNet(unet), pipe.autoencoder)


def scenes(count: int, seed: str) -> list[Scene]:
    """Scenes of the corner of Moving Shapes that these runs live in."""
    rng = random.Random(f"ablation {seed}")
    return [Scene((sample_thing(rng, rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(MOTIONS), "big", "fast"),),
                  GROUND) for _ in range(count)]


class SmallWorld:
    """Scenes with their latents, (N, 4, F, h, w), as `recipe.unet_objective` wants its clips; and what captions say.

    The text tower does not learn, so each caption is encoded once, for all runs.
    """

    def __init__(self, pipe: TextToVideo, count: int, progress: bool = True):
        self.scenes, self.languages, latents = scenes(count, "train"), ("en", "zh"), []
        config = pipe.config
        with torch.inference_mode():
            for i in tqdm(range(0, count, 20), desc="rendering and encoding clips", disable=not progress):
                clips = render(self.scenes[i:i + 20], num_frames=config.num_frames, fps=config.fps,
                               height=config.height, width=config.width)
                latents.append(pipe.autoencoder.encode(to_model(clips)))                # (20, 4, F, h, w)
        self.latents, self.pipe, self.contexts = torch.cat(latents).clone(), pipe, {}

    def encode(self, texts: list[str]) -> Tensor:
        """Captions -> context (B, L, D)."""
        new = [text for text in dict.fromkeys(texts) if text not in self.contexts]
        if new:
            with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                self.contexts.update(zip(new, self.pipe.encode_text(new).half()))
        return torch.stack([self.contexts[text].float() for text in texts])   # autocast stacks no halves

    def speaking(self, *languages: str) -> "SmallWorld":
        """The same clips with captions in these languages only."""
        other = copy.copy(self)
        other.languages = languages
        return other

    def batch(self, rng: random.Random, size: int, drop: float = 0.0) -> tuple[Tensor, list[str]]:
        """`size` random clips, (size, 4, F, h, w), and captions, each empty with probability `drop`."""
        rows = [rng.randrange(len(self.scenes)) for _ in range(size)]
        texts = ["" if rng.random() < drop else caption(self.scenes[i], rng, rng.choice(self.languages)) for i in rows]
        return self.latents[rows], texts


# ---------------------------------------------------------------- training at equal compute

def leave_out(unet: UNet, kinds: tuple[type, ...]) -> None:
    """Puts the identity in the place of every layer of these classes: what comes in goes out, and nothing learns."""
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if isinstance(child, kinds):
                setattr(module, name, nn.Identity())


def flops(unet: UNet, config: ModelConfig, frames: int, temporal: bool = True) -> int:
    """Floating-point operations of one clip in one training step: matrix products and convolutions, there and back."""
    factor = config.autoencoder.downscale
    latents = torch.zeros(1, config.unet.latent_channels, frames, config.height // factor, config.width // factor)
    context = torch.zeros(1, config.text.context_length, config.unet.context_dim)
    with FlopCounterMode(display=False) as counter:
        unet(latents, torch.zeros(1), context, temporal=temporal).sum().backward()
    unet.zero_grad(set_to_none=True)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Bill:
    """What a run may spend and how: steps on single frames first, then steps of both kinds, and what they cost."""

    image_steps: int
    steps: int
    image_flops: int                                     # of a step on single frames
    clip_flops: int                                      # of a step on clips
    image_share: float

    @property
    def total(self) -> float:
        """Floating-point operations of the whole run, as expected: chance decides which steps are images."""
        mean = self.image_share * self.image_flops + (1 - self.image_share) * self.clip_flops
        return self.image_steps * self.image_flops + self.steps * mean


def bill(arm: Arm, config: ModelConfig, budget: float) -> Bill:
    """As many steps as `budget` pays for."""
    unet = UNet(config.unet)
    leave_out(unet, arm.without)
    images, clips = IMAGES * flops(unet, config, 1, temporal=False), BATCH * flops(unet, config, config.num_frames)
    first = int(budget * arm.image_part / images)
    mean = arm.image_share * images + (1 - arm.image_share) * clips
    return Bill(first, int((budget - first * images) / mean), images, clips, arm.image_share)


def train(arm: Arm, pipe: TextToVideo, world: SmallWorld, out: Path, name: str, seed: int = 0, budget: float = BUDGET,
          **options) -> tuple[Bill, float]:
    """Trains the UNet of `pipe` anew in one way, into out/runs; returns what it cost, also in processor seconds.

    Arms that begin with the same images share that run: layers that see time have no part in it.
    """
    cost, spent = bill(arm, pipe.config, budget), 0.0
    pipe.unet = unet = UNet(pipe.config.unet)
    _initialise(unet, seed=3 + 1000 * seed)
    world = world.speaking(*arm.languages)

    def learn(run, steps, image_share):
        objective = unet_objective(pipe.process, world.encode, world, BATCH, image_share, IMAGES)
        average, seconds = _fit(unet, objective, replace(PLAN, steps=steps), out / "runs" / run, seed, **options)
        unet.load_state_dict(average)
        return seconds

    if cost.image_steps:
        spent += learn(f"images {' '.join(arm.languages)} {seed}", cost.image_steps, 1.0)
    leave_out(unet, arm.without)
    spent += learn(f"{name} {seed}", cost.steps, arm.image_share)
    unet.eval()
    return cost, spent


def _fit(unet: UNet, objective, plan: Plan, folder: Path, seed: int, **options) -> tuple[dict[str, Tensor], float]:
    """`fit`, and the processor seconds it took, those before a kill included, up to the last checkpoint."""
    begin, note = time.process_time(), folder / "seconds.json"
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else 0.0

    def on_save(average, step):
        with write_whole(note) as part:
            part.write_text(json.dumps(before + time.process_time() - begin), encoding="utf-8")

    average = fit(unet, objective, plan, folder, seed=seed, on_save=on_save, **options)
    return average, json.loads(note.read_text(encoding="utf-8"))


def judge(pipe: TextToVideo, count: int, language: str) -> dict[str, float]:
    """What the referee finds right in `count` clips that the model makes of new scenes of the small world."""
    truth, rng = scenes(count, "judge"), random.Random(f"captions {language}")
    clips = metrics.generate(pipe, [caption(scene, rng, language) for scene in truth], batch=40, progress=False,
                             num_inference_steps=12, sampler="dpm++")
    return metrics.accuracy(clips, truth, fps=pipe.config.fps)


# ---------------------------------------------------------------- sampling

STEPS = (1, 2, 4, 8, 15, 30, 50, 100, 250, 1000)
GUIDANCE = (1, 2, 3, 4, 6, 9, 12, 15)
FEWEST = 8                                               # clips of a row; long chains are dear, so they get no more


def settings(name: str, usual: float) -> list[tuple[str, int, float]]:
    """(sampler, steps, guidance) of each row, the cheap ones first; `usual` is the model's own guidance."""
    if name == "guidance":
        return [("dpm++", 15, float(g)) for g in GUIDANCE]
    return [(sampler, steps, usual) for steps in STEPS for sampler in FUNCTIONS]


def sample(pipe: TextToVideo, sampler: str, steps: int, guidance: float, count: int, seed: int = 0) -> dict:
    """One row: what the referee finds right in clips made with these settings, of one object, asked for in English.

    Prompts and start noises are the same in every row. `count` is for chains of up to 50 steps; longer ones get fewer
    clips. "asked" says how often the network was asked: the original's list of times has 1000 // (1000 // steps).
    """
    count = min(count, max(FEWEST, 800 // steps))
    truth, rng = metrics.judging_scenes(1, "train", count, seed), random.Random(f"captions ablation {seed}")
    prompts, asked, begin = [caption(scene, rng, "en") for scene in truth], [], time.process_time()
    clips = metrics.generate(pipe, prompts, seed, batch=8, progress=False, sampler=sampler, num_inference_steps=steps,
                             guidance_scale=guidance, on_step=lambda i, x0: asked.append(i))
    return {"sampler": sampler, "steps": steps, "asked": max(asked) + 1, "guidance": guidance, "clips": count,
            "seconds": round((time.process_time() - begin) / count, 2),
            **metrics.accuracy(clips, truth, fps=pipe.config.fps)}


# ---------------------------------------------------------------- results

def results(path: str | Path = RESULTS) -> dict[str, list[dict]]:
    """Rows of numbers by table: "training", "steps", "guidance". Without a path, those that come with the package."""
    path = Path(path)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: found.get(name, []) for name in ("training", "steps", "guidance")}


def table(name: str, found: dict[str, list[dict]] | None = None) -> str:
    """One table of `results` as Markdown, in per cent; in brackets are 95 % intervals (Wilson's)."""
    rows = (results() if found is None else found)[name]
    if name == "training":
        head = ["trained", "seed", "steps on images", "steps", "10^12 operations", "processor s",
                *metrics.ATTRIBUTES, "motion, Chinese"]
        lines = [[r["arm"], r["seed"], r["image_steps"], r["steps"], f"{r['flops'] / 1e12:.2f}", f"{r['seconds']:.0f}",
                  *_cells(r["en"], r["clips"]), _cells(r["zh"], r["clips"])[2]] for r in rows]
        lines.append(["chance", *[""] * 5, *_cells(CHANCE), _cells(CHANCE)[2]])
    else:
        head = ["sampler", "steps", "network asked", "guidance", "clips", "processor s a clip", *metrics.ATTRIBUTES]
        lines = [[r["sampler"], r["steps"], r["asked"], f"{r['guidance']:g}", r["clips"], f"{r['seconds']:.1f}",
                  *_cells(r, r["clips"])] for r in rows]
        lines.append(["chance", *[""] * 5, *_cells(metrics.chance(1))])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *lines))


def _cells(shares: dict[str, float], count: int | None = None) -> list[str]:
    return [metrics.per_cent(shares[name], count, 0) if count else f"{100 * shares[name]:.0f}"
            for name in metrics.ATTRIBUTES]


def _whiskers(shares: list[float], counts: list[int]) -> list[list[float]]:
    """How far, in per cent, the intervals reach below the shares, and above them, as Matplotlib wants it."""
    ends = [metrics.wilson(share, count) for share, count in zip(shares, counts)]
    return [[100 * (share - low) for share, (low, _) in zip(shares, ends)],
            [100 * (high - share) for share, (_, high) in zip(shares, ends)]]


def figure(found: dict[str, list[dict]] | None = None):
    """Three panels of `results`: motion by way of training; all three by number of steps; each by guidance."""
    from matplotlib.figure import Figure

    found = results() if found is None else found
    sheet = Figure(figsize=(12.0, 3.8), layout="constrained")
    training, steps, guidance = sheet.subplots(1, 3, width_ratios=(1.3, 1, 1))
    names = list(dict.fromkeys(r["arm"] for r in found["training"]))
    for row in found["training"]:
        shift = 0.15 * (row["seed"] - 0.5)
        for language, colour, mark, up in (("en", BLUE, "o", 0.12), ("zh", ORANGE, "s", -0.12)):
            share = row[language]["motion"]
            training.errorbar(100 * share, names.index(row["arm"]) - shift - up, fmt=mark, color=colour, capsize=3,
                              xerr=_whiskers([share], [row["clips"]]))
    training.set_yticks(range(len(names)), names)
    training.invert_yaxis()
    training.axvline(100 * CHANCE["motion"], color="grey", linestyle="--")
    training.set(xlim=(0, 100), xlabel="motion right, %", title="training: English ●, Chinese ■, chance --")
    for sampler, colour, mark in zip(FUNCTIONS, (BLUE, GREEN, ORANGE), "os^"):
        rows = sorted((r for r in found["steps"] if r["sampler"] == sampler), key=lambda r: r["steps"])
        _curve(steps, rows, "steps", "all", sampler, colour, mark)
    steps.set(xscale="log", xlabel="steps", title="sampling: colour, shape and motion right")
    rows = sorted(found["guidance"], key=lambda r: r["guidance"])
    for name, colour, mark in zip(("colour", "shape", "motion"), (BLUE, GREEN, ORANGE), "os^"):
        _curve(guidance, rows, "guidance", name, name, colour, mark)
    guidance.set(xlabel="guidance scale", title="guidance: 15 steps of dpm++")
    for axes in (steps, guidance):
        axes.set(ylim=(0, 102), ylabel="right, %")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=9, loc="lower center")
    return sheet


BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#E69F00"    # of Okabe & Ito, as in the course's pictures


def _curve(axes, rows: list[dict], x: str, y: str, label: str, colour: str, mark: str) -> None:
    axes.errorbar([r[x] for r in rows], [100 * r[y] for r in rows], color=colour, marker=mark, markersize=4,
                  label=label, capsize=2, linewidth=1.5,
                  yerr=_whiskers([r[y] for r in rows], [r["clips"] for r in rows]))


def write(found: dict[str, list[dict]], out: Path) -> None:
    """The rows, one a line, and their figure: ablations.json and ablations.png in `out`."""
    blocks = [f' "{name}": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n ]"
              for name, rows in found.items()]
    with write_whole(out / RESULTS.name) as part:
        part.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    with write_whole(out / "ablations.png") as part:
        figure(found).savefig(part, format="png", dpi=110)
