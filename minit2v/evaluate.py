"""`minit2v evaluate`: clips are made once, and every measure looks at the same ones.

No figure stands alone. Beside it are real clips of the same scenes, those clips after a passage through the
autoencoder (no latent model can do better), what chance gives, and the model's own clips with their frames shuffled:
the same pictures, no motion. Each has a 95 % interval: Wilson's for a share, by bootstrap for all others. And each
measure is put to the test itself: one that does not call real clips worse with their frames shuffled is flagged.
"""

import json
import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import frechet, fvd, judge, metrics, published
from .captions import caption
from .files import check_file, write_whole
from .metrics import ATTRIBUTES, SETS
from .pipeline import TextToVideo, load
from .referee import agrees, read
from .world import Scene

SHARE = "caption accuracy"               # the one measure that is a share
ENOUGH = 512                             # clips; below, a course Frechet distance says more of their number
DRAWS = 1000                             # of the bootstrap; a fifth of it for Frechet distances
GROUPS = {  # of two sets each
    "one object, English": ("seen, English", "unseen, English"),
    "one object, Chinese": ("seen, Chinese", "unseen, Chinese"),
    "two objects": ("two objects, English", "two objects, Chinese")}
KINDS = {"model": "the model", "shuffled": "its frames shuffled", "vae": "real, through the VAE", "real": "real clips",
         "chance": "chance"}
MEASURES = {  # name: (what is better, digits)
    SHARE: (1, 3), "text-video similarity": (1, 3), "course Frechet distance": (-1, 2),
    "flicker score": (1, 4), "smoothness": (1, 4), "motion energy": (0, 4),           # 0: as real clips have it
    "FVD": (-1, 1), "CLIPSIM": (1, 4)}


def scenes_of_set(name: str, count: int, seed: int = 0) -> list[Scene]:
    """The scenes of a set. Of one object, both languages are asked for the same ones. Of two, each for its own: they
    are a single group, and a Frechet distance of scenes that come twice would be one of half as many clips.
    """
    level, split, language = SETS[name]
    first = count if level == 2 and language == "zh" else 0
    return metrics.judging_scenes(level, split, first + count, seed)[first:]


def look(clips: Tensor, scenes: list[Scene], texts: Tensor, fps: float = 8.0) -> dict[str, Tensor]:
    """All that is measured of single clips (N, F, H, W, 3): one row a clip. `texts` (N, 64) are their captions'."""
    found = [agrees(read(clip, fps), scene) for clip, scene in zip(clips, scenes, strict=True)]
    vectors = judge.embed(clips)                                                              # (N, 64)
    return {**{name: torch.tensor([float(f[name]) for f in found]) for name in ATTRIBUTES},
            "features": judge.features(clips), "vectors": vectors,
            "text-video similarity": (vectors * texts).sum(1), "flicker score": metrics.flicker(clips),
            "smoothness": metrics.smoothness(clips), "motion energy": metrics.motion_energy(clips)}


def collect(pipe: TextToVideo, count: int, seed: int = 0, progress: bool = True,
            **settings) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Makes the clips of every set and looks at them: {set: {kind: what `look` says}}.

    Kinds: "model", "shuffled", "vae", "real", "real shuffled", and "other": real clips of other scenes. All have the
    model's own number of frames, rate and size.
    """
    sets, rebuilt = {}, {}                                   # both languages share their real clips of one object
    size = metrics.size_of(pipe.config)
    bar = tqdm(total=len(SETS), desc="sets", disable=not progress)
    for name, (_, _, language) in SETS.items():
        scenes = scenes_of_set(name, count, seed)
        rng = random.Random(f"captions {name} {seed}")
        captions = [caption(scene, rng, language) for scene in scenes]
        clips = metrics.generate(pipe, captions, seed=seed, progress=progress, **settings)
        real, texts = metrics.draw(scenes, **size), judge.embed_text(captions)
        if tuple(scenes) not in rebuilt:
            rebuilt[tuple(scenes)] = metrics.through_autoencoder(pipe, real)
        others = scenes_of_set(name, count, seed + 1_000_003)
        kinds = {"model": clips, "shuffled": metrics.shuffled(clips, seed), "real": real,
                 "vae": rebuilt[tuple(scenes)], "real shuffled": metrics.shuffled(real, seed)}
        sets[name] = {kind: look(shown, scenes, texts, size["fps"]) for kind, shown in kinds.items()}
        sets[name]["other"] = {"features": judge.features(metrics.draw(others, **size))}
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        wrong = torch.empty_like(texts)
        wrong[order] = texts[order.roll(1)]                                 # each clip gets another one's caption
        sets[name]["chance"] = {"text-video similarity": (sets[name]["model"]["vectors"] * wrong).sum(1)}
        bar.update()
    bar.close()
    return sets


def accuracy_rows(sets: dict) -> list[dict]:
    """Caption accuracy of every set, as `metrics.table` prints it; "intervals" are Wilson's."""
    rows = []
    for name, kinds in sets.items():
        for kind, title in (("model", name), ("shuffled", "  its frames shuffled"), ("vae", "  real, through the VAE")):
            shares, count = {a: float(kinds[kind][a].mean()) for a in ATTRIBUTES}, len(kinds[kind]["all"])
            rows.append({"clips": title, **shares,
                         "intervals": {a: metrics.wilson(share, count) for a, share in shares.items()}})
        rows.append({"clips": "  chance", **metrics.chance(SETS[name][0])})
    return rows


