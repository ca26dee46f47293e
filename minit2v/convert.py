"""A model from one layout into another: the same numbers under other names, for programs that know the others.

One network is written after the other, so that there is never more than one in memory, into a folder with a
temporary name; only when all is there it gets its own name. A folder that `convert` made is whole, or it is not
there. What a layout cannot say (diffusers builds the input transformer with eight heads, ModelScope takes no
tokenizer but CLIP's) is found out before the work: the new configuration is read back and compared.
"""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minit2v import checkpoints, configfiles
from minit2v.config import ModelConfig
from minit2v.files import part_of
from minit2v.layouts import INDEX, NETWORKS, WEIGHTS, Stored, open_model
from minit2v.text import Tokenizer

FILES = {                                                # where each layout has its networks
    "minit2v": {name: f"{name}.safetensors" for name in NETWORKS},
    "diffusers": {"unet": "unet/diffusion_pytorch_model.safetensors",
                  "autoencoder": "vae/diffusion_pytorch_model.safetensors",
                  "text_encoder": "text_encoder/model.safetensors"},
    "modelscope": {name: usual for name, (_, usual) in configfiles.MODELSCOPE_FILES.items()},
}
NOT_COMPARED = {"dropout", "spacing"}                    # a matter of training, and a mere preference
MERGES = "merges.txt.gz"
CUT_CLIP = ("open_clip_pytorch_model.bin holds what text to video needs of CLIP, which is enough for minit2v; "
            "ModelScope's own program asks for all of CLIP: for that, put the original file in its place")


def convert(source: str | os.PathLike, destination: str | os.PathLike, layout: str,
            dtype: torch.dtype | None = None) -> Path:
    """Writes the model in the folder `source`, of whatever layout, to the new folder `destination`.

    layout: "minit2v", "diffusers" or "modelscope". dtype: number type on disk; None keeps each tensor's own.
    The others' layouts have no place for frame rate and guidance, diffusers' none for a clip's length, ModelScope's
    none for its size and a spacing of times: whoever reads the folder takes what is usual.
    Returns the destination. Raises FileExistsError if there is something already; ValueError if the layout is
    unknown or cannot express the model; and what `layouts.open_model` raises for a source that is not right.
    """
    if layout not in FILES:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(FILES)}")
    destination = Path(destination)
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise FileExistsError(f"{str(destination)!r} is there already; nothing is overwritten: give a new name, or "
                              "remove it first")
    if destination.resolve() == Path.cwd():              # it would be replaced under the feet of who stands in it
        raise ValueError(f"{str(destination)!r} is the folder that you are in; give the name of a new one")
    stored = open_model(Path(source), half=dtype is not None and dtype.itemsize == 2)
    check_expressible(stored, layout)
    parts = {name: stored.part(name) for name in NETWORKS}               # all is accounted for before any is written
    unfinished = part_of(destination)
    try:
        unfinished.mkdir(parents=True)
        for name, part in parts.items():
            path = unfinished / FILES[layout][name]
            path.parent.mkdir(exist_ok=True)
            write_tensors(path, released(part.tensors(dtype), name, layout, stored.config))
        write_settings(unfinished, stored, layout)
        if destination.is_dir():
            destination.rmdir()
        os.replace(unfinished, destination)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return destination


def check_expressible(stored: Stored, layout: str) -> None:
    """Raises ValueError that names every setting which a reader of the new folder would take for another."""
    if layout == "minit2v":
        return
    parts = ("autoencoder", "text", "unet", "diffusion")
    ours = {part: asdict(getattr(stored.config, part)) for part in parts}
    try:
        theirs = _read_back(stored, layout)
    except ValueError as error:
        raise ValueError(f"the layout {layout} cannot express this model: {error}") from error
    differences = [f"{part}.{key} is {ours[part][key]!r}, there it would be {value!r}"
                   for part in parts for key, value in theirs[part].items()
                   if key not in NOT_COMPARED and value != ours[part][key]]
    if differences:
        raise ValueError("\n  ".join([f"the layout {layout} cannot express this model:", *differences]))


