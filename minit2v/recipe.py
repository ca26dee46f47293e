"""The recipe: four stages that make the mini model, each one run of the loop in `training.py`.

    autoencoder   frames -> frames                    the KL-VAE
    text          captions <-> clips                  a contrastive model, whose text tower is then frozen
    image         single frames, temporal parts off   appearance: colours, shapes, places
    video         clips, with some images among them  motion

The last two are the recipe of ModelScope (Wang et al. 2023), which starts from an image model,
adds temporal layers that do nothing at first, and trains on videos and images together.
"""

import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import distributed
from .autoencoder import Autoencoder
from .captions import caption, caption_words
from .config import ModelConfig
from .data import Clips, encode_world, scenes_of, to_model
from .diffusion import Process, denoising_loss
from .files import write_whole
from .metrics import accuracy
from .pipeline import load
from .text import ContrastiveText, TextEncoder, Tokenizer, learn_merges, write_merges
from .training import Plan, fit
from .unet import UNet
from .world import HEADINGS, Scene, combinations, render, sample_scene, sample_thing

Device = str | torch.device
STAGES = ("autoencoder", "text", "image", "video")
UNETS = ("image", "video")               # stages that train the UNet
PLANS = {
    "autoencoder": Plan(steps=6000, batch=16, lr=3e-3, ema=0.998),
    "text": Plan(steps=400, batch=192, lr=2e-3, weight_decay=0.05, ema=0.99, save_every=100),
    "image": Plan(steps=6000, batch=128, lr=3e-3, final_lr=0.3, ema=0.995),
    "video": Plan(steps=8000, batch=16, lr=1.5e-3, ema=0.998),
}
NEEDS = {"autoencoder": (), "text": ("autoencoder",), "image": ("autoencoder", "text_encoder"),
         "video": ("autoencoder", "text_encoder", "unet")}
MADE_BY = {"autoencoder": "autoencoder", "text_encoder": "text", "unet": "image"}
SHARDS = {1: 12, 2: 20, 3: 4}            # thousands of clips of each level; the UNet does not see the third
KL_WEIGHT = 1.0                          # of the autoencoder; see train_autoencoder
DROP_CAPTION = 0.1                       # share of empty captions: what guidance compares with (Ho & Salimans 2022)
IMAGE_SHARE = 1 / 8                      # share of image batches in the video stage, as in the original
HARD = ("spin", "bounce", "orbit")       # motions that are learnt last: the UNet sees them three times as often


def train_autoencoder(config: ModelConfig, out: Path, plan: Plan, device: Device = "cpu", **options) -> None:
    """Stage 1: frames of all levels; then the decoder alone, as many steps again, on latents with little noise.

    The frames are crowded with up to eight things: where most pixels are ground, as in the clips, the loss hardly
    notices an object's colour, and blue and cyan, red and orange stay one for thousands of steps.

    The pull of the KL term is a million times the original's. With a small network and a weak pull (1e-3) frames
    come back as well, but the latents keep colours in fine print: red and orange on white differed by a tenth of
    what the object differs from the ground, and the UNet, which learns the large first, painted one object in
    several hues. A strong pull is a strong noise, and what has to survive it is written large: now a third.

    Decoding through that noise blurs. But the UNet's latents have little noise, so the decoder may learn to trust
    them, which changes no latent. (Stable Diffusion's decoder was finished in the same way: "ft-MSE", 2022.) Half of
    its frames are plain ones of two objects, whose edges and hues a crowd does not teach as well.
    Ends by measuring the latents, so that they leave with unit size.
    """
    model = Autoencoder(config.autoencoder).to(memory_format=torch.channels_last)
    _initialise(model, seed=1)
    model.to(device)

    def frames(rng, crowds=1.0):
        scenes = [_crowd(rng) if rng.random() < crowds else sample_scene(rng, 2) for _ in range(plan.batch)]
        clips = render(scenes, height=config.height, width=config.width,
                       seconds=torch.tensor([rng.uniform(0, 2)], dtype=torch.float64))
        return to_model(clips)[:, :, 0].to(device)                                      # (B, 3, H, W)

    def whole(model, generator, rng):
        return model.loss(frames(rng), generator, kl_weight=KL_WEIGHT)

    def decoder_alone(model, generator, rng):
        return model.loss(frames(rng, crowds=0.5), generator, kl_weight=0.0, noise=0.04)

    run = out / "runs" / "autoencoder"
    model.load_state_dict(fit(model, whole, plan, run, **options))
    learnt = fit(model, decoder_alone, plan, run / "decoder",
                 learns=lambda name: name.startswith(("decoder", "post_quant_conv")), **options)
    model.load_state_dict(learnt, strict=False)
    with torch.inference_mode():
        clips = to_model(render(scenes_of(1, 0, 200), num_frames=4, fps=2.0, height=config.height, width=config.width))
        mean, _ = model.posterior(clips.to(device))                                     # (200, 4, 4, h, w)
    sizes = replace(config.autoencoder, scaling_factor=round(1 / mean.std().item(), 4))
    _write(out, replace(config, autoencoder=sizes), autoencoder=model.state_dict())


