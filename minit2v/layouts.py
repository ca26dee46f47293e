"""A folder with a model in it: which layout it has, how large the model is, where its weights lie.

    minit2v      config.json, and one .safetensors file for each of the three networks (TextToVideo.save)
    diffusers    model_index.json, and the folders unet/ vae/ text_encoder/ tokenizer/ scheduler/
    modelscope   configuration.json, and three pickles: the UNet, all of Stable Diffusion 2.1 (for its autoencoder)
                 and all of CLIP ViT-H/14 (for its text tower)

`open_model` reads the configuration. `Stored.part` finds the files of one network and holds each name and shape in
them against what the network needs; nothing is loaded before all is accounted for. `Part.tensors` gives the
numbers under our names: mapped, where they can stay as they are, else converted one after the other, so that
memory never holds a second copy. What tensors are called in a layout is known by `checkpoints` alone.

Facts of the layouts: configuration files and tensor tables of damo-vilab/text-to-video-ms-1.7b (Hugging Face)
and damo/text-to-video-synthesis (ModelScope).
"""

import difflib
import gzip
import math
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minit2v import checkpoints, configfiles
from minit2v.autoencoder import Autoencoder
from minit2v.config import ModelConfig
from minit2v.configfiles import parse, read_json
from minit2v.diffusion import Process
from minit2v.tensorfiles import is_mapped, read
from minit2v.text import WEIGHTS, TextEncoder
from minit2v.unet import UNet

NETWORKS = ("text_encoder", "unet", "autoencoder")
INDEX = {"minit2v": "config.json", "diffusers": "model_index.json", "modelscope": "configuration.json"}
PORTIONS, PORTION = 16, 2 ** 23                          # a conversion opens a file anew so often, or after 8 MB
Shape = tuple[int, ...]


def networks(config: ModelConfig) -> dict[str, nn.Module]:
    """The three networks of a model, with fresh random weights (of no weight at all on the meta device)."""
    return {"text_encoder": TextEncoder(config.text), "unet": UNet(config.unet),
            "autoencoder": Autoencoder(config.autoencoder)}


class Undrawn(TorchFunctionMode):
    """Inside, nothing of torch.nn.init is computed: of a thousand tensors without numbers that takes its time, too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@dataclass
class Part:
    """The weights of one network on disk."""

    files: list[Path]
    names: dict[str, list[str]]                          # ours -> theirs: one, or three (q, k, v) that are one here
    shapes: dict[str, Shape]                             # ours
    dtypes: dict[str, torch.dtype]                       # on disk, by our name

    def tensors(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Every tensor under our name and in our shape, of this number type (None: as on disk), on this device.

        What needs no change stays mapped from its file. The rest is converted tensor by tensor, in the order of the
        file. After every 16th of the way (or 8 MB) the file is closed and opened anew: only closing a mapping gives
        back the memory of what was looked at.
        """
        kept = [ours for ours, theirs in self.names.items() if len(theirs) == 1 and dtype in (None, self.dtypes[ours])
                and torch.device(device).type == "cpu"]
        stored = _read_all(self.files, {self.names[ours][0] for ours in kept})
        state = {ours: stored[self.names[ours][0]].detach().reshape(self.shapes[ours]) for ours in kept}

        changes = [ours for ours in self.names if ours not in state]
        size = {ours: math.prod(self.shapes[ours]) * self.dtypes[ours].itemsize for ours in changes}     # bytes on disk
        portion = max(PORTION, sum(size.values()) / (PORTIONS if all(map(is_mapped, self.files)) else 1))
        while changes:
            some, taken = [], 0
            while changes and taken < portion:
                some.append(changes.pop(0))
                taken += size[some[-1]]
            stored = None                                # closed first, then opened again
            stored = _read_all(self.files, {name for ours in some for name in self.names[ours]})
            for ours in some:
                state[ours] = torch.empty(self.shapes[ours], dtype=dtype or self.dtypes[ours], device=device)
                pieces = state[ours].chunk(len(self.names[ours]))        # one, or q, k and v along dimension 0
                for piece, name in zip(pieces, self.names[ours]):
                    piece.copy_(stored.pop(name).detach().reshape(piece.shape))
        return {ours: state[ours] for ours in self.names}


