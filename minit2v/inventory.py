"""What is in a folder: which layout and networks, how large, and whether it is what its authors released.

The yardstick is our own model at the released size, which the tests hold against the list of tensors in the
released files: a network of the same names and shapes is built like the original. Whether it also has the same
numbers is known when a file's SHA-256 is the published one (`released.json`).
"""

import functools
import hashlib
import json
import math
from pathlib import Path

import torch
from tqdm.auto import tqdm

from minit2v.config import modelscope_1_7b
from minit2v.layouts import NETWORKS, networks, open_model

SMALL = 2 ** 26                                          # bytes; a file up to this size is always hashed
RELEASED = Path(__file__).parent / "released.json"


@functools.cache
def released_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the released model in our words, by network. Takes a second, once."""
    with torch.device("meta"):
        original = networks(modelscope_1_7b())
    return {name: {key: tuple(t.shape) for key, t in net.state_dict().items()} for name, net in original.items()}


def examine(folder: Path, hashed: bool = False) -> dict:
    """A folder's layout and, of each network, files, tensors, number types and likeness to the released model.

    hashed: compute the SHA-256 of large files, too (some 3 s for a gigabyte). Everything is plain data, ready for
    JSON. What is wrong with a network is said under its "problem". Raises what `layouts.open_model` raises.
    """
    folder = Path(folder)
    stored = open_model(folder)
    parts = []
    for name in NETWORKS:
        part = {"name": name, "files": [], "tensors": None, "parameters": None, "dtype": None, "like_released": None,
                "problem": None}
        try:
            found = stored.part(name)
            expected = released_shapes()[name]
            like = sum(found.shapes.get(ours) == shape for ours, shape in expected.items()) / len(expected)
            part |= {"tensors": len(found.names), "parameters": sum(math.prod(s) for s in found.shapes.values()),
                     "dtype": ", ".join(sorted({str(d).removeprefix("torch.") for d in found.dtypes.values()})),
                     "like_released": like}
        except (ValueError, OSError) as error:
            part["problem"] = str(error)
        part["files"] = [examine_file(path, folder, hashed) for path in stored.files[name] if path.is_file()]
        parts.append(part)
    files = [file for part in parts for file in part["files"]]
    return {"folder": str(folder.resolve()), "layout": stored.layout, "name": stored.config.name, "parts": parts,
            "parameters": sum(part["parameters"] or 0 for part in parts), "bytes": sum(f["bytes"] for f in files),
            "whole": all(part["problem"] is None for part in parts)}


def examine_file(path: Path, folder: Path, hashed: bool = False) -> dict:
    """A file's place, size and, if small or `hashed`, SHA-256; and how it compares with the released one.

    "released": None if no released file has this name, else "yes" (the hash is the published one), "size" (the size
    is, the hash was not computed), "unknown" (only a hash would tell), or "no".
    """
    place = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    facts, size = json.loads(RELEASED.read_text(encoding="utf-8")), path.stat().st_size
    key = place if place in facts["files"] else path.name                # "../VQGAN_autoencoder.pth" is known by name
    versions = [facts["files"][key]] if key in facts["files"] else []
    versions += facts.get("other_versions", {}).get(key, [])
    digest = sha256(path) if hashed or size <= SMALL else None
    right_size = [v for v in versions if v.get("bytes", size) == size]
    if digest is not None:
        verdict = "yes" if digest in [v["sha256"] for v in versions] else "no"
    elif right_size:
        verdict = "size" if any("bytes" in v for v in right_size) else "unknown"
    else:
        verdict = "no"
    return {"file": place, "bytes": size, "sha256": digest, "released": verdict if versions else None}


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, with a progress bar if it takes more than two seconds."""
    digest = hashlib.sha256()
    with path.open("rb") as file, tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, delay=2,
                                       leave=False, disable=None) as bar:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def report(found: dict) -> str:
    """What `examine` found, as lines of text."""
    lines = [f"{found['folder']}: layout {found['layout']}, {found['parameters']:,} parameters, "
             f"{found['bytes'] / 1e6:,.1f} MB on disk"]
    for part in found["parts"]:
        if part["problem"] is not None:
            lines.append(f"{part['name']}: {part['problem']}")
        else:
            like = part["like_released"]
            likeness = ("names and shapes of the released model" if like == 1 else
                        f"not of the released size ({like:.0%} of its tensors are here in name and shape)")
            lines.append(f"{part['name']}: {part['tensors']} tensors, {part['parameters']:,} parameters, "
                         f"{part['dtype']}; {likeness}")
        verdicts = {"yes": "; the released file (SHA-256 is the published one)",
                    "size": "; has the size of the released file (--hash compares its SHA-256)",
                    "unknown": "; may be the released file (--hash compares its SHA-256)",
                    "no": "; not the released file", None: ""}
        lines += [f"  {file['file']}: {file['bytes']:,} bytes{verdicts[file['released']]}" for file in part["files"]]
    return "\n".join(lines)