def _crowd(rng: random.Random) -> Scene:
    """A scene of level 1 to 3 with up to seven things more, anywhere, one on another."""
    scene = sample_scene(rng, rng.choice((1, 2, 3)))
    more = [replace(sample_thing(rng, *rng.choice(combinations())), outlined=rng.random() < 0.15)
            for _ in range(rng.choice((0, 2, 4, 7)))]
    return replace(scene, things=(*scene.things, *more))


def train_text(config: ModelConfig, out: Path, plan: Plan, device: Device = "cpu", **options) -> None:
    """Stage 2: first the vocabulary, by byte-pair encoding, then captions against the latents of clips of all levels.

    Half a batch is drawn from one colour or one motion, or from everything. Among clips of all kinds a caption finds
    its own by colour and motion, and the tower hardly learns shapes: they made 0.3 % of the variance of its answers,
    and a UNet cannot draw what its text does not say. Among red things the shape decides.
    """
    if not (out / config.text.merges).exists():
        learn_vocabulary(config, out / config.text.merges)
    clips, tokenizer = _clips(config, out, (1, 2, 3), device, **options), _tokenizer(config, out)
    groups = defaultdict(list)                           # rows by what their first thing is and does
    for row, scene in enumerate(clips.scenes):
        groups["all", ""].append(row)
        groups["colour", scene.things[0].colour].append(row)
        groups["motion", scene.things[0].motion].append(row)
    model = ContrastiveText(config.text)
    _initialise(model, seed=2)
    model.to(device)

    def objective(model, generator, rng):
        rows = []
        for _ in range(2):
            kind = rng.choice(("colour", "colour", "motion", "all"))
            group = groups[rng.choice([key for key in groups if key[0] == kind])]
            rows += [rng.choice(group) for _ in range(plan.batch // 2)]
        rows = list(dict.fromkeys(rows))                 # a clip drawn twice would be its own rival
        texts = [caption(clips.scenes[i], rng, rng.choice(("en", "zh"))) for i in rows]
        return model.loss(tokenizer(texts).to(device), clips.latents[rows].float().to(device))

    model.load_state_dict(fit(model, objective, plan, out / "runs" / "text", **{**options, "autocast": None}))
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
    with write_whole(path) as part:
        write_merges(part, learn_merges(words, config.text.vocab_size))


def train_image(config: ModelConfig, out: Path, plan: Plan, **options) -> None:
    """Stage 3: single frames of clips of levels 1 and 2; the temporal parts stay out and keep their zeros."""
    clips = _clips(config, out, (1, 2), **options)
    _train_unet(config, out, plan, "image", clips, image_share=1.0, images=plan.batch, **options)


def train_video(config: ModelConfig, out: Path, plan: Plan, **options) -> None:
    """Stage 4: clips, and batches of single frames among them. Four runs, each from where the one before it ended.

    Motion is the slow part. `half`, every other frame of twice as many clips, costs half the time and brings the
    temporal layers to life. `one`, whole clips of one object that mostly goes somewhere, teaches directions, with more
    of the times at which they are decided. Then come all clips. Without `one` the network was on a plateau: after
    8,000 steps on all clips the opposite direction in the caption made its error at t = 925 larger by nothing; with it,
    after 500 steps of `one`, by 0.02, after 1,000 by 0.24, and after all clips by 0.42. The last run goes over all
    clips again, at a smaller rate, and some captions leave out colour or motion, as people do: before it the network,
    asked for "a circle moves right" and nothing else, drew an empty ground in 15 clips of 32.
    """
    first = replace(plan, steps=max(1, plan.steps // 4), lr=2 * plan.lr, final_lr=0.3)
    runs = {"video/half": (replace(first, batch=2 * plan.batch), {"every": 2}),
            "video/one": (first, {"weight": one_that_goes, "late": 0.3}),
            "video/all": (plan, {"late": 0.5}),
            "video": (replace(plan, steps=3 * max(1, plan.steps // 4), lr=plan.lr * 2 / 3),
                      {"late": 0.5, "terse": 0.15})}
    names, clips = list(runs), _clips(config, out, (1, 2), **options)
    begun = max((i for i, run in enumerate(names) if (out / "runs" / run / "start.safetensors").exists()), default=0)
    for run in names[begun:]:                            # what a later one began from stays as it is
        its_plan, its_options = runs[run]
        _train_unet(config, out, its_plan, run, clips, IMAGE_SHARE, images=8 * plan.batch, **its_options, **options)


def hard_ones_more(scene: Scene) -> float:
    """How often a clip is drawn: thrice if something in it moves in a way that is learnt last."""
    return 3 if any(thing.motion in HARD for thing in scene.things) else 1


def one_that_goes(scene: Scene) -> float:
    """How often a clip is drawn: never with two objects, seldom if the one goes nowhere (lest that is forgotten)."""
    return 0 if len(scene.things) == 2 else 1 if scene.things[0].motion in HEADINGS else 0.2


def _train_unet(config: ModelConfig, out: Path, plan: Plan, run: str, clips: Clips, image_share: float, images: int,
                every: int = 1, weight: Callable[[Scene], float] = hard_ones_more, late: float = 0.65,
                terse: float = 0.0, device: Device = "cpu", **options) -> None:
    """One run of the UNet, into out/runs/`run`: `image_share` of its batches are `images` single frames.

    The others are clips of every `every`-th frame. weight: how often a clip is drawn; late: see `draw_times`; terse:
    the share of captions that leave something out. A run of clips goes on from the weights in `out`.
    """
    text_encoder = TextEncoder(config.text).eval().requires_grad_(False)
    text_encoder.load_state_dict(load_file(out / "text_encoder.safetensors"))
    clips, tokenizer = clips.weighted(weight).terse(terse), _tokenizer(config, out)
    unet = UNet(config.unet)
    _initialise(unet, seed=3)
    if run != "image":                                   # from where the image model was, however often it is resumed
        start = out / "runs" / run / "start.safetensors"
        if not start.exists():
            start.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(start) as part:
                shutil.copyfile(out / "unet.safetensors", part)
        unet.load_state_dict(load_file(start))
    text_encoder.to(device)
    unet.to(device)

    def encode(texts):
        return text_encoder(tokenizer(texts).to(device)).float()                        # (B, L, D)

    objective = unet_objective(Process(config.diffusion), encode, clips, plan.batch, image_share, images, every,
                               late)

    def on_save(average, step):
        _write(out, config, unet=average)
        return None if run == "image" else score(out, every=every, device=device)

    fit(unet, objective, plan, out / "runs" / run, on_save=on_save, **options)


def unet_objective(process: Process, encode: Callable[[list[str]], Tensor], clips: Clips, batch: int,
                   image_share: float, images: int, every: int = 1, late: float = 0.65) -> Callable:
    """What a step of the UNet is, for `training.fit`: `image_share` of the batches are `images` single frames.

    The others are `batch` clips of every `every`-th frame. encode(captions) -> context (B, L, D), on the UNet's device;
    no gradient goes through it. clips: anything with `batch(rng, size, drop)`, as `data.Clips` has it. late: see
    `draw_times`.
    """
    def objective(unet, generator, rng):
        still = rng.random() < image_share
        latents, texts = clips.batch(rng, images if still else batch, drop=DROP_CAPTION)    # (B, 4, F, h, w)
        if still:
            latents = latents[:, :, rng.randrange(latents.shape[2])][:, :, None]        # (B, 4, 1, h, w)
        else:
            latents = latents[:, :, rng.randrange(every)::every]                        # (B, 4, F / every, h, w)
        network = partial(unet, temporal=False) if still else unet
        times = draw_times(process.timesteps, len(latents), generator, late)
        context = encode(texts)                                                         # (B, L, D)
        return denoising_loss(network, process, latents.to(context.device), context, generator, t=times)[0], {}

    return objective


def draw_times(timesteps: int, count: int, generator: torch.Generator, late: float = 0.65) -> Tensor:
    """Times 1 .. timesteps, (count,), more of them late than early; with `late` 1 they are uniform.

    Late it is decided what is in a clip and how it moves; the early times, which see nearly all, add the edges. With
    0.65 two thirds are in the noisier half. With 0.3 half are in the noisiest fifth, where directions are decided: the
    opposite one in the caption makes the shipped network's error larger by 0.37 at 925, 0.13 at 850, 0.01 at 700.
    """
    return 1 + (timesteps * torch.rand(count, generator=generator) ** late).long().clamp(max=timesteps - 1)


def score(folder: Path, count: int = 32, every: int = 1, device: Device = "cpu") -> dict[str, float]:
    """A quick look at a half-trained model: the share of clips whose colour, shape, motion the referee finds right.

    every: the model knows clips of every `every`-th frame, and makes such.
    """
    pipe, rng = load(folder, device=device), random.Random("score")
    scenes = [sample_scene(rng, 1) for _ in range(count)]
    prompts = [caption(scene, rng, "en") for scene in scenes]
    clips = pipe(prompts, num_inference_steps=12, sampler="dpm++", seed=list(range(count)), progress=False,
                 num_frames=pipe.config.num_frames // every)
    return accuracy(clips, scenes, fps=pipe.config.fps / every)


def _clips(config: ModelConfig, out: Path, levels: tuple[int, ...], device: Device = "cpu", progress: bool = True,
           autocast: torch.dtype | None = None, **options) -> Clips:
    """The clips of some levels as latents. What is not on disk is made first."""
    autoencoder = Autoencoder(config.autoencoder)
    autoencoder.load_state_dict(load_file(out / "autoencoder.safetensors"))
    shards = {level: SHARDS[level] for level in levels}
    with torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
        encode_world(out / "clips", autoencoder.to(device), shards, progress=progress, device=device)
    distributed.everyones("encoded")                     # each process has encoded some, and reads all
    return Clips(out / "clips", shards)


def _tokenizer(config: ModelConfig, out: Path) -> Tokenizer:
    """The tokenizer whose vocabulary was learnt into `out`, not the one that ships with the package."""
    return Tokenizer(replace(config.text, merges=str((out / config.text.merges).resolve())))


def _initialise(model: nn.Module, seed: int) -> None:
    """Draws the first weights anew, from a generator of our own and not from torch's global one.

    Weights and biases uniform within 1 / sqrt(fan-in), as torch's layers do; embeddings normal, 0.02 wide.
    A tensor that its module has set to zero stays zero, and so do the ones of a norm.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.ndim >= 2 and p.any():
                    if isinstance(module, nn.Embedding) or "embedding" in name:
                        p.normal_(std=0.02, generator=generator)
                    else:
                        bound = p[0].numel() ** -0.5
                        p.uniform_(-bound, bound, generator=generator)
                elif name == "bias" and p.any():
                    bound = module.weight[0].numel() ** -0.5
                    p.uniform_(-bound, bound, generator=generator)


def _write(out: Path, config: ModelConfig, **parts: dict[str, Tensor]) -> None:
    """Writes finished parts into the folder of the model, each file whole or not at all."""
    if not distributed.first():
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, state in parts.items():
        tensors = {key: value.detach().contiguous() for key, value in state.items()}
        with write_whole(out / f"{name}.safetensors") as part:
            save_file(tensors, part)
    with write_whole(out / "config.json") as part:
        part.write_text(config.to_json() + "\n", encoding="utf-8")
