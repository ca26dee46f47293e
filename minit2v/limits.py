"""What the released weights cannot do, said where it is used.

The model cards name the limits (ali-vilab/text-to-video-ms-1.7b; damo/text-to-video-synthesis): English only, no
legible text, the biases of the web videos it learnt from, no commercial use. The watermark is in no card; it came in
with stock footage (modelscope issue 325). The last function is about half precision: float16 ends at 65,504, and one
value beyond it makes a black clip.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
import warnings
from typing import TYPE_CHECKING

from minit2v.config import TextConfig

if TYPE_CHECKING:                                        # `minit2v download` need not wait for torch
    import torch

NOTE = ("the released weights are for non-commercial use only (CC-BY-NC-4.0). They understand English only, write no "
        "legible text, often paint a stock-footage watermark, and repeat the biases of videos from the web")


def is_released(config: TextConfig) -> bool:
    """Whether a text encoder reads CLIP's own vocabulary, as the released one and its descendants do."""
    return config.merges is None


@functools.cache
def tell() -> None:
    """Says on the standard error what the released weights cannot do, once in a process."""
    print(f"minit2v: note: {NOTE}", file=sys.stderr)


def warn_of_language(prompts: list[str]) -> None:
    """One warning for all prompts that are not in Latin letters; the line it points at is the caller's caller's."""
    foreign = list(dict.fromkeys(prompt for prompt in prompts if not is_latin(prompt)))
    if foreign:
        warnings.warn(f"the released weights understand English only; to them {', '.join(map(repr, foreign))} says "
                      "next to nothing. Write it in English; for Chinese, minit2v.translate.to_english does that "
                      "(`minit2v generate --translate`)", stacklevel=3)


def is_latin(text: str) -> bool:
    """Whether all letters are Latin ones; digits, punctuation and emoji are no letters."""
    return all(unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN")) for letter in text
               if letter.isalpha())


def check_step(x0: torch.Tensor, step: int, steps: int, dtype: torch.dtype) -> None:
    """Raises ValueError that names the step if the guess of the clean latents is not finite."""
    _check(x0, f"step {step} of {steps}", dtype, "Load the model in float32, or in bfloat16, which reaches as far: "
           'load(..., dtype="float32"), or --dtype float32')


def check_frames(frames: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError if decoded frames are not finite."""
    _check(frames, "decoding", dtype, "Keep the autoencoder in float32; the UNet can stay as it is: "
           'load(..., vae_dtype="float32"), or --vae-dtype float32')


def _check(x: torch.Tensor, where: str, dtype: torch.dtype, remedy: str) -> None:
    if x.isfinite().all():
        return
    bad, name = int((~x.isfinite()).sum()), str(dtype).removeprefix("torch.")
    if dtype.itemsize > 2:
        remedy = "That number type has room, so the weights are damaged or of another model; see `minit2v inspect`"
    raise ValueError(f"{where} gave {bad} values that are NaN or infinite (of {x.numel()}), computed in {name}. "
                     f"{remedy}.")