def _read_back(stored: Stored, layout: str) -> dict[str, dict]:
    """The settings as a reader of the new folder finds them, by part."""
    config = stored.config
    if layout == "diffusers":                            # with the tokenizer's merges as files of their own
        files = configfiles.diffusers_files(config)
        found = {"autoencoder": configfiles.diffusers_autoencoder(files["vae/config.json"]),
                 "text": replace(configfiles.diffusers_text(files["text_encoder/config.json"]),
                                 merges=config.text.merges),
                 "unet": configfiles.diffusers_unet(files["unet/config.json"]),
                 "diffusion": configfiles.diffusers_process(files["scheduler/scheduler_config.json"])}
    else:
        values = configfiles.modelscope_configuration(config)
        shapes = {name: {key: tuple(t.shape) for key, t in released(net.state_dict(), name, layout, config).items()}
                  for name, net in stored.networks.items()}
        found = {"autoencoder": configfiles.modelscope_autoencoder(shapes["autoencoder"]),
                 "text": configfiles.modelscope_text(shapes["text_encoder"]),
                 "unet": configfiles.modelscope_unet(values), "diffusion": configfiles.modelscope_process(values)}
    return {part: asdict(settings) for part, settings in found.items()}


def released(tensors: dict[str, Tensor], part: str, layout: str, config: ModelConfig) -> dict[str, Tensor]:
    """A network's state dict in the names and shapes of a layout: views of the same numbers."""
    rules, state = checkpoints.spellings(part, layout, config)[0], {}
    for ours, tensor in tensors.items():
        names = checkpoints.released_names(ours, rules)
        for name, piece in zip(names, tensor.chunk(len(names))):         # one; or (3 d, ...) -> (d, ...) of q, k, v
            state[name] = piece.reshape(checkpoints.released_shape(ours, tuple(piece.shape), part, layout))
    return state


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a .safetensors file, or torch's own with ModelScope's nesting."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})              # diffusers and transformers ask for this note
        return
    # torch writes the whole storage behind a tensor: one that is a part of a larger one needs its own.
    tensors = {name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
               for name, tensor in tensors.items()}
    torch.save({"state_dict": tensors} if path.name == FILES["modelscope"]["autoencoder"] else tensors, path)


def write_settings(folder: Path, stored: Stored, layout: str) -> None:
    """Writes all that is not a tensor: configurations, tokenizer, schedule."""
    config = stored.config
    merges = None if config.text.merges is None else WEIGHTS / config.text.merges        # a whole path stays itself
    if layout == "minit2v":
        if merges is not None:
            shutil.copyfile(merges, folder / MERGES)
            config = replace(config, text=replace(config.text, merges=MERGES))
        (folder / INDEX[layout]).write_text(config.to_json() + "\n", encoding="utf-8")
        return
    if layout == "modelscope":
        _write_json(folder / INDEX[layout], configfiles.modelscope_configuration(config))
        return
    for place, values in configfiles.diffusers_files(config).items():
        (folder / place).parent.mkdir(exist_ok=True)
        _write_json(folder / place, values)
    write_tokenizer(folder / "tokenizer", config)
    if merges is not None:                               # what our own tokenizer reads; others look at merges.txt
        shutil.copyfile(merges, folder / "tokenizer" / MERGES)


def write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """The tokenizer as transformers' CLIPTokenizer reads it: vocab.json, merges.txt and two notes about them.

    The table is open_clip's own; the start and the end of a text have other names there, and the same ids. Padding is
    id 0, as the network was trained, which happens to be the id of "!": a prompt's exclamation marks become padding
    in transformers, in the released files too, and stay what they are in open_clip and here.
    """
    folder.mkdir()
    bpe = Tokenizer(config.text).bpe
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in bpe.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair in bpe.bpe_ranks]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    padding = next(token for token, number in vocabulary.items() if number == 0)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": padding}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {**special, "tokenizer_class": "CLIPTokenizer", "errors": "replace",
                                                   "do_lower_case": True, "add_prefix_space": False,
                                                   "model_max_length": config.text.context_length})


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
