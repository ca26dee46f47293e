"""What only the notebooks need: pictures, the exercises, the syllabus, and the build that makes notebooks out of text.

The model never imports this package; the chapters import it from their first cell on.
"""

import platform
from importlib.metadata import PackageNotFoundError, version

import minit2v

from .learner import check, hint, progress, solution, task

__all__ = ["check", "hint", "progress", "solution", "task", "versions"]


def versions() -> str:
    """One line that says what a notebook ran with, for a reader who compares and for a report of a bug."""
    found = [f"minit2v {minit2v.__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", "einops"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} is missing")
    return " · ".join(found)
