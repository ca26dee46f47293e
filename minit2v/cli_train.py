"""The verbs `train` and `ablate` of the command line, whose rules stand in cli.py."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

STAGES = ("all", "autoencoder", "text", "image", "video")                        # "all", and recipe.STAGES
ABLATIONS = ("order", "layers", "mixing", "languages", "steps", "guidance")      # of ablation.py


def train(args) -> int:
    """Trains a model, stage by stage; the same command goes on where a killed one stopped."""
    from minit2v import distributed, files

    files.check_folder(args.out)
    with distributed.processes(args.device or "cpu") as device:
        return run_stages(args, device)


def run_stages(args, device="cpu") -> int:
    """Runs one stage or all four into a folder, each going on where it stopped."""
    import torch

    from minit2v import distributed, recipe, sharding
    from minit2v.config import ModelConfig, mini

    if args.threads:
        torch.set_num_threads(args.threads)
    out = Path(args.out)
    if args.shard:
        if args.stage not in ("all", *recipe.UNETS):
            raise ValueError(f"stage {args.stage!r} has no UNet, and only a UNet is cut into pieces: leave --shard out")
        sharding.check_started()
    if args.compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl")):
        raise FileNotFoundError("--compile needs a C++ compiler, and neither g++ nor clang++ nor cl is on the PATH. "
                                "Install one (on Debian: apt install g++), or leave --compile out")
    runs = {"autoencoder": recipe.train_autoencoder, "text": recipe.train_text, "image": recipe.train_image,
            "video": recipe.train_video}
    for stage in recipe.STAGES if args.stage == "all" else (args.stage,):
        saved = out / "config.json"
        config = ModelConfig.from_json(saved.read_text(encoding="utf-8")) if saved.exists() else mini()
        for part in recipe.NEEDS[stage]:
            if not (out / f"{part}.safetensors").exists():
                raise FileNotFoundError(f"{out / part}.safetensors is missing, and stage {stage!r} starts from it. "
                                        f"First: minit2v train --stage {recipe.MADE_BY[part]} --out {out}")
        plan = recipe.PLANS[stage] if args.steps is None else replace(recipe.PLANS[stage], steps=args.steps)
        check_order(out, stage, plan.steps)
        whole = stage == "text"                          # a batch of captions and clips that are each other's rivals
        batch = plan.batch if whole else max(1, plan.batch // args.accumulate)
        plan = replace(plan, accumulate=args.accumulate, batch=batch)
        options = {"device": device, "autocast": torch.bfloat16 if args.dtype == "bfloat16" else None}
        if stage in recipe.UNETS:
            options |= {"shard": args.shard, "compiled": args.compile}
        runs[stage](config, out, plan, **options)
        distributed.everyones(stage)                     # nobody reads what the first has not written yet
        print(f"{stage}: the weights are in {out}, the log and the checkpoint in {out / 'runs' / stage}")
    return 0


def check_order(out: Path, stage: str, steps: int) -> None:
    """Raises ValueError if a stage would go on although a later one has begun from what it made.

    It would write its own weights over the later one's, and that would go on from what is no longer there.
    """
    from minit2v import recipe, training

    later = [out / "runs" / name for name in recipe.STAGES[recipe.STAGES.index(stage) + 1:]]
    built = [path for path in ([out / "clips"] if stage == "autoencoder" else []) + later if path.exists()]
    log = out / "runs" / stage / "log.jsonl"
    done = max((line["step"] for line in training.read_log(log.parent)), default=0) if log.exists() else 0
    if built and done < steps:
        raise ValueError(f"stage {stage!r} would go on from step {done} to {steps}, but what it made is in use: "
                         f"{', '.join(map(str, built))} came after it. Take another --out; or remove these, and they "
                         "will be made anew")


def ablate(args) -> int:
    """Shows what a part is worth by leaving it out: in training at equal compute, or in sampling."""
    import torch

    from minit2v import ablation, files

    files.check_folder(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    found = ablation.results(args.out / ablation.RESULTS.name)
    name, make = ("training", _trained) if args.name in ablation.TRAINING else (args.name, _sampled)
    for row in make(args, list(found[name])):
        found[name].append(row)
        ablation.write(found, args.out)
    print(ablation.table(name, found))
    return 0


def _trained(args, rows: list[dict]) -> Iterator[dict]:
    """The rows of an ablation of training that are not among `rows` yet."""
    import torch

    from minit2v import ablation

    pipe, world = ablation.small(args.weights), None
    for arm in ablation.TRAINING[args.name]:
        if (arm, args.seed) in {(row["arm"], row["seed"]) for row in rows}:
            continue
        world = world or ablation.SmallWorld(pipe, ablation.TRAINING_CLIPS)
        cost, seconds = ablation.train(ablation.ARMS[arm], pipe, world, args.out, arm, args.seed,
                                       autocast=torch.bfloat16 if args.dtype == "bfloat16" else None)
        yield {"arm": arm, "seed": args.seed, "image_steps": cost.image_steps, "steps": cost.steps,
               "flops": round(cost.total), "seconds": round(seconds, 1), "clips": args.clips, "dtype": args.dtype,
               **{language: ablation.judge(pipe, args.clips, language) for language in ("en", "zh")}}


def _sampled(args, rows: list[dict]) -> Iterator[dict]:
    """The rows of an ablation of sampling that are not among `rows` yet; ValueError if those are of another UNet."""
    import hashlib

    from tqdm.auto import tqdm

    from minit2v import ablation, pipeline, text

    pipe = pipeline.load(args.weights, dtype=args.dtype)
    weights = hashlib.sha256((Path(args.weights or text.WEIGHTS) / "unet.safetensors").read_bytes()).hexdigest()
    if any(row["weights"] != weights for row in rows):
        raise ValueError(f"{args.out / ablation.RESULTS.name} has rows of another UNet than {weights[:12]}.., and a "
                         "table is of one model; choose another --out")
    for setting in tqdm(ablation.settings(args.name, pipe.config.guidance_scale), desc=args.name):
        if setting not in {(row["sampler"], row["steps"], row["guidance"]) for row in rows}:
            yield {**ablation.sample(pipe, *setting, args.clips, args.seed), "dtype": args.dtype, "weights": weights}


def add(verb, positive, seed) -> None:
    """Adds the verbs to the command line; `verb` is that of cli.build_parser, the others are its kinds of numbers."""
    one = verb(train)
    one.add_argument("--preset", choices=("mini",), default="mini", help="which configuration (default: mini)")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoints, log and model")
    one.add_argument("--stage", choices=STAGES, default="all", help="(default: all, one after the other)")
    one.add_argument("--steps", type=positive, metavar="N", help="training steps of a stage (default: the recipe's)")
    one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                     help="bfloat16 is faster where the processor knows it (default: float32)")
    one.add_argument("--device", metavar="D", help="where to compute (default: cpu)")
    one.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch's choice)")
    one.add_argument("--accumulate", type=positive, default=1, metavar="N", help="cut batches into N micro-batches, "
                     "which processes share out (default: 1); the text stage, where a batch compares its captions with "
                     "one another, takes N whole batches")
    one.add_argument("--shard", action="store_true", help="each process that torchrun started holds a piece of every "
                     "weight of the UNet, and AdamW alone learns")
    one.add_argument("--compile", action="store_true", help="let torch.compile make the UNet's steps faster; needs a "
                     "C++ compiler and some minutes to begin with")

    one = verb(ablate)
    one.add_argument("name", choices=ABLATIONS, metavar="NAME", help=f"what to compare: {', '.join(ABLATIONS)}")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for runs, table and figure; rows "
                     "that are in its table already are not made again")
    one.add_argument("--clips", type=positive, default=100, metavar="N", help="clips of each row (default: 100)")
    one.add_argument("--seed", type=seed, default=0, help="of training, or of the first clip (default: 0)")
    one.add_argument("--weights", metavar="W", help="folder of a model (default: the mini model that comes along)")
    one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                     help="bfloat16 is faster where the processor knows it (default: float32)")
    one.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch's choice)")
