"""Files of weights, whoever wrote them: mapped into memory, never trusted, never run.

There are two kinds. `.safetensors` is a table of names, shapes and places, and then the numbers; nothing in it
can run. `.bin`, `.pth` and `.ckpt` are torch's own: a zip archive of numbers and a *pickle* that says how to put
them together. A pickle is a little program, and Python's own reader runs whatever it says. So the only reader
used here is torch's restricted one (`weights_only=True`), which knows how to build tensors and nothing else.

Files are mapped, not read: a tensor's numbers stay on disk until somebody looks at them, and the operating
system may drop them from memory again. What has been looked at counts as memory in use until the mapping is
closed; whoever walks through a large file to convert it should open it anew every now and then (`layouts.Part`).
"""

import hashlib
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# Besides weights, the checkpoint of Stable Diffusion inside ModelScope's VQGAN_autoencoder.pth keeps notes of its
# training, and these are the classes and functions it names for them. None of them is imported. Each name stands
# for an empty class that swallows what it is given: we want the weights, and the notes are thrown away.
NOTES = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "numpy.dtype",
         "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I8": torch.int8,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64}     # of a safetensors file


class Note:
    """Stands for anything in a checkpoint that is no weight."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __setstate__(self, state):
        pass


def _note(name: str) -> type:
    module, _, title = name.rpartition(".")
    return type(title, (Note,), {"__module__": module})               # torch allows it by this module and title


_NOTES = [_note(name) for name in NOTES]


def read(path: Path, names: set[str] | None = None, numbers: bool = True) -> dict[str, Tensor]:
    """What a file of weights holds, by name, the tensors mapped. Weights nested under "state_dict" are unwrapped.

    names: leave out all others. numbers: if False, a tensor may come with the right shape and type, but without its
    own numbers; a safetensors file is then not read beyond its table, however large it is.
    A pickle may hold other things than tensors; `layouts.check_tensors` finds them. Raises FileNotFoundError if there
    is no such file, and ValueError if it is damaged, is no file of weights, or carries code (nothing of it is run).
    """
    if not path.is_file():
        raise FileNotFoundError(f"the weights {str(path)!r} are missing; copy the whole folder, or download it again")
    with path.open("rb") as file:
        head = file.read(64)
    try:
        state = _map(path, names, numbers) if path.suffix == ".safetensors" else _unpickle(path)
    except Exception as error:               # a damaged file makes its reader raise nearly anything: one answer to all
        raise ValueError(_what_is_wrong(path, head, error)) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, but must hold a dictionary of named tensors; "
                         "save the network's state_dict()")
    return state if names is None else {name: state[name] for name in state if name in names}


def fingerprint(tensors: dict[str, Tensor], *also: object) -> str:
    """64 hexadecimal digits that change with every number, name, shape and type of some tensors, and with `also`.

    The order of the names says nothing. also: what else to tell apart, by its repr: numbers, strings, lists of them.
    """
    digest = hashlib.sha256(repr(also).encode())
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_mapped(path: Path) -> bool:
    """Whether `read` maps this file. Only pickles from before torch 1.6, which are no zip archives, are not."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _map(path: Path, names: set[str] | None, numbers: bool) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        wanted = [name for name in file.keys() if names is None or name in names]
        return {name: file.get_tensor(name) if numbers else _blank(file.get_slice(name)) for name in wanted}


def _blank(entry) -> Tensor:
    """One number that passes for a whole tensor of the entry's shape: enough to look at shape and type."""
    return torch.empty((), dtype=TYPES.get(entry.get_dtype(), torch.uint8)).expand(entry.get_shape())


def _unpickle(path: Path):
    with torch.serialization.safe_globals(_NOTES):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped(path))


def _what_is_wrong(path: Path, head: bytes, error: Exception) -> str:
    """The error of a reader in words that say what to do."""
    if head.startswith(b"version https://git-lfs"):
        return (f"{path} is a pointer of Git LFS, which stands for the weights, not the weights; run `git lfs pull` "
                "in its repository, or download the file itself")
    if head.lstrip()[:1] == b"<":
        return f"{path} is a web page, not a file of weights; download the file itself, not the page about it"
    code = re.search(r"GLOBAL (\S+)|unrecognized function (.+)", str(error))
    if code:
        return (f"{path} asks to call {code[1] or code[2]} while it is read, and weights need nothing but tensors: it "
                "carries code, or it is damaged. Nothing of it was run. Take the .safetensors file of the same model, "
                "or a copy from somebody you trust that holds tensors alone")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{path} is damaged or cut short ({path.stat().st_size:,} bytes; {reason}); copy it again"
