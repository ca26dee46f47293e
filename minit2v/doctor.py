"""Is everything here that the course needs? `minit2v doctor` looks, and says how to mend what is wrong.

Each check is a function that tries the real thing (it writes a film, it loads the model) and returns a
`Finding`. This module imports nothing but the standard library at the top: a doctor has to be able to
come when the patient cannot get up.
"""

import os
import platform
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

MENDS = {"good": "", "poor": "works, but: ", "bad": "to mend: "}
MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL"}               # where the module has not the package's name
INSTALL = "in the repository's folder, with the environment active: pip install -e ."
NEWER_TORCH = "pip install --upgrade torch (for Macs with an Intel processor there is none that is new enough)"


@dataclass(frozen=True)
class Finding:
    """What a check found. status: "good"; "poor", one can work all the same; "bad", something needed is missing."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def check_python() -> Finding:
    detail = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < (3, 10):
        return Finding("python", "bad", detail, "install Python 3.10 or newer and make the environment again")
    return Finding("python", "good", detail)


def check_packages() -> Finding:
    """Imports what the package needs besides torch, which has a check of its own, and looks at the versions."""
    needs = needed()
    if not needs:
        return Finding("packages", "bad", "minit2v is here, but not installed: what it needs is not known", INSTALL)
    broken = {}
    for name in needs.keys() - {"torch"}:
        try:
            import_module(MODULES.get(name, name))
            if is_older(version := metadata.version(name), needs[name]):
                broken[name] = f"it is {version}, but {needs[name]} or newer is needed"
        except Exception as error:                                        # a broken binary raises anything
            broken[name] = f"{type(error).__name__}: {error}"
    if broken:
        return Finding("packages", "bad", "; ".join(f"{name} ({broken[name]})" for name in sorted(broken)), INSTALL)
    return Finding("packages", "good", f"{len(needs) - 1} are there")


def needed() -> dict[str, str]:
    """What minit2v cannot do without, as it was installed: {package: lowest version}; empty if it was not."""
    try:
        requirements = metadata.requires("minit2v") or []
    except metadata.PackageNotFoundError:
        requirements = []
    return dict(one.partition(">=")[::2] for one in requirements if ";" not in one)       # ";" begins a condition


def is_older(version: str, lowest: str) -> bool:
    """Whether 2.4.1+cpu is older than 2.5: compared number by number, without what stands after the +."""
    found, wanted = ([int(n) for n in re.findall(r"\d+", text.partition("+")[0])] for text in (version, lowest))
    return found < wanted


def check_torch() -> Finding:
    try:
        torch = import_module("torch")
        works = _product(torch, "cpu") == 8
    except Exception as error:
        return Finding("torch", "bad", f"{type(error).__name__}: {error}", NEWER_TORCH)
    lowest = needed().get("torch", "0")
    if is_older(torch.__version__, lowest):
        return Finding("torch", "bad", f"it is {torch.__version__}, but {lowest} or newer is needed", NEWER_TORCH)
    if not works:
        return Finding("torch", "bad", "2 x 2 ones multiplied do not give 8", "pip install --force-reinstall torch")
    return Finding("torch", "good", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _product(torch, device) -> float:
    ones = torch.ones(2, 2, device=device)
    return (ones @ ones).sum().item()


def check_device() -> Finding:
    """Which device computes; a graphics card is recommended only if it does."""
    torch = import_module("torch")
    accelerator = getattr(torch, "accelerator", None)                     # since torch 2.6
    if accelerator is None:
        return Finding("device", "good", "the processor; for a word on graphics cards, pip install --upgrade torch")
    if accelerator.is_available():
        device = accelerator.current_accelerator()
        try:
            if (product := _product(torch, device)) != 8:
                raise ArithmeticError(f"2 x 2 ones multiplied give {product}, not 8")
        except Exception as error:                                        # the build does not fit card or driver
            said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            return Finding("device", "poor", f"the processor; there is {device.type}, but it does not compute ({said})",
                           "leave --device out, or install the build of torch that pytorch.org names for this card")
        return Finding("device", "good", f"{device.type}, besides the processor; use it by --device {device.type}")
    return Finding("device", "good", "the processor; enough for the mini model. (This torch finds no graphics card; if "
                   "there is one, install the build that pytorch.org names for it)")


def check_memory() -> Finding:
    try:
        with open("/proc/meminfo") as file:                               # Linux
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return Finding("memory", "good", "not known on this system; the mini model needs 1 GB, training 4 GB")
    gigabytes = free / 2 ** 30
    if gigabytes < 1:
        return Finding("memory", "poor", f"{gigabytes:.1f} GB free", "close other programs; the mini model needs 1 GB")
    return Finding("memory", "good", f"{gigabytes:.1f} GB free")


def check_video() -> Finding:
    """Writes a small film, reads it back and counts its frames."""
    try:
        av, torch, video = import_module("av"), import_module("torch"), import_module("minit2v.video")
        with tempfile.TemporaryDirectory() as folder:
            clip = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
            count = len(video.load(video.save(clip, Path(folder) / "clip.mp4")))
        if count != 4:
            raise RuntimeError(f"4 frames were written, {count} read")
    except Exception as error:
        return Finding("video", "bad", f"{type(error).__name__}: {error}", "pip install --force-reinstall av pillow")
    return Finding("video", "good", f"PyAV {av.__version__} writes H.264 with its own FFmpeg")


def check_weights() -> Finding:
    """Loads the model that comes with the package."""
    try:
        pipeline = import_module("minit2v.pipeline")
        pipe = pipeline.load()
    except Exception as error:
        return Finding("weights", "bad", str(error), "git checkout -- minit2v/weights, or install the package again")
    count = sum(p.numel() for name in pipeline.NETWORKS for p in getattr(pipe, name).parameters())
    return Finding("weights", "good", f"{pipe.config.name}, {count / 1e6:.1f} million parameters")


def check_jupyter() -> Finding:
    """Looks for the kernel that notebooks ask for, and whether it is this Python."""
    remedy = "pip install -e .[course]"
    try:
        import_module("ipykernel")
        spec = import_module("jupyter_client.kernelspec").get_kernel_spec("python3")
        version = metadata.version("jupyterlab")
    except Exception as error:
        return Finding("jupyter", "poor", f"no notebooks: {type(error).__name__}: {error}", remedy)
    program = spec.argv[0]
    if os.path.isabs(program) and not (os.path.exists(program) and os.path.samefile(program, sys.executable)):
        return Finding("jupyter", "poor", f"the kernel python3 is another Python, {program}",
                       f"{sys.executable} -m ipykernel install --sys-prefix --name python3")
    return Finding("jupyter", "good", f"jupyterlab {version}, kernel python3")


CHECKS = (check_python, check_packages, check_torch, check_device, check_memory, check_video, check_weights,
          check_jupyter)


def examine() -> list[Finding]:
    """Runs every check; those that need torch are left out if it is missing."""
    findings = [check_python(), check_packages(), check_torch()]
    if findings[-1].status == "bad":
        return findings + [check_memory(), check_jupyter()]
    return findings + [check() for check in CHECKS[3:]]


def report(findings: list[Finding]) -> str:
    """The findings as lines of text, each with its remedy."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:4}  {finding.name:9} {finding.detail}")
        if finding.remedy:
            lines.append(f"      {'':9} {MENDS[finding.status]}{finding.remedy}")
    return "\n".join(lines)
