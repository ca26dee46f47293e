"""Fine-tuning: a model that knows much learns a little more from a few clips of yours.

    pipe = minit2v.load()
    report = finetune(pipe, clips, captions, Plan(steps=300, batch=4, lr=1e-3), "runs/hearts", learns="lora")
    pipe("a red heart moves right")

The objective is that of training from nothing (`diffusion.denoising_loss`). What differs is *which* parameters learn:
all; only those that see time, when things look right but move wrong; only those that see single frames, for a new
look; or LoRA's small matrices, which change least and fit into a small file. Frames alone can be mixed in, as the
original did (Wang et al. 2023). What came of it is measured, see beforeafter.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import beforeafter, distributed, lora, sharding
from .diffusion import denoising_loss
from .examples import Examples, of_clips
from .files import write_whole
from .pipeline import TextToVideo
from .tensorfiles import fingerprint
from .training import Plan, check_way, fit, read_log


def is_temporal(name: str) -> bool:
    """Whether a parameter of the UNet sees time: those that a forward pass with temporal=False leaves out."""
    return name.startswith("transformer_in.") or ".temporal_conv." in name or ".temporal_transformer." in name


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to LoRA."""
    return name.endswith((".down", ".up"))


LEARNS: dict[str, Callable[[str], bool]] = {             # which parameters of the UNet learn, by their names
    "all": lambda name: True,
    "temporal": is_temporal,
    "spatial": lambda name: not is_temporal(name),
    "lora": is_adapter,
}
LAYERS = {                                               # beside which layers LoRA stands, by their names
    "all": lora.ATTENTION,
    "spatial": r"\.spatial_transformer\.block\.attn1\.to_(q|k|v|out)$",
    "cross": r"\.spatial_transformer\.block\.attn2\.to_(q|k|v|out)$",
    "temporal": r"(^transformer_in|\.temporal_transformer)\.block\.attn[12]\.to_(q|k|v|out)$",
}
STILLS = 4                                               # single frames in the place of one clip of a batch
SAMPLE = 1024                                            # numbers of each tensor by which is told how far it moved


