"""The `minit2v` command: a verb, and what it needs to know.

Every verb has `--help`. The exit status is 0 if all went well, 1 if it failed and 2 if the command makes
no sense; an error is one message that says what to change, and a traceback only with `--debug`. Where a
program would read the answer, `--json` prints one JSON object on the standard output and nothing else.
Modules are imported by the verb that uses them, so that `--help` answers at once.
"""

import argparse
import json
import math
import sys
import time
import traceback
import warnings
from pathlib import Path

from minit2v import __version__, cli_course, cli_evaluate, cli_finetune, cli_train

SAMPLERS = ("ddim", "ddpm", "dpm++")
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("minit2v", "diffusers", "modelscope")
ENDINGS = (".mp4", ".gif", ".webp", ".png")
TOKENIZERS = ("open_clip", "hub")
OFFLOAD = ("parts", "blocks")                                             # offload.WAYS
TRANSLATOR = "Helsinki-NLP/opus-mt-zh-en"                                 # translate.MODEL
RELEASED = "ali-vilab/text-to-video-ms-1.7b"                              # on the Hub; hub.DEFAULT


def generate(args) -> int:
    """Makes a clip of a sentence and writes it."""
    from minit2v import lora, pipeline, video

    adapters = [lora.check_file(path) for path in args.lora or []]
    outputs = [video.check_path(path, args.fps) for path in args.output or [Path("clip.mp4")]]   # before the work
    given = args.prompt
    if args.translate:
        from minit2v import translate

        args.prompt, args.negative_prompt = translate.to_english([args.prompt, args.negative_prompt], args.translator)
    pipe = pipeline.load(args.weights, dtype=args.dtype, device=args.device, vae_dtype=args.vae_dtype,
                         tokenizer=args.tokenizer, offload=args.offload)
    for path in adapters:
        pipe.load_lora(path)
    fps = pipe.config.fps if args.fps is None else args.fps
    size = args.height or pipe.config.height, args.width or pipe.config.width
    pipe.check_size(*size)
    for path in outputs:
        video.check_path(path, fps, size)                                 # again, with what only the model knows
    if args.guidance_scale is None:
        args.guidance_scale = pipe.config.guidance_scale
    options = {name: getattr(args, name) for name in ("negative_prompt", "num_frames", "height", "width", "seed", "eta",
                                                      "num_inference_steps", "guidance_scale", "sampler", "spacing",
                                                      "rounding")}
    begin = time.perf_counter()
    clip = pipe(args.prompt, **options, decode_chunk=args.decode_chunk, progress=not args.json)
    seconds = time.perf_counter() - begin

    frames, height, width, _ = clip.shape
    settings = {"prompt": args.prompt, **options, "num_frames": frames, "height": height, "width": width,
                "dtype": args.dtype, "model": pipe.config.name, "minit2v": __version__}
    if adapters:
        settings["lora"] = [path.name for path in adapters]
    if args.prompt != given:
        settings["translated_from"] = given
    for path in outputs:
        video.save(clip, path, fps=fps, settings=settings)
    readings = read_objects(clip, fps) if pipe.config.name == "mini" and frames >= 4 else None
    if args.json:
        print(json.dumps({"files": [str(path.resolve()) for path in outputs], "seconds": round(seconds, 3),
                          "referee": readings, "settings": settings}))
        return 0
    if args.prompt != given:
        print(f"{given!r} in English:")
    print(f"{args.prompt!r}: {frames} frames of {height} x {width} pixels in {seconds:.1f} s")
    for path in outputs:
        print(f"  wrote {path.resolve()}")
    if readings is not None:
        objects = [f"{r['size']} {r['colour']} {r['shape']}, motion: {r['motion']}" for r in readings]
        print(f"  the referee reads: {'; '.join(objects) or 'nothing, the clip is unreadable'}")
    return 0


def read_objects(clip, fps: float) -> list[dict]:
    """What the referee of Moving Shapes sees in a clip: the attributes of each object."""
    from minit2v import referee

    return [vars(reading) for reading in referee.read(clip, fps)]


