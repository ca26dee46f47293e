"""The verb `minit2v finetune`: a folder of films becomes what a model has learnt.

Part of cli.py, where the rules of the command line stand.
"""

import json
from pathlib import Path

RATES = {"all": 1e-4, "temporal": 2e-4, "spatial": 1e-4, "lora": 1e-3}       # of finetune.LEARNS, if --lr is not given
LAYERS = ("all", "spatial", "cross", "temporal")                             # finetune.LAYERS


def finetune(args) -> int:
    """Teaches a model your own clips: films with captions in a folder; the same command goes on after a kill."""
    import torch

    from minit2v import distributed, examples, files, footage, pipeline, sharding
    from minit2v import finetune as practice
    from minit2v.training import Plan

    if args.weights and Path(args.weights).resolve() == args.out.resolve():
        raise ValueError(f"--out and --weights are both {str(args.out)!r}; the result needs a folder of its own")
    for folder in (args.out, args.cache):
        if folder is not None:
            files.check_folder(folder)
    plan = Plan(steps=args.steps, batch=args.batch, lr=args.lr or RATES[args.learns], accumulate=args.accumulate,
                warmup=min(100, max(1, args.steps // 10)), ema=args.ema, save_every=args.save_every)
    ways = {name: getattr(args, name) for name in ("learns", "rank", "layers", "image_share", "min_snr", "shard")}
    with distributed.processes(args.device or "cpu") as device:
        if args.shard:
            sharding.check_started()
        pipe = pipeline.load(args.weights, device=device)
        practice.check(pipe, plan, args.out, **ways)     # before any film is encoded
        size = {name: getattr(args, name) or getattr(pipe.config, name) for name in ("num_frames", "fps", "height",
                                                                                     "width")}
        size["fps"] = int(size["fps"]) if size["fps"] == int(size["fps"]) else size["fps"]
        pipe.check_size(size["height"], size["width"])
        shown = distributed.first()
        films, skipped = footage.scan(args.data, size["num_frames"], size["fps"], progress=shown)
        if args.dry_run:
            return _dry_run(args, pipe, films, skipped, size)
        with distributed.first_ahead():
            learnt, failed = examples.of_films(pipe, films, args.cache or args.out / "cache", **size, progress=shown)
        _tell(len(learnt), skipped + failed)
        report = practice.finetune(pipe, learnt, None, plan, args.out, alpha=args.alpha, judge=args.judge,
                                   autocast=torch.bfloat16 if args.dtype == "bfloat16" else None, seed=args.seed,
                                   checkpointing=args.checkpointing, **ways)
        if shown:
            _report(args, report)
    return 0


def _dry_run(args, pipe, films, skipped, size) -> int:
    import random

    from minit2v.footage import read_clip, sheet
    from minit2v.metrics import through_autoencoder

    rng, rows, failed = random.Random(args.seed), [], []
    for film in rng.sample(films, min(12, len(films))):
        try:
            clip = read_clip(film, **size, rng=rng)
            rows += [(film.caption, clip), ("  through the autoencoder", through_autoencoder(pipe, clip[None])[0])]
        except ValueError as error:
            failed.append((film.path.name, str(error)))
    _tell(len(films) - len(failed), skipped + failed)
    for i, ((caption, clip), (_, back)) in enumerate(zip(rows[::2], rows[1::2]), 1):
        noise = (clip.float() - back.float()).square().mean().clamp(min=1e-9) / 255 ** 2
        print(f"  {i}: {caption!r}; the autoencoder gives it back with {-10 * noise.log10():.1f} dB")
    if rows:
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"what the model will see: {sheet(rows, args.out / 'data.png')}. What the autoencoder cannot draw, "
              "the model cannot learn.")
    return 0 if rows else 1


def _tell(usable: int, skipped: list[tuple[str, str]]) -> None:
    print(f"{usable} films to learn from, {len(skipped)} left out")
    for name, reason in skipped:
        print(f"  left out: {name}: {reason}")


def _report(args, report: dict) -> None:
    from minit2v import beforeafter

    losses = " to ".join(f"{loss:.4f}" for loss in report["loss"])
    print(f"{report['steps']} steps on {report['clips']} films: loss {losses}, weights moved by "
          f"{100 * report['moved']:.2f} %")
    if "before" in report:
        print(f"{len(report['prompts'])} captions, the same seeds before and after:")
        print(beforeafter.table(report["before"], report["after"], report["data"]))
        print(f"the clips differ from those before by {255 * report['changed']:.1f} of 255 steps of colour; see "
              f"{args.out / 'before_after.png'}")
    for warning in report["warnings"]:
        print(f"NOTE: {warning}")
    prompt = json.dumps((report.get("prompts") or ["..."])[0], ensure_ascii=False)
    weights = f" --weights {args.weights}" if args.weights else ""
    result = f"{weights} --lora {args.out / 'lora.safetensors'}" if args.learns == "lora" else f" --weights {args.out}"
    print(f"try it: minit2v generate {prompt}{result}")


def add(verb, positive, seed, number, share) -> None:
    """Adds the verb to the command line; `verb` is that of cli.build_parser, the others are its kinds of numbers."""
    one = verb(finetune)
    one.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="films (mp4, webm, gif, ..) with "
                     "captions: NAME.txt beside NAME.mp4, or one captions.csv or .jsonl with file and text")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result and the report")
    one.add_argument("--dry-run", action="store_true", help="only show what the model will see: DIR/data.png, and "
                     "which files are left out")
    one.add_argument("--weights", metavar="W", help="model to start from, a folder or owner/name on the Hub (default: "
                     "the mini model that comes along)")
    one.add_argument("--learns", choices=tuple(RATES), default="lora", help="which weights: all, those that see time, "
                     "those that see single frames, or small added matrices (default: lora)")
    one.add_argument("--rank", type=positive, default=4, metavar="R", help="of LoRA's matrices (default: 4)")
    one.add_argument("--alpha", type=number, metavar="A", help="LoRA counts alpha / rank times (default: the rank)")
    one.add_argument("--layers", default="all", metavar="L", help=f"where LoRA stands: {', '.join(LAYERS)}, or a "
                     "regular expression for names of linear layers (default: all attention)")
    one.add_argument("--steps", type=positive, default=300, metavar="N", help="(default: 300)")
    one.add_argument("--batch", type=positive, default=4, metavar="N", help="clips at a time (default: 4)")
    one.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches a step (default: 1); where "
                     "several processes run, they share them out")
    one.add_argument("--lr", type=number, help="learning rate (default: " + ", ".join(
                     f"{rate:g} for {name}" for name, rate in RATES.items()) + ")")
    one.add_argument("--image-share", type=share, default=0.0, metavar="S",
                     help="share of batches that are single frames, 0 to 1 (default: 0)")
    one.add_argument("--min-snr", type=number, metavar="GAMMA", help="weigh the loss by min(SNR, GAMMA); 5 is usual")
    one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                     help="bfloat16 for mixed precision (default: float32)")
    one.add_argument("--checkpointing", action="store_true", help="far less memory for a third more time")
    one.add_argument("--shard", action="store_true", help="for models too large for a card: each process that torchrun "
                     "started holds a piece of every weight, and AdamW alone learns")
    one.add_argument("--ema", type=share, default=0.99, metavar="D", help="share of the weights' moving average that "
                     "is kept at each step; 0 for none (default: 0.99)")
    one.add_argument("--num-frames", type=positive, metavar="N", help="of a clip (default: the model's)")
    one.add_argument("--fps", type=number, help="frames a second of a clip (default: the model's)")
    one.add_argument("--height", type=positive, metavar="H", help="in pixels (default: the model's)")
    one.add_argument("--width", type=positive, metavar="W", help="in pixels (default: the model's)")
    one.add_argument("--cache", type=Path, metavar="DIR", help="folder for encoded films (default: DIR/cache of --out)")
    one.add_argument("--judge", type=seed, default=8, metavar="N",
                     help="captions that are compared before and after; 0 for none (default: 8)")
    one.add_argument("--save-every", type=positive, default=100, metavar="N", help="steps between checkpoints "
                     "(default: 100)")
    one.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    one.add_argument("--device", metavar="D", help="where to compute (default: cpu)")
