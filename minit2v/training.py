"""Training: one loop for every stage, and the four stages that make the mini model.

    autoencoder   frames -> frames                    the KL-VAE
    text          captions <-> clips                  a contrastive model, whose text tower is then frozen
    image         single frames, temporal parts off   appearance: colours, shapes, places
    video         clips, with some images among them  motion

The last two are the recipe of ModelScope (Wang et al. 2023, section 3.3), which starts from an image model,
adds temporal layers that do nothing at first, and trains on videos and images together.

Everything random in step n is drawn from generators seeded by (seed, n). So a run that was killed and resumed
from its last checkpoint makes the same steps as one that was not, and loses only the steps since that checkpoint.
"""

import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from .autoencoder import Autoencoder
from .captions import caption, caption_words
from .config import ModelConfig, mini
from .data import Clips, encode_world, scenes_of, to_model
from .diffusion import Process, denoising_loss
from .pipeline import load
from .text import ContrastiveText, TextEncoder, Tokenizer, learn_merges, write_merges
from .unet import UNet
from .world import Scene, combinations, render, sample_scene, sample_thing


@dataclass(frozen=True)
class Plan:
    """How long and how fast one stage learns."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100                     # steps until the learning rate has risen to `lr`
    final_lr: float = 0.02                # where the cosine ends, in units of `lr`
    weight_decay: float = 0.0
    ema: float = 0.999                    # how much of the average is kept at each step
    clip_grad: float = 1.0
    save_every: int = 500
    log_every: int = 20

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `final_lr` (Loshchilov & Hutter 2017)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Ema:
    """A moving average of the weights: smoother than the weights themselves, and what we sample from."""

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, parameters: dict[str, Tensor], step: int) -> None:
        """average <- decay * average + (1 - decay) * parameters; in the first steps the decay is smaller."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [parameters[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)