def download(args) -> int:
    """Brings a model from the Hugging Face Hub into the cache, checks every file and prints the folder."""
    from minit2v import hub

    if not args.list:
        folder = hub.fetch(args.hub_id, half=args.half, check=True)
        print(json.dumps({"hub_id": args.hub_id, "folder": str(folder)}) if args.json else folder)
        return 0
    listing = hub.survey(args.hub_id, half=args.half)
    missing = listing.missing()
    if args.json:
        files = [{**file._asdict(), "cached": file not in missing} for file in listing.files]
        print(json.dumps({"hub_id": args.hub_id, "folder": str(listing.folder), "files": files}))
        return 0
    for file in listing.files:
        print(f"{file.bytes / 1e6:10,.1f} MB  {' to fetch' if file in missing else 'is cached'}  {file.path}")
    print(f"{sum(file.bytes for file in missing) / 1e9:.2f} GB to fetch, licence: {listing.licence}")
    return 0


def inspect(args) -> int:
    """Says what is in a folder of weights, and whether it is the released model."""
    from minit2v import inventory, text

    found = inventory.examine(args.weights or text.WEIGHTS, hashed=args.hash)
    if args.memory:
        from minit2v import layouts, memory

        found["memory"] = memory.table(layouts.open_model(args.weights or text.WEIGHTS).config)
    if args.training:
        from minit2v import budget, layouts

        found["training"] = budget.plan(layouts.open_model(args.weights or text.WEIGHTS).config)
    print(json.dumps(found) if args.json else inventory.report(found))
    if args.memory and not args.json:
        print(memory.report(found["memory"]))
    if args.training and not args.json:
        print(budget.report(found["training"]))
    return 0 if found["whole"] else 1


def convert(args) -> int:
    """Writes a model in another layout, for programs that know that one."""
    import torch

    from minit2v import convert as practice

    folder = practice.convert(args.source, args.destination, args.to, args.dtype and getattr(torch, args.dtype))
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if args.json:
        print(json.dumps({"folder": str(folder.resolve()), "layout": args.to, "files": files}))
        return 0
    print(f"{folder.resolve()}: layout {args.to}")
    for name, size in sorted(files.items()):
        print(f"  {name}: {size:,} bytes")
    if args.to == "modelscope":
        print(f"  {practice.CUT_CLIP}")
    return 0


