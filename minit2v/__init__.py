"""A text-to-video diffusion model at two scales: one that a laptop trains, and ModelScope's 1.7B.

    import minit2v
    pipe = minit2v.load()                          # the small model, which comes with the package
    clip = pipe("a red circle moves right")        # (16, 64, 64, 3), uint8
    minit2v.save(clip, "clip.mp4")
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {"TextToVideo": "pipeline", "load": "pipeline", "mini": "config", "modelscope_1_7b": "config",
          "save": "video", "show": "video"}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    # Imported when first used, so that `minit2v --help` need not wait for torch,
    # and `minit2v doctor` still runs where torch is missing.
    if name in _HOMES:
        return getattr(import_module(f"minit2v.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'minit2v' has no attribute {name!r}; it offers {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