def finetune(pipe: TextToVideo, clips: Tensor | list[Tensor] | Examples, captions: list[str] | None, plan: Plan,
             folder: str | Path, learns: str = "lora", rank: int = 4, alpha: float | None = None, layers: str = "all",
             image_share: float = 0.0, min_snr: float | None = None, drop: float = 0.1,
             autocast: torch.dtype | None = None, checkpointing: bool = False, judge: int = 8, seed: int = 0,
             progress: bool = True, shard: bool = False) -> dict:
    """Teaches `pipe` some clips. Returns the report; `pipe` has then learnt, and `folder` holds the result.

    clips: (N, F, H, W, 3) uint8, or a list of N clips; captions: one for each. Or `Examples` that are encoded
        already (examples.of_films), and captions None.
    plan: steps, batch, learning rate. Every micro-batch draws `plan.batch` clips; there are `plan.accumulate` a step.
    folder: gets report.json, before_after.png, the run (log, loss, checkpoint) in run/, and the result: the whole
        model for `minit2v.load`, or lora.safetensors for `pipe.load_lora`. The same call goes on where a killed one
        stopped, and makes the same steps.
    learns: "all", "temporal", "spatial" or "lora" (LEARNS). rank, alpha, layers: of LoRA only, see lora.add; layers is
        "all", "spatial", "cross", "temporal" (LAYERS), or a regular expression for the names of linear layers.
    image_share: share of micro-batches, 0 to 1, that are single frames, where the parts that see time are passed by.
    min_snr: weighs the loss by min(SNR, min_snr), see diffusion.loss_weight; 5 is usual. None is the plain loss.
    drop: share of captions that are left empty, for guidance. autocast: torch.bfloat16 for mixed precision.
    checkpointing: less memory, a third more time. judge: prompts to compare before and after; 0 for none.
    shard: each of several processes holds a piece of every weight (sharding.py); all that learns learns by AdamW.

    With LoRA the adapters stay beside the weights of `pipe.unet`: lora.merge makes it as fast as before, and
    lora.remove takes them away. Where several processes run (distributed.py), all call this alike.

    The report: {"loss": [first, last], "moved", "changed", "before", "after", "data": figures of beforeafter.look,
    "warnings": what went wrong and what to try, ...}.
    Raises ValueError for what does not fit, before anything is written.
    """
    folder = Path(folder)
    check(pipe, plan, folder, learns, rank, layers, image_share, min_snr, drop, shard)
    examples = clips if isinstance(clips, Examples) else of_clips(pipe, clips, captions or [], progress=progress)
    unet, device, mine = pipe.unet, pipe.device, LEARNS[learns]
    unet._check(torch.empty(1, *examples.shape, device="meta"), torch.zeros(1))
    if learns == "lora":
        lora.add(unet, rank, alpha, LAYERS.get(layers, layers), torch.Generator().manual_seed(seed))
    for name, p in unet.named_parameters():
        if mine(name):
            p.data = p.data.clone()                      # weights are mapped from their file; that stays as it is
    latents = {str(i): clip for i, clip in enumerate(examples.latents)}
    settings = {"learns": learns, "seed": seed,
                "model": fingerprint(_sample(unet, lambda name: not is_adapter(name)))[:16],
                "data": fingerprint(latents, examples.captions)[:16], "clip": list(examples.shape)}
    if learns == "lora":
        settings |= {"rank": rank, "alpha": rank if alpha is None else alpha, "layers": LAYERS.get(layers, layers)}
    with distributed.first_ahead():
        _same_run(folder, settings)

    def objective(unet, generator, rng):
        still = rng.random() < image_share
        size, frames = (STILLS * plan.batch, 1) if still else (plan.batch, None)
        latents, context = examples.batch(rng, size, frames, drop)                    # (B, 4, F, h, w), (B, L, D)
        network = partial(unet, temporal=False) if still else unet
        return denoising_loss(network, pipe.process, latents.to(device), context.to(device), generator,
                              min_snr=min_snr)[0], {}

    prompts = beforeafter.prompts_of(examples, judge)
    talks = distributed.first() and bool(prompts)
    before = _before(folder, pipe, examples, prompts, progress) if talks else None
    distributed.wait_for_first()
    start = _sample(unet, mine)
    waiting = [pipe.autoencoder, pipe.text_encoder]      # all that they say is known already
    for network in waiting:
        network.to("cpu")
    unet.gradient_checkpointing = checkpointing
    average = fit(unet, objective, plan, folder / "run", seed, mine, autocast, progress=progress, shard=shard)
    unet.load_state_dict(average, strict=False)
    unet.eval().gradient_checkpointing = False
    for network in waiting:
        network.to(device)

    losses = [line["loss"] for line in read_log(folder / "run") if "loss" in line] if distributed.first() else []
    report = {**settings, "steps": plan.steps, "clips": len(examples), "loss": [*losses[:1], *losses[-1:]],
              "moved": _moved(unet, start), "warnings": []}
    if talks:
        clips, figures = beforeafter.look(pipe, examples, prompts, progress)
        data, own = beforeafter.real(pipe, examples, prompts)
        changed = beforeafter.difference(before[0], clips)
        report |= {"prompts": prompts, "before": before[1], "after": figures, "data": own, "changed": changed,
                   "warnings": beforeafter.verdict(before[1], figures, own, changed, report["moved"])}
        beforeafter.picture(folder / "before_after.png", prompts, before[0], clips, data)
    if distributed.first():
        _write(folder, pipe, examples, learns, report)
    return report