def doctor(args) -> int:
    """Checks that everything is here, and says how to mend what is not."""
    from minit2v import doctor as practice

    findings = practice.examine()
    healthy = all(finding.status != "bad" for finding in findings)
    if args.json:
        print(json.dumps({"healthy": healthy, "findings": [vars(finding) for finding in findings]}))
    else:
        print(practice.report(findings))
        print("all is well" if healthy else "something that is needed is missing")
    return 0 if healthy else 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, verb by verb."""
    parser = argparse.ArgumentParser(prog="minit2v", description="Text to video, small enough to understand.")
    parser.add_argument("--version", action="version", version=f"minit2v {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")

    def verb(run, **more):
        one = verbs.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, **more)
        one.set_defaults(run=run)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return one

    one = verb(generate)
    one.add_argument("prompt", help='what to show, in quotes: "a red circle moves right"; "" for anything')
    one.add_argument("-o", "--output", type=_output, action="append", metavar="FILE",
                     help="where to write: .mp4 .gif .webp or .png (film strip); may be given several times "
                          "(default: clip.mp4)")
    one.add_argument("--negative-prompt", default="", metavar="S", help="what not to show")
    one.add_argument("--seed", type=_seed, default=0, help="another number, another clip (default: 0)")
    one.add_argument("--num-inference-steps", "--steps", type=_positive, default=50, metavar="N",
                     help="times the network is asked (default: 50)")
    _add_sampling(one)
    one.add_argument("--eta", type=_share, default=0.0, help="randomness of ddim, 0 to 1 (default: 0)")
    one.add_argument("--spacing", choices=("modelscope", "leading", "linspace"), help="which times are visited "
                     "(default: the model's, or what the sampler is used to)")
    one.add_argument("--num-frames", type=_positive, metavar="N", help="(default: the model's)")
    one.add_argument("--height", type=_positive, metavar="H", help="in pixels (default: the model's)")
    one.add_argument("--width", type=_positive, metavar="W", help="in pixels (default: the model's)")
    one.add_argument("--fps", type=_number, help="frames a second in the file (default: the model's)")
    one.add_argument("--weights", metavar="W", help="folder of a model, or owner/name on the Hub (default: the mini "
                     "model that comes along)")
    one.add_argument("--lora", type=Path, action="append", metavar="FILE", help="add what was learnt by `minit2v "
                     "finetune --learns lora`, or LoRA of diffusers or peft; may be given several times")
    one.add_argument("--dtype", choices=DTYPES, default="float32", help="number type (default: float32)")
    one.add_argument("--vae-dtype", choices=DTYPES, help="of the autoencoder alone; float32 if float16 is too small "
                     "for it (default: as --dtype)")
    one.add_argument("--device", metavar="D", help="where to compute (default: cpu)")
    one.add_argument("--offload", choices=OFFLOAD, help="weights wait on the processor and come to a small device when "
                     "needed: network by network, or the UNet even block by block (default: all are on the device)")
    one.add_argument("--decode-chunk", type=_positive, metavar="N",
                     help="frames decoded at a time; fewer take less memory (default: 4)")
    one.add_argument("--translate", action="store_true", help="put a Chinese prompt into English first, for weights "
                     'that read English only; needs pip install -e ".[translate]"')
    one.add_argument("--translator", default=TRANSLATOR, metavar="W",
                     help=f"Marian model for --translate, folder or owner/name (default: {TRANSLATOR})")
    one.add_argument("--tokenizer", choices=TOKENIZERS, default="open_clip",
                     help="hub: as transformers reads the files on the Hub (default: open_clip, the original's)")
    one.add_argument("--rounding", choices=("round", "truncate"), default="round",
                     help="to whole colours; the original truncates (default: round)")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")

    cli_evaluate.add(verb, _positive, _seed, _add_sampling)
    cli_train.add(verb, _positive, _seed)

    one = verb(download)
    one.add_argument("hub_id", nargs="?", default=RELEASED, metavar="HUB_ID",
                     help=f"owner/name on the Hub (default: {RELEASED})")
    one.add_argument("--half", action="store_true", help="half-precision weights, if there are any: half the size")
    one.add_argument("--list", action="store_true", help="only show which files that takes")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")

    one = verb(inspect)
    one.add_argument("weights", nargs="?", type=Path, metavar="W",
                     help="folder of a model (default: the mini model that comes along)")
    one.add_argument("--hash", action="store_true", help="compare the SHA-256 of large files, too")
    one.add_argument("--memory", action="store_true", help="compute what a clip takes, and which cards have it")
    one.add_argument("--training", action="store_true", help="compute what training takes of 8 cards, whole or sharded")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")

    one = verb(convert)
    one.add_argument("source", type=Path, metavar="SRC", help="folder of a model, in any layout")
    one.add_argument("destination", type=Path, metavar="DST", help="folder to make")
    one.add_argument("--to", choices=LAYOUTS, required=True, help="the layout to write")
    one.add_argument("--dtype", choices=DTYPES, help="number type to write (default: as it is)")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")

    one = verb(doctor)
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    cli_finetune.add(verb, _positive, _seed, _number, _share)
    cli_course.add(verb)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` is the command line without the program's name."""
    if hasattr(sys.stdout, "reconfigure"):                                # a pipe of Windows may not know Chinese or ↑
        sys.stdout.reconfigure(errors="backslashreplace")                 # as the standard error does by itself
    args = build_parser().parse_args(argv)                                # ends with status 2 on bad usage
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return args.run(args)
        except KeyboardInterrupt:
            print("minit2v: stopped", file=sys.stderr)
        except Exception as error:
            if args.debug:
                traceback.print_exc()
            elif isinstance(error, (ValueError, OSError)):                # these messages are written to be read
                print(f"minit2v: error: {error}", file=sys.stderr)
            else:
                print(f"minit2v: error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return 1


def _add_sampling(parser: argparse.ArgumentParser, sampler: str = "ddim") -> None:
    parser.add_argument("--guidance-scale", type=_finite, metavar="G",
                        help="how strongly to follow the prompt; 1 is no guidance (default: the model's, mini 4, "
                             "released 9)")
    parser.add_argument("--sampler", choices=SAMPLERS, default=sampler, help=f"(default: {sampler})")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"minit2v: warning: {message}", file=sys.stderr)


def _output(text: str) -> Path:
    if Path(text).suffix.lower() not in ENDINGS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(ENDINGS)}")
    return Path(text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2 ** 63:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 2^63 - 1")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number")
    return value


def _number(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _share(text: str) -> float:
    value = _finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
