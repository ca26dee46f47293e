"""Before and after: what fine-tuning did to a model, by figures that see the two usual failures.

Those who fine-tune such models write in about two disappointments: the clips hardly move any more, or nothing
happened at all. Neither shows in the loss. So the same prompts with the same seeds are made before and after, and
compared: how much moves (`metrics.motion_energy`), beside how much moves in the clips to learn from; how far the
clips are from those before; and, of the mini model, how much of what it is asked for the referee finds, in the
captions of the data, where they are about Moving Shapes, and in captions that it knew all along: what it forgot.
"""

import random
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import footage, metrics
from .captions import CHINESE, CHINESE_COLOURS, ENGLISH, caption, join
from .examples import Examples
from .pipeline import TextToVideo
from .referee import read
from .video import to_uint8
from .world import COLOURS

KNOWN = 16                                               # clips by which is judged what the mini model still knows
SAMPLING = {"num_inference_steps": 15, "sampler": "dpm++"}
HARDLY = 1 / 255                                         # a mean difference that nobody sees: one step of colour
FROZEN = 1 / 3                                           # of the motion in the data; who moves less is a frozen picture
ATTRIBUTES = ("colour", "shape", "motion")


def prompts_of(examples: Examples, count: int, seed: int = 0) -> list[str]:
    """Up to `count` different captions of the examples, by chance; always the same ones for a seed."""
    captions = sorted(set(examples.captions) - {""})
    return random.Random(f"prompts {seed}").sample(captions, min(count, len(captions)))


def look(pipe: TextToVideo, examples: Examples, prompts: list[str], progress: bool = True) -> tuple[Tensor, dict]:
    """Makes a clip of each prompt, prompt i with the seed i: (N, F, H, W, 3) uint8, and its figures, {name: number}.

    "motion energy"; and of the mini model the share of the referee's readings that are right, 0 to 1: "known: colour"
    and so on, and "asked: colour" and so on of those prompts that are about Moving Shapes, "asked: captions" of them.
    """
    _, frames, height, width = examples.shape
    down = pipe.config.autoencoder.downscale
    clips = _make(pipe, prompts, progress, num_frames=frames, height=height * down, width=width * down)
    found = {"motion energy": metrics.motion_energy(clips).mean().item() if frames > 1 else 0.0}
    if pipe.config.name == "mini":
        found |= _asked(clips, prompts, examples.fps)
        scenes = metrics.judging_scenes(1, "train", KNOWN)
        rng = random.Random("known")
        known = _make(pipe, [caption(scene, rng, "en") for scene in scenes], progress)
        asked = [{a: getattr(scene.things[0], a) for a in ATTRIBUTES} for scene in scenes]
        found |= {f"known: {a}": share for a, share in _share(known, asked, pipe.config.fps).items()}
    return clips, found


@torch.inference_mode()
def real(pipe: TextToVideo, examples: Examples, prompts: list[str]) -> tuple[Tensor, dict]:
    """For each prompt a clip of the data that has it as caption, through the autoencoder, and the same figures."""
    clips = []
    for prompt in prompts:
        latents = examples.middle(examples.captions.index(prompt))                                # (1, 4, F, h, w)
        weight = next(pipe.autoencoder.parameters())
        clips.append(to_uint8(pipe.autoencoder.decode(latents.to(weight)).float())[0].cpu())      # (F, H, W, 3)
    clips = torch.stack(clips)
    found = {"motion energy": metrics.motion_energy(clips).mean().item() if clips.shape[1] > 1 else 0.0}
    if pipe.config.name == "mini":
        found |= _asked(clips, prompts, examples.fps)
    return clips, found


def difference(clips: Tensor, others: Tensor) -> float:
    """Mean |difference| of two sets of clips (N, F, H, W, 3) uint8, as a share of full scale."""
    return (clips.float() - others.float()).abs().mean().item() / 255