def check(pipe: TextToVideo, plan: Plan, folder: Path, learns: str = "lora", rank: int = 4, layers: str = "all",
          image_share: float = 0.0, min_snr: float | None = None, drop: float = 0.1, shard: bool = False) -> None:
    """Raises ValueError for settings that do not fit the model, one another, the processes or the folder's run.

    The arguments are those of `finetune`. No clips are needed, so a command can ask before it encodes any.
    """
    if learns not in LEARNS:
        raise ValueError(f"learns is {learns!r}; choose one of {', '.join(LEARNS)}")
    for name, value in (("image_share", image_share), ("drop", drop)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a share, from 0 to 1")
    if min_snr is not None and not min_snr > 0:
        raise ValueError(f"min_snr is {min_snr}; it must be above 0 (5 is usual), or None")
    if pipe.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the weights are {pipe.dtype}, too coarse for small steps; load the model in float32, and "
                         "pass autocast=torch.bfloat16 to compute in half precision")
    if pipe.offloaded:
        raise ValueError("this model is offloaded; call pipe.to(device) before it learns")
    if lora.adapters(pipe.unet):
        raise ValueError("this model has LoRA adapters already; lora.merge and lora.remove make them part of it")
    names = [name for name, _ in pipe.unet.named_parameters() if LEARNS[learns](name)]
    if learns == "lora":
        try:
            names, found = zip(*lora.chosen(pipe.unet, LAYERS.get(layers, layers)).items())
        except ValueError as error:
            raise ValueError(f"layers is {layers!r}, which is neither one of {', '.join(LAYERS)} nor fits the names of "
                             f"layers: {error}") from error
        for linear in found:                             # does the rank fit? tried on a layer without numbers
            lora.LoRA(nn.Linear(linear.in_features, linear.out_features, device="meta"), rank, rank)
    if image_share and all(map(is_temporal, names)):
        raise ValueError(f"image_share is {image_share}, but nothing that learns here sees single frames; make it 0")
    distributed.share_out(plan.accumulate)
    if shard:
        sharding.check_started()
    check_way(folder / "run", shard)


def _same_run(folder: Path, settings: dict) -> None:
    """Notes in `folder` what runs there. Raises ValueError if that was another model, other data or other settings."""
    path = folder / "run.json"
    if path.exists():
        noted = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in {**noted, **settings} if noted.get(name) != settings.get(name)]
        if differing:
            raise ValueError(f"{str(folder)!r} holds another run: there {_list(noted, differing)}, here "
                             f"{_list(settings, differing)}. Choose another folder, or remove that one")
    elif distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part:
            part.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _list(settings: dict, names: list[str]) -> str:
    return ", ".join(f"{name} is {settings.get(name)!r}" for name in names)


def _before(folder: Path, pipe: TextToVideo, examples: Examples, prompts: list[str],
            progress: bool) -> tuple[Tensor, dict]:
    """Clips and figures before the first step; kept in the folder, so that a resumed run need not make them again."""
    kept, figures = folder / "before.safetensors", folder / "before.json"
    if kept.exists() and figures.exists():
        noted = json.loads(figures.read_text(encoding="utf-8"))
        if noted["prompts"] == prompts:
            return load_file(kept)["clips"], noted["figures"]
    clips, found = beforeafter.look(pipe, examples, prompts, progress)
    with write_whole(kept) as part:
        save_file({"clips": clips.contiguous()}, part)
    with write_whole(figures) as part:
        part.write_text(json.dumps({"prompts": prompts, "figures": found}), encoding="utf-8")
    return clips, found


def _write(folder: Path, pipe: TextToVideo, examples: Examples, learns: str, report: dict) -> None:
    _, frames, height, width = examples.shape
    down = pipe.config.autoencoder.downscale
    pipe.config = replace(pipe.config, num_frames=frames, height=height * down, width=width * down, fps=examples.fps)
    if learns == "lora":
        lora.save(pipe.unet, folder / "lora.safetensors")
    else:
        pipe.save(folder)
    with write_whole(folder / "report.json") as part:
        part.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")


def _sample(unet: nn.Module, mine: Callable[[str], bool]) -> dict[str, Tensor]:
    """The first numbers of each tensor: enough to tell a model from another, and how far it moved."""
    return {name.replace(".linear.", "."): p.detach().flatten()[:SAMPLE].cpu().clone()
            for name, p in unet.named_parameters() if mine(name)}


def _moved(unet: nn.Module, start: dict[str, Tensor]) -> float:
    """How far the weights went, as a share of their size. Of adapters: what they add to the weights beside them.

    On the processor, for a Mac's card has no float64.
    """
    adapters = lora.adapters(unet).values()
    if adapters:
        added = sum((a.scale * a.up @ a.down).detach().cpu().double().square().sum() for a in adapters)
        size = sum(a.linear.weight.detach().cpu().double().square().sum() for a in adapters)
    else:
        now = _sample(unet, start.__contains__)
        added = sum((now[name] - p).double().square().sum() for name, p in start.items())
        size = sum(p.double().square().sum() for p in start.values())
    return (added / size.clamp(min=1e-30)).sqrt().item()