def generators(seed: int, step: int) -> tuple[torch.Generator, random.Random]:
    """The two sources of chance of one step: noise for tensors, choices for everything else."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step), random.Random(f"{seed}, {step}")


def fit(model: nn.Module, objective: Callable, plan: Plan, folder: str | Path, seed: int = 0,
        learns: Callable[[str], bool] = lambda name: True, autocast: torch.dtype | None = None,
        on_save: Callable[[dict[str, Tensor], int], dict | None] | None = None,
        progress: bool = True) -> dict[str, Tensor]:
    """Trains `model` for `plan.steps` steps and returns the averaged weights, {name: tensor}.

    objective(model, generator, rng) -> (loss, {name: number}): draws a batch and its noise, and judges the model.
    folder: gets checkpoint.pt, log.jsonl and loss.png. If there is a checkpoint in it, the run goes on from there.
    learns: which parameters are trained, by name. autocast: torch.bfloat16 for mixed precision, None for none.
    on_save: called with the averaged weights and the step at each save; what it returns is logged.
    Raises FloatingPointError when the loss is not a number; the last checkpoint stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    parameters = {name: p for name, p in model.named_parameters() if learns(name)}
    for name, p in model.named_parameters():
        p.requires_grad_(name in parameters)
    ema = Ema(parameters, plan.ema)
    optimizer = torch.optim.AdamW(parameters.values(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay,
                                  fused=True)
    first, spent = _resume(folder, parameters, ema, optimizer)
    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    started, recent = time.monotonic() - spent, []
    bar = tqdm(range(first, plan.steps), desc=folder.name, initial=first, total=plan.steps, disable=not progress)
    model.train()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate(step)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss, parts = objective(model, *generators(seed, step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; the last checkpoint in {folder} is "
                                     f"whole. Resume with a smaller learning rate than {plan.lr}.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), plan.clip_grad)
        optimizer.step()
        ema.update(parameters, step)
        recent.append(loss.item())
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            line = {"step": done, "loss": sum(recent) / len(recent), "grad_norm": norm.item(),
                    "lr": plan.learning_rate(step), "seconds": round(time.monotonic() - started, 1),
                    **{k: float(v) for k, v in parts.items()}}
            recent = []
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{line['loss']:.4f}")
        if done % plan.save_every == 0 or done == plan.steps:
            _save(folder, parameters, ema, optimizer, done, time.monotonic() - started)
            found = on_save(ema.average, done) if on_save else None
            if found:
                log.write(json.dumps({"step": done, **found}) + "\n")
                log.flush()
            plot_log(folder)
    log.close()
    return ema.average


def _save(folder: Path, parameters: dict, ema: Ema, optimizer, step: int, seconds: float) -> None:
    state = {"parameters": {k: p.detach() for k, p in parameters.items()}, "average": ema.average,
             "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def _resume(folder: Path, parameters: dict, ema: Ema, optimizer) -> tuple[int, float]:
    """Loads the checkpoint of `folder`, if any, and cuts the log back to it. Returns its step and the seconds spent."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        (folder / "log.jsonl").write_text("", encoding="utf-8")
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    if set(state["parameters"]) != set(parameters):
        raise ValueError(f"{path} was written by another model or stage: it holds {len(state['parameters'])} tensors, "
                         f"{len(parameters)} are trained here. Choose another folder, or remove this one.")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["parameters"][name])
    for name, average in ema.average.items():
        average.copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    kept = [line for line in read_log(folder) if line["step"] <= state["step"]]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return state["step"], state["seconds"]


def read_log(folder: str | Path) -> list[dict]:
    """The log of a run as a list of dicts. A last line that was cut by a kill is left out."""
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plot_log(folder: str | Path) -> None:
    """Draws the loss over the steps into loss.png."""
    from matplotlib.figure import Figure

    lines = [line for line in read_log(folder) if "loss" in line]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=Path(folder).name)
    figure.savefig(Path(folder) / "loss.tmp", format="png", dpi=100)
    os.replace(Path(folder) / "loss.tmp", Path(folder) / "loss.png")


# ---------------------------------------------------------------- the four stages

STAGES = ("autoencoder", "text", "image", "video")
PLANS = {
    "autoencoder": Plan(steps=6000, batch=16, lr=2e-3, ema=0.998),
    "text": Plan(steps=1500, batch=128, lr=1e-3, weight_decay=0.05, ema=0.99, save_every=300),
    "image": Plan(steps=3000, batch=128, lr=1.5e-3),
    "video": Plan(steps=8000, batch=32, lr=1e-3),
}
SHARDS = {1: 10, 2: 6, 3: 0}             # thousands of clips of each level that the UNet learns from
DROP_CAPTION = 0.1                       # share of empty captions: what guidance compares with (Ho & Salimans 2022)
IMAGE_SHARE = 1 / 8                      # share of image batches in the video stage, as in the original


def train_autoencoder(config: ModelConfig, out: Path, plan: Plan, **options) -> None:
    """Stage 1: frames of all levels. Ends by measuring the latents' spread, so that they leave with unit size.

    The frames are crowded with up to eight things: where most pixels are ground, as in the clips, the loss hardly
    notices an object's colour, and blue and cyan, red and orange stay one for thousands of steps.
    """
    model = Autoencoder(config.autoencoder).to(memory_format=torch.channels_last)
    _initialise(model, seed=1)

    def objective(model, generator, rng):
        scenes = [_crowd(rng) for _ in range(plan.batch)]
        clips = render(scenes, height=config.height, width=config.width,
                       seconds=torch.tensor([rng.uniform(0, 2)], dtype=torch.float64))
        return model.loss(to_model(clips)[:, :, 0], generator, kl_weight=1e-3)          # (B, 3, H, W)

    average = fit(model, objective, plan, out / "runs" / "autoencoder", **options)
    model.load_state_dict(average)
    with torch.inference_mode():
        frames = to_model(render(scenes_of(1, 0, 100), num_frames=4, fps=2.0, height=config.height, width=config.width))
        spread = float(model.posterior(frames)[0].std())
    config = replace(config, autoencoder=replace(config.autoencoder, scaling_factor=round(1 / spread, 5)))
    _write(out, config, autoencoder=average)


def _crowd(rng: random.Random) -> Scene:
    """A scene of level 1 to 3 with up to seven things more, anywhere, one on another."""
    scene = sample_scene(rng, rng.choice((1, 2, 3)))
    more = [replace(sample_thing(rng, *rng.choice(combinations())), outlined=rng.random() < 0.15)
            for _ in range(rng.choice((0, 2, 4, 7)))]
    return replace(scene, things=(*scene.things, *more))


def train_text(config: ModelConfig, out: Path, plan: Plan, clips: int = 8000, **options) -> None:
    """Stage 2: first the vocabulary, by byte-pair encoding, then captions against clips of all levels."""
    learn_vocabulary(config, out / config.text.merges)
    tokenizer = _tokenizer(config, out)
    model = ContrastiveText(config.text)
    _initialise(model, seed=2)
    scenes = [s for level, shard in ((1, 500), (2, 500), (3, 500)) for s in scenes_of(level, shard, clips // 3)]
    small = torch.cat([render(scenes[i:i + 50], height=32, width=32) for i in tqdm(
        range(0, len(scenes), 50), desc="rendering clips", disable=not options.get("progress", True))])

    def objective(model, generator, rng):
        rows = [rng.randrange(len(scenes)) for _ in range(plan.batch)]
        texts = [caption(scenes[i], rng, rng.choice(("en", "zh"))) for i in rows]
        return model.loss(tokenizer(texts), to_model(small[rows]))

    average = fit(model, objective, plan, out / "runs" / "text", **options)
    model.load_state_dict(average)
    _write(out, config, text_encoder=model.text_encoder().state_dict())


def learn_vocabulary(config: ModelConfig, path: Path, captions: int = 6000) -> None:
    """Learns the merges of the tokenizer from captions of all levels in both languages."""
    rng, words = random.Random("vocabulary"), Counter()
    for i in range(captions):
        scene = sample_scene(rng, 1 + i % 3)
        words.update((word, True) for word in caption_words(scene, rng, "en"))
        chinese = caption_words(scene, rng, "zh")
        ends = [i + 1 == len(chinese) or "，" in chinese[i:i + 2] for i in range(len(chinese))]
        words.update(zip(chinese, ends))
    write_merges(path, learn_merges(words, config.text.vocab_size))


def train_image(config: ModelConfig, out: Path, plan: Plan, **options) -> None:
    """Stage 3: single frames of clips of levels 1 and 2; the temporal parts stay out and keep their zeros."""
    _train_unet(config, out, plan, "image", image_share=1.0, **options)


def train_video(config: ModelConfig, out: Path, plan: Plan, **options) -> None:
    """Stage 4: whole clips, with some batches of single frames among them."""
    _train_unet(config, out, plan, "video", image_share=IMAGE_SHARE, **options)


def _train_unet(config: ModelConfig, out: Path, plan: Plan, stage: str, image_share: float, **options) -> None:
    autoencoder = Autoencoder(config.autoencoder)
    autoencoder.load_state_dict(load_file(out / "autoencoder.safetensors"))
    text_encoder = TextEncoder(config.text).eval().requires_grad_(False)
    text_encoder.load_state_dict(load_file(out / "text_encoder.safetensors"))
    encode_world(out / "clips", autoencoder, SHARDS, progress=options.get("progress", True))
    clips, tokenizer, process = Clips(out / "clips", SHARDS), _tokenizer(config, out), Process(config.diffusion)
    unet = UNet(config.unet)
    _initialise(unet, seed=3)
    if stage == "video":
        unet.load_state_dict(load_file(out / "unet.safetensors"))

    def objective(unet, generator, rng):
        latents, texts = clips.batch(rng, plan.batch, drop=DROP_CAPTION)                # (B, 4, F, h, w)
        context = text_encoder(tokenizer(texts)).float()                                # (B, L, D)
        network = unet
        if rng.random() < image_share:
            latents = latents[:, :, rng.randrange(latents.shape[2])][:, :, None]        # (B, 4, 1, h, w)
            network = partial(unet, temporal=False)
        loss, _, _ = denoising_loss(network, process, latents, context, generator)
        return loss, {}

    def on_save(average, step):
        _write(out, config, unet=average)
        return score(out) if stage == "video" else None

    fit(unet, objective, plan, out / "runs" / stage, on_save=on_save, **options)


def score(folder: Path, count: int = 32) -> dict[str, float]:
    """A quick look at a half-trained model: the share of clips whose colour, shape, motion the referee finds right."""
    from .referee import agrees, read

    pipe, rng = load(folder), random.Random("score")
    scenes = [sample_scene(rng, 1) for _ in range(count)]
    prompts = [caption(scene, rng, "en") for scene in scenes]
    clips = pipe(prompts, num_inference_steps=12, sampler="dpm++", guidance_scale=4.0, seed=list(range(count)),
                 progress=False)
    found = [agrees(read(clip), scene) for clip, scene in zip(clips, scenes)]
    return {name: sum(f[name] for f in found) / count for name in ("colour", "shape", "motion", "all")}


def _tokenizer(config: ModelConfig, out: Path) -> Tokenizer:
    """The tokenizer whose vocabulary was learnt into `out`, not the one that ships with the package."""
    return Tokenizer(replace(config.text, merges=str((out / config.text.merges).resolve())))


def _initialise(model: nn.Module, seed: int) -> None:
    """Draws the first weights anew from a generator of our own, in the way of torch's layers.

    A tensor that its module has set to zero stays zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if not p.any() or name == "bias" or p.ndim < 2:
                continue
            fresh = torch.randn(p.shape, generator=generator) * p.detach().std()
            p.data.copy_(fresh)


def _write(out: Path, config: ModelConfig, **parts: dict[str, Tensor]) -> None:
    """Writes finished parts into the folder of the model, each file whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for name, state in parts.items():
        tensors = {key: value.detach().contiguous() for key, value in state.items()}
        save_file(tensors, out / f"{name}.tmp")
        os.replace(out / f"{name}.tmp", out / f"{name}.safetensors")
    (out / "config.tmp").write_text(config.to_json() + "\n", encoding="utf-8")
    os.replace(out / "config.tmp", out / "config.json")


def main_train(args) -> int:
    """`minit2v train`: runs one stage or all four into a folder, each going on where it stopped."""
    if args.threads:
        torch.set_num_threads(args.threads)
    out = Path(args.out)
    runs = {"autoencoder": train_autoencoder, "text": train_text, "image": train_image, "video": train_video}
    for stage in STAGES if args.stage == "all" else (args.stage,):
        saved = out / "config.json"
        config = ModelConfig.from_json(saved.read_text(encoding="utf-8")) if saved.exists() else mini()
        plan = PLANS[stage] if args.steps is None else replace(PLANS[stage], steps=args.steps)
        runs[stage](config, out, plan, autocast=torch.bfloat16 if args.dtype == "bfloat16" else None)
        print(f"{stage}: the weights are in {out}, the log and the checkpoint in {out / 'runs' / stage}")
    return 0