def verdict(before: dict, after: dict, data: dict, changed: float, moved: float) -> list[str]:
    """What went wrong, if the figures show it, and what to try: sentences, none if all is well.

    The picture is frozen if clips move less than a third (FROZEN) as much as the data, before the run or after it.
    changed: `difference` of the clips. moved: how far the weights went, as a share of their size.
    """
    told = []
    was, now, own = (figures["motion energy"] for figures in (before, after, data))
    if was < own * FROZEN and now < own * FROZEN:
        told.append(f"The picture was frozen before and still is: motion energy is {now:.4f}, was {was:.4f}, and in "
                    f"your clips it is {own:.4f}. The model has not learnt to move: try more --steps, a larger --lr, "
                    "--learns temporal or all, a smaller --image-share, or a model that moves to start from.")
    elif now < own * FROZEN or now < min(was, own) / 2:
        told.append(f"The picture is freezing: motion energy fell to {now:.4f} from {was:.4f}, and in your clips it is "
                    f"{own:.4f}. Usually the run was too long or too fast for so few clips: try fewer --steps, a "
                    "smaller --lr, --learns temporal or lora, a smaller --image-share, or more clips.")
    elif now < was / 2:
        told.append(f"The clips move less than half as much as before ({now:.4f}, was {was:.4f}). So do yours "
                    f"({own:.4f}): that is what they taught. For more motion choose livelier clips, or a lower --fps.")
    if moved == 0:
        told.append("No weight moved. Try a larger --lr.")
    elif changed < HARDLY:
        told.append(f"Nothing to be seen happened: the weights moved by {100 * moved:.3f} %, but the clips differ from "
                    f"those before by {255 * changed:.2f} of 255 steps of colour. Try more --steps, a larger --lr, and "
                    "with --learns lora a larger --rank or --alpha.")
    fell = [name for name in before if name.startswith("known") and after[name] < before[name] - 0.25]
    if fell:
        told.append(f"It forgets what it knew ({', '.join(f'{n} {before[n]:.0%} to {after[n]:.0%}' for n in fell)}). "
                    "Try fewer --steps or a smaller --lr, or --learns lora, or mix other clips in.")
    return told


def table(before: dict, after: dict, data: dict) -> str:
    """The figures side by side, as a Markdown table."""
    def cell(figures, name):
        value = figures.get(name)
        if value is None or isinstance(value, int):
            return str(value or "")
        return f"{value:.4f}" if name == "motion energy" else f"{100 * value:.0f} %"

    lines = ["| | before | after | your clips |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {cell(before, name)} | {cell(after, name)} | {cell(data, name)} |"
                              for name in before])


def picture(path: Path, prompts: list[str], before: Tensor, after: Tensor, data: Tensor, most: int = 6) -> None:
    """Film strips of the first prompts, three below one another: before, after, and the clip to learn from."""
    rows = []
    for prompt, *clips in list(zip(prompts, before, after, data))[:most]:
        rows += [(f"{name}: {prompt}", clip) for name, clip in zip(("before", "after", "yours"), clips)]
    footage.sheet(rows, path)


def meant(text: str) -> dict[str, str] | None:
    """Colour, shape and motion that a caption of Moving Shapes asks for; None for any other sentence, or two things."""
    chinese = re.search("[\u4e00-\u9fff]", text) is not None
    language, tables = ("zh", CHINESE) if chinese else ("en", ENGLISH)
    colours = {name: [[word]] for name, word in CHINESE_COLOURS.items()} if chinese else {c: [[c]] for c in COLOURS}
    text = f" {text.lower()} "
    for kind in ("speed", "ground", "texture", "camera"):            # they stand between and beside what is sought
        for wording in sorted((join(w, language) for ws in tables[kind].values() for w in ws), key=len, reverse=True):
            text = text.replace(wording, "") if chinese else re.sub(rf"\b{wording}\b ?", "", text)
    found = {}
    for kind, names in (("motion", tables["motion"]), ("colour", colours), ("shape", tables["shape"])):
        wordings = {join(wording, language): name for name, some in names.items() for wording in some}
        ends = "" if chinese else r"\b"
        hits = re.findall(ends + "(" + "|".join(sorted(wordings, key=len, reverse=True)) + ")" + ends, text)
        if len(hits) != 1:
            return None
        found[kind] = wordings[hits[0]]
        text = text.replace(hits[0], "")                                 # "moves in a circle" names no shape
    return {attribute: found[attribute] for attribute in ATTRIBUTES}


def _make(pipe: TextToVideo, prompts: list[str], progress: bool, **sizes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # new words are what it is to learn
        return metrics.generate(pipe, prompts, batch=4, progress=progress, **SAMPLING, **sizes)


def _asked(clips: Tensor, prompts: list[str], fps: float) -> dict[str, float]:
    """How many prompts are about Moving Shapes, and how much of what they ask for is seen; {} if none can be judged."""
    asked = {i: wanted for i, wanted in enumerate(map(meant, prompts)) if wanted}
    if not asked or clips.shape[1] < 4:
        return {}
    found = _share(clips[list(asked)], list(asked.values()), fps)
    return {"asked: captions": len(asked), **{f"asked: {name}": share for name, share in found.items()}}


def _share(clips: Tensor, asked: list[dict], fps: float) -> dict[str, float]:
    """The share of clips in which the referee sees one thing, and it has the colour, the shape, the motion, or all."""
    right = []
    for clip, wanted in zip(clips, asked, strict=True):
        seen = read(clip, fps)
        hits = {a: len(seen) == 1 and getattr(seen[0], a) == wanted[a] for a in ATTRIBUTES}
        right.append({**hits, "all": all(hits.values())})
    return {name: sum(one[name] for one in right) / len(right) for name in right[0]}
