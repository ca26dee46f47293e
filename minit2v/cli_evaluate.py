"""The verb `evaluate` of the `minit2v` command. Part of cli.py, where the rules of the command line stand."""

from pathlib import Path

CLIP_NAME = "ViT-B-32-quickgelu"                                          # fvd.CLIP_NAME


def evaluate(args) -> int:
    """Measures a model, or the referee itself, and prints the tables."""
    from minit2v import evaluate as practice

    return practice.main_evaluate(args)


def add(verb, positive, seed, add_sampling) -> None:
    """Adds the verb to the command line; `verb` and the kinds of options are those of cli.build_parser."""
    one = verb(evaluate)
    one.add_argument("--weights", metavar="W", help="folder of a model, or owner/name on the Hub (default: the mini "
                     "model that comes along)")
    one.add_argument("--referee", action="store_true", help="score the referee instead of a model")
    one.add_argument("--published", action="store_true",
                     help="only print what was published of the released model, and why it cannot be compared")
    one.add_argument("--clips", type=positive, default=256, metavar="N", help="clips in each row (default: 256; two "
                     "rows together are the 512 that the course Frechet distance wants)")
    one.add_argument("--num-inference-steps", "--steps", type=positive, default=15, metavar="N",
                     help="times the network is asked for a clip (default: 15)")
    add_sampling(one, sampler="dpm++")
    one.add_argument("--seed", type=seed, default=0, help="of the first clip, then counting up (default: 0)")
    one.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a JSON file too")
    one.add_argument("--picture", type=Path, metavar="FILE", help="draw them into a PNG file too")
    one.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
                     help="number type (default: float32)")
    one.add_argument("--device", metavar="D", help="where to compute (default: cpu)")
    real = one.add_argument_group("against real films, for models that know more than Moving Shapes")
    real.add_argument("--real", type=Path, metavar="FOLDER", help="films with captions, as finetune reads them; for "
                      "FVD, half of them are only compared with")
    real.add_argument("--i3d", type=Path, metavar="FILE", help="i3d_torchscript.pt, for FVD. It is a program: take it "
                      "from somebody you trust")
    real.add_argument("--i3d-sha256", metavar="HEX", help="open the file only if it has this SHA-256")
    real.add_argument("--clip", type=Path, metavar="FILE", help="open_clip's weights of ViT-B/32, for CLIPSIM")
    real.add_argument("--clip-model", default=CLIP_NAME, metavar="NAME",
                      help=f"open_clip's name of its architecture (default: {CLIP_NAME}, OpenAI's weights)")