@dataclass
class Stored:
    """A model on disk: its layout, its configuration, its networks without numbers (on the meta device)."""

    layout: str
    folder: Path
    config: ModelConfig
    networks: dict[str, nn.Module]
    files: dict[str, list[Path]]                         # by network

    def part(self, name: str) -> Part:
        """The weights of "unet", "autoencoder" or "text_encoder", every tensor accounted for.

        Raises FileNotFoundError for a missing file; ValueError for a damaged one, or if a tensor is missing, unknown,
        of another shape, or of numbers that are not floating-point.
        """
        files, skip = self.files[name], re.compile(checkpoints.unread(name, self.layout, self.config))
        found = {key: value for key, value in _read_all(files, numbers=False).items() if not skip.match(str(key))}
        shapes = {ours: tuple(tensor.shape) for ours, tensor in self.networks[name].state_dict().items()}
        options = [{ours: checkpoints.released_names(ours, rules) for ours in shapes}
                   for rules in checkpoints.spellings(name, self.layout, self.config)]
        names = min(options, key=lambda option: sum(key not in found for keys in option.values() for key in keys))

        expected = {}
        for ours, theirs in names.items():
            rows, *rest = checkpoints.released_shape(ours, shapes[ours], name, self.layout)
            expected.update({key: (rows // len(theirs), *rest) for key in theirs})
        origin = str(files[0]) + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")
        check_tensors(found, expected, origin)
        place = {key: i for i, key in enumerate(found)}
        names = dict(sorted(names.items(), key=lambda item: place[item[1][0]]))            # as they lie in the file
        dtypes = {ours: found[theirs[0]].dtype for ours, theirs in names.items()}
        return Part(files, names, shapes, dtypes)


def _read_all(files: list[Path], names: set[str] | None = None, numbers: bool = True) -> dict[str, Tensor]:
    return {name: tensor for path in files for name, tensor in read(path, names, numbers).items()}


def check_tensors(found: dict[str, Tensor], expected: dict[str, Shape], origin: str) -> None:
    """Raises ValueError that names each tensor that is missing, unexpected, of another shape, or no plain numbers.

    Axes of size 1 at the end make no difference: (o, i) is a linear layer, (o, i, 1, 1) the same as a convolution.
    """
    missing, unexpected = [n for n in expected if n not in found], [n for n in found if n not in expected]
    problems = [f"missing: {name} {expected[name]}" for name in missing]
    problems += [f"unexpected: {name}" for name in unexpected]
    for name in (name for name in expected if name in found):
        tensor = found[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            problems.append(f"no plain tensor: {name} is a {type(tensor).__name__}")
        elif _plain(tuple(tensor.shape)) != _plain(expected[name]):
            problems.append(f"wrong shape: {name} is {tuple(tensor.shape)}, expected {expected[name]}")
        elif not tensor.is_floating_point():
            problems.append(f"wrong number type: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected "
                            "floating-point (quantised weights cannot be loaded)")
    if not problems:
        return
    shown = sorted(problems, key=lambda problem: problem.startswith("missing"))[:10]    # some of each kind
    shown += [problem for problem in problems if problem not in shown][:20 - len(shown)]
    for i, problem in enumerate(shown):
        name = problem.removeprefix("unexpected: ")
        close = name != problem and difflib.get_close_matches(name, missing or list(expected), n=1)
        shown[i] += f" (the nearest that is expected: {close[0]})" if close else ""
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    raise ValueError("\n  ".join([f"{origin} does not fit its configuration; take both from the same model:",
                                  *shown, *more]))


def _plain(shape: Shape) -> Shape:
    """The shape without axes of size 1 at its end: (o, i, 1, 1) -> (o, i)."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


# ------------------------------------------------------------------------------------------------ opening a folder

def open_model(folder: Path, half: bool = False) -> Stored:
    """Recognises the layout of a folder and reads its configuration; the weights are not read yet.

    half: where a folder has every file twice, take the half-precision one. Raises FileNotFoundError if the folder
    or a file is missing, and ValueError for a configuration that is damaged or of another architecture.
    """
    folder = Path(folder)
    layout = next((name for name in ("diffusers", "modelscope", "minit2v") if (folder / INDEX[name]).is_file()), None)
    if layout is None:
        names = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
        what = "that is a file" if folder.is_file() else f"it has {', '.join(names)}" if names else (
            "it is empty or not there")
        raise FileNotFoundError(f"there is no model in {str(folder)!r}: no config.json (ours), model_index.json "
                                f"(diffusers) or configuration.json (ModelScope); {what}. Give the folder that holds "
                                "one of them beside the weights")
    opener = {"minit2v": _open_minit2v, "diffusers": _open_diffusers, "modelscope": _open_modelscope}[layout]
    config, files = opener(folder, half)
    try:
        with torch.device("meta"), Undrawn():            # shapes only: no memory, no initialisation
            parts = networks(config)
        Process(config.diffusion)
    except Exception as error:                           # whatever numbers that fit no network make it raise
        raise ValueError(f"the configuration in {str(folder)!r} describes no model ({error}); "
                         "copy its JSON files again") from error
    return Stored(layout, folder, config, parts, files)


def _open_minit2v(folder: Path, half: bool) -> tuple[ModelConfig, dict]:
    path = folder / "config.json"
    try:
        config = ModelConfig.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a model's configuration: {error}. (For one part of a model in another layout, "
                         "give the folder above it.)") from error
    merges = config.text.merges
    if merges is not None and folder != WEIGHTS:         # the folder's own, not the package's
        config = replace(config, text=replace(config.text, merges=_checked_merges(folder / str(merges))))
    return config, {name: [folder / f"{name}.safetensors"] for name in NETWORKS}


def _open_diffusers(folder: Path, half: bool) -> tuple[ModelConfig, dict]:
    """model_index.json says nothing that the folders do not; some name modules that never existed. It is not read."""
    def setting(path: Path, reader):
        return parse(path, reader, read_json(path))

    unet_file, own_merges = folder / "unet" / "config.json", folder / "tokenizer" / "merges.txt.gz"
    text = setting(folder / "text_encoder" / "config.json", configfiles.diffusers_text)
    if own_merges.is_file():                             # only `minit2v convert` writes one
        text = replace(text, merges=_checked_merges(own_merges))
    autoencoder = setting(folder / "vae" / "config.json", configfiles.diffusers_autoencoder)
    height, width = setting(unet_file, configfiles.diffusers_size)       # in latent cells
    config = ModelConfig(folder.resolve().name, autoencoder, text, setting(unet_file, configfiles.diffusers_unet),
                         setting(folder / "scheduler" / "scheduler_config.json", configfiles.diffusers_process),
                         height=height * autoencoder.downscale, width=width * autoencoder.downscale)
    places = {"unet": "unet", "autoencoder": "vae", "text_encoder": "text_encoder"}
    return config, {name: find_weights(folder / place, *configfiles.DIFFUSERS_STEMS[place], half)
                    for name, place in places.items()}


def _open_modelscope(folder: Path, half: bool) -> tuple[ModelConfig, dict]:
    path = folder / INDEX["modelscope"]
    values = read_json(path)
    files = {}
    for name in NETWORKS:
        named = parse(path, lambda values: configfiles.modelscope_file(values, name), values)
        files[name] = [folder / named]
        if not files[name][0].is_file():
            raise FileNotFoundError(f"the weights {str(files[name][0])!r} are missing; {path.name} names them as "
                                    f"{named!r}: put the file there, or correct the name")

    def shapes(part: str) -> dict[str, Shape]:
        return {name: tuple(value.shape) for name, value in _read_all(files[part], numbers=False).items()
                if isinstance(value, Tensor)}

    config = ModelConfig(
        folder.resolve().name,
        parse(files["autoencoder"][0], configfiles.modelscope_autoencoder, shapes("autoencoder")),
        parse(files["text_encoder"][0], configfiles.modelscope_text, shapes("text_encoder")),
        parse(path, configfiles.modelscope_unet, values), parse(path, configfiles.modelscope_process, values),
        num_frames=parse(path, configfiles.modelscope_frames, values))
    return config, files


def find_weights(folder: Path, stem: str, pickle_stem: str, half: bool) -> list[Path]:
    """The files of one network in the diffusers layout: one, or the shards that an index lists.

    Which is taken, if there are several, says `configfiles.weight_names`. Raises FileNotFoundError if there is none,
    or a shard is missing; ValueError for a bad index.
    """
    for whole, index in configfiles.weight_names(stem, pickle_stem, half):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise FileNotFoundError(f"there are no weights in {str(folder)!r}: neither {stem}.safetensors nor "
                            f"{pickle_stem}.bin, nor an index of shards; copy the whole folder, or download it again")


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name != "" for name in names):
        raise ValueError(f"{index} must list under weight_map in which file beside it each tensor lies; copy it again")
    return [index.parent / name for name in sorted(set(names))]


def _checked_merges(path: Path) -> str:
    """The path of a tokenizer's merges. Raises ValueError if they cannot be unpacked; if missing, it will say so."""
    if path.is_file():
        try:
            gzip.decompress(path.read_bytes()).decode("utf-8")
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{path}, the tokenizer's merges, is damaged ({error}); copy it again") from error
    return str(path.resolve())