def estimate(values: Tensor, distance: Callable | None = None, reference: Tensor | None = None,
             share: bool = False) -> dict[str, float]:
    """A figure with its 95 % interval: {"value", "low", "high"}.

    values: one row a clip, whose mean is the figure; or its `distance(values, reference)`. share: each row is 0 or 1.
    """
    if distance is not None:                                                # never below 0; see metrics.bootstrap
        low, high = metrics.bootstrap(values, distance, DRAWS // 5, centred=True, reference=reference)
        return {"value": float(distance(values, reference)), "low": max(low, 0.0), "high": high}
    value = float(values.mean())
    low, high = metrics.wilson(value, len(values)) if share else metrics.bootstrap(values, draws=DRAWS)
    return {"value": value, "low": low, "high": high}


def figures(sets: dict) -> list[dict]:
    """Every measure but the accuracies of single attributes, of every set or group of sets, with all that stands
    beside it: {"measure", "clips", "count", "model", "shuffled", "vae", "real", "chance", "real shuffled", ...}.
    """
    rows = []
    for name, kinds in sets.items():
        rows.append(compare(SHARE, name, {k: v["all"] for k, v in kinds.items() if "all" in v}))
        rows[-1]["chance"] = {"value": metrics.chance(SETS[name][0])["all"]}
    for name, kinds in sets.items():
        key = "text-video similarity"
        rows.append(compare(key, name, {k: v[key] for k, v in kinds.items() if key in v}))
    groups = {name: {kind: {key: torch.cat([sets[member][kind][key] for member in members])
                            for key in sets[members[0]][kind]} for kind in sets[members[0]]}
              for name, members in GROUPS.items()}
    for name, kinds in groups.items():
        reference = kinds["other"]["features"]
        if len(reference) < 2:
            continue                                                        # one clip has no covariance
        samples = {k: v["features"] for k, v in kinds.items() if k != "other" and "features" in v}
        row = compare("course Frechet distance", name, samples, frechet.distance, reference)
        rows.append({**row, "biased": row["count"] < ENOUGH})
    for key in ("flicker score", "smoothness", "motion energy"):
        for name, kinds in groups.items():
            rows.append(compare(key, name, {k: v[key] for k, v in kinds.items() if key in v}))
    return rows


def compare(measure: str, clips: str, samples: dict[str, Tensor], distance: Callable | None = None,
            reference: Tensor | None = None) -> dict:
    """One row: a figure for each kind of clips in `samples`, and whether shuffling frames surely makes it worse.

    samples: one row a clip. distance: of all rows from `reference`, such as Frechet's; None: the mean of the rows.
    """
    row = {"measure": measure, "clips": clips, "count": len(samples["model"]),
           **{kind: estimate(values, distance, reference, measure == SHARE) for kind, values in samples.items()}}
    better = MEASURES[measure][0]
    for kind, mixed in (("real", "real shuffled"), ("model", "shuffled")):
        if distance is not None:
            worse = row[kind]["high"] < row[mixed]["low"]
        else:                                                                                  # clip by clip
            rise = samples[mixed] - samples[kind]
            both = [rise] if better else [rise, samples[mixed] + samples[kind] - 2 * samples["real"]]
            ends = torch.tensor([metrics.bootstrap(values, draws=DRAWS) for values in both])   # (1 or 2, 2)
            worse = bool(better >= 0 and (ends < 0).all() or better <= 0 and (ends > 0).all())
        row[f"{kind} gets worse when shuffled"] = worse
    return row


def flags(rows: list[dict]) -> list[str]:
    """What the test with shuffled frames found: a sentence for each measure, or model, that is not surely worse."""
    found = []
    for row in rows:
        if not row["real gets worse when shuffled"]:
            found.append(f"{row['measure']} ({row['clips']}): real clips are not surely worse with their frames "
                         "shuffled; it does not see motion, or there are too few clips to tell")
        elif not row["model gets worse when shuffled"]:
            found.append(f"{row['measure']} ({row['clips']}): the model's clips are not surely worse with their frames "
                         "shuffled; there is no motion in them that it could see, or too few clips to tell")
    return found


def table(rows: list[dict]) -> str:
    """Figures as a Markdown table: shares with the ends of their intervals, all others with half of the width."""
    kinds = [kind for kind in KINDS if any(kind in row for row in rows)]
    lines = [f"| measure | clips | {' | '.join(KINDS[kind] for kind in kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for row in rows:
        better, digits = MEASURES[row["measure"]]
        cells = []
        for kind in kinds:
            one = row.get(kind)
            spread = "" if not one or "low" not in one else (
                f" ({one['low']:.{digits}f}-{one['high']:.{digits}f})" if row["measure"] == SHARE else
                f" ± {(one['high'] - one['low']) / 2:.{digits}f}")
            cells.append(f"{one['value']:.{digits}f}{spread}" if one else "")
        name = row["measure"] + {1: " ↑", -1: " ↓", 0: ""}[better] + (" (biased)" if row.get("biased") else "")
        lines.append(f"| {name} | {row['clips']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def notes(rows: list[dict]) -> list[str]:
    """What has to be known to read the table."""
    found = ["↑: more is better, ↓: less is better; motion energy should be that of real clips. ±: half of the 95 % "
             "interval, by bootstrap over clips, and of a distance over those it compares with, too. In brackets: the "
             "95 % interval of a share (Wilson's)."]
    if any(row["measure"] == "course Frechet distance" for row in rows):
        found.append("Course Frechet distance: to real clips of other scenes, with 32 features of a network trained on "
                     "Moving Shapes. It is not FVD. Its floor is what as many real clips have.")
    few = [row for row in rows if row["measure"] == "course Frechet distance" and row["biased"]]
    if few:
        counts = ", ".join(f"{row['count']} of {row['clips']}" for row in few)
        found.append(f"(biased): of fewer than {ENOUGH} clips ({counts}); the floor is high, and rows of other sizes "
                     f"cannot be compared. Take --clips {ENOUGH // 2} or more: a distance is of two rows together.")
    if any(row["measure"] == "FVD" for row in rows):
        found.append(f"FVD is biased by the number of clips; papers take {fvd.CLIPS}. One half of the films lent the "
                     "captions; the model's clips, the shuffled ones and, under \"real clips\", those films themselves "
                     "are equally many, each against the other half. So the real clips' figure is the floor of the "
                     "model's. `minit2v evaluate --published`: why no two are alike.")
    return found + [f"! {flag}." for flag in flags(rows)]


# ---------------------------------------------------------------- real clips, from a folder

def against_footage(pipe: TextToVideo, folder: str | Path, count: int, i3d: str | Path | None, clip: str | Path | None,
                    i3d_sha256: str | None = None, clip_model: str = fvd.CLIP_NAME, device: str | None = None,
                    seed: int = 0, progress: bool = True, **settings) -> list[dict]:
    """FVD and CLIPSIM against the films of a folder: `count` clips at most, of their captions (see `fvd.collect`).

    i3d, clip: files of weights (see fvd.py); a measure without its file is left out. With I3D half of the films lend no
    caption, so that there is something to compare with. Raises ValueError without both files.
    """
    if i3d is None and clip is None:
        raise ValueError("clips of a folder are compared by I3D (--i3d FILE), or by CLIP (--clip FILE), or by both, "
                         "but neither file is given")
    device = device or "cpu"
    networks = {}
    if i3d is not None:
        detector = fvd.load_i3d(i3d, i3d_sha256, device)                                      # errors before the work
        networks["FVD"] = partial(fvd.i3d_features, detector, device=device, progress=False)
    if clip is not None:
        reader = fvd.Clip(clip, clip_model, device)
        networks["CLIPSIM"] = partial(reader.embed, progress=False)
    captions, kinds = fvd.collect(pipe, folder, count, networks, i3d is not None, seed, progress, **settings)
    rows, name, reference = [], f"{len(captions)} films", kinds.pop("other", {})
    if i3d is not None:
        row = compare("FVD", name, {kind: found["FVD"] for kind, found in kinds.items()}, fvd.fvd, reference["FVD"])
        rows.append({**row, "biased": row["count"] < fvd.CLIPS})
    if clip is not None:
        texts = reader.embed_text(captions)                                                   # (N, D)
        samples = {kind: (found["CLIPSIM"] * texts).sum(1) for kind, found in kinds.items()}
        others = [next((k % len(captions) for k in range(i + 1, i + len(captions))
                        if captions[k % len(captions)] != caption), None) for i, caption in enumerate(captions)]
        if None not in others:                                            # chance: never a clip's own caption
            samples["chance"] = (kinds["model"]["CLIPSIM"] * texts[others]).sum(1)
        rows.append(compare("CLIPSIM", name, samples))
    return rows


# ---------------------------------------------------------------- output

def picture(rows: list[dict], path: str | Path, title: str) -> None:
    """Draws the figures into a PNG: one panel a measure, one colour a kind of clips, whiskers for the intervals."""
    from matplotlib.figure import Figure

    colours = {"model": "#0072b2", "shuffled": "#d55e00", "vae": "#56b4e9", "real": "#009e73", "chance": "#999999"}
    names = list(dict.fromkeys(row["measure"] for row in rows))
    drawing = Figure(figsize=(10, 2.4 * ((len(names) + 1) // 2) + 0.6), layout="constrained")
    panels = drawing.subplots((len(names) + 1) // 2, 2 if len(names) > 1 else 1, squeeze=False).flat
    for panel, name in zip(panels, names):
        mine = [row for row in rows if row["measure"] == name]
        for k, kind in enumerate(KINDS):
            places = [(y + 0.15 * (k - 2), row[kind]) for y, row in enumerate(mine) if kind in row]
            for y, one in places:
                low, high = one.get("low", one["value"]), one.get("high", one["value"])
                panel.plot([low, high], [y, y], color=colours[kind], linewidth=2)
            panel.plot([one["value"] for _, one in places], [y for y, _ in places], "o", color=colours[kind],
                       markersize=4, label=KINDS[kind])
        if MEASURES[name][0] < 0:
            panel.set_xscale("log")
        panel.set_yticks(range(len(mine)), [row["clips"] for row in mine])
        panel.invert_yaxis()
        panel.set_title(name + {1: " (more is better)", -1: " (less is better)", 0: ""}[MEASURES[name][0]], fontsize=9)
        panel.tick_params(labelsize=8)
    for panel in list(panels):
        panel.set_axis_off()
    drawing.suptitle(title, fontsize=10)
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    with write_whole(Path(path)) as part:
        drawing.savefig(part, format="png", dpi=110)


def main_evaluate(args) -> int:
    """`minit2v evaluate`: measures a model, or with --referee the referee, prints tables, and writes files if asked."""
    if args.published and (args.json or args.picture):
        raise ValueError("--published only prints; leave out --json and --picture")
    if args.published:
        print(published.table())
        return 0
    if args.referee and args.picture:
        raise ValueError("the referee's table has no picture; leave out --picture")
    for path in (args.json, args.picture):                                    # before the work, not after it
        if path is not None:
            check_file(path)
    pipe = load(args.weights, dtype=args.dtype, device=args.device)
    scale = pipe.config.guidance_scale if args.guidance_scale is None else args.guidance_scale
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": scale, "sampler": args.sampler}
    found = {"clips": args.clips, "seed": args.seed, **settings, "model": pipe.config.name}
    how = f"{args.sampler}, {args.num_inference_steps} steps, guidance {scale:g}, seeds from {args.seed}"
    if args.referee:
        found["rows"] = metrics.referee_rows(pipe, args.clips, args.seed)
        said = [f"The referee on {args.clips} clips a row, per cent right", metrics.table(found["rows"], args.clips)]
    elif args.real is not None:
        found["figures"] = against_footage(pipe, args.real, args.clips, args.i3d, args.clip, args.i3d_sha256,
                                           args.clip_model, args.device, args.seed, **settings)
        said = [f"Against the films of {args.real}; {how}"]
    elif args.i3d is not None or args.clip is not None:
        raise ValueError("--i3d and --clip compare with real films; say in which folder they are: --real FOLDER")
    elif pipe.config.name != "mini":
        raise ValueError(f"without --real FOLDER a model is asked for Moving Shapes, which {pipe.config.name!r} does "
                         "not know; give a folder of films with captions, and --i3d FILE or --clip FILE")
    else:
        if 2 * args.clips < ENOUGH:
            warnings.warn(f"{args.clips} clips a row are too few for the course Frechet distance, which needs {ENOUGH} "
                          "of two rows together; it will be marked as biased", stacklevel=2)
        sets = collect(pipe, args.clips, args.seed, **settings)
        found["rows"], found["figures"] = accuracy_rows(sets), figures(sets)
        said = [f"{args.clips} clips a row, per cent right; {how}", metrics.table(found["rows"], args.clips)]
    if "figures" in found:
        found["flags"] = flags(found["figures"])
        said += ["", table(found["figures"]), "", *notes(found["figures"])]
    try:                                                                      # files first: a terminal may not know ↑
        if args.json:
            with write_whole(Path(args.json)) as part:
                part.write_text(json.dumps(found, indent=2, allow_nan=False), encoding="utf-8")
        if args.picture:
            picture(found["figures"], args.picture, f"{pipe.config.name}: {args.clips} clips a set; {how}")
    finally:
        print("\n".join(said))
    return 0
