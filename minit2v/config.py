"""The two models of this course, side by side.

`mini()` is the model that the course trains on a laptop and that ships with the package;
`modelscope_1_7b()` is the released one (Wang et al. 2023, "ModelScope Text-to-Video Technical
Report", arXiv:2308.06571). Both are built from the same classes: whatever differs between a toy
and 1.7 billion parameters stands in this file and nowhere else.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import get_args

LEVELS, LAYERS, WIDTH = 8, 256, 2 ** 20                  # no network is larger; a damaged number may be
RANGES = {"res_blocks": (1, LAYERS), "layers": (1, LAYERS), "scaling_factor": (1e-6, 1e6), "dropout": (0, 1),
          "beta_start": (1e-9, 1), "beta_end": (1e-9, 1), "guidance_scale": (0, 1e6)}  # other numbers: 1 to WIDTH
CHOICES = {"prediction": ("noise", "velocity"), "spacing": (None, "modelscope", "leading", "linspace")}


@dataclass(frozen=True)
class AutoencoderConfig:
    """KL-VAE (Rombach et al. 2022). Each level after the first halves height and width."""

    channels: int = 128                                  # width at full resolution
    multipliers: tuple[int, ...] = (1, 2, 4, 4)          # width of each level, in units of `channels`
    res_blocks: int = 2                                  # residual blocks a level (the decoder has one more)
    latent_channels: int = 4
    norm_groups: int = 32
    scaling_factor: float = 0.18215                      # latents times this have about unit variance

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent cell: 8 for four levels."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class TextConfig:
    """OpenCLIP text tower. `layers` counts the blocks it was trained with; the last is not used."""

    width: int = 1024
    heads: int = 16
    layers: int = 24
    context_length: int = 77
    vocab_size: int = 49408
    merges: str | None = None                            # file of BPE merges; None: the one in open_clip


@dataclass(frozen=True)
class UNetConfig:
    """Spatial-temporal UNet (the original's UNetSD)."""

    latent_channels: int = 4
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)   # which levels have transformers
    head_dim: int = 64                                   # heads = width // head_dim
    input_heads: int = 8                                 # heads of the input temporal transformer
    context_dim: int = 1024                              # width of a text token
    norm_groups: int = 32
    dropout: float = 0.1                                 # in residual blocks and temporal convolutions


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule (Ho et al. 2020; betas linear in their square root), and what the network answers."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "noise"                            # or "velocity"; see diffusion.Process
    spacing: str | None = None                           # times visited; None: what each sampler is used to


@dataclass(frozen=True)
class ModelConfig:
    """A whole text-to-video model, and the clip it makes when nothing else is asked for."""

    name: str = "modelscope-1.7b"
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    num_frames: int = 16
    height: int = 256
    width: int = 256
    fps: int = 8
    guidance_scale: float = 9.0

    def to_json(self) -> str:
        """The configuration as indented JSON text; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Reads what `to_json` wrote. Raises ValueError for text that is no JSON object, a name that no field has, or
        a value that no model has.
        """
        return _build(cls, json.loads(text))


def _build(cls, values: dict):
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} is {values!r}; it must be a JSON object of its fields")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    parts = {"autoencoder": AutoencoderConfig, "text": TextConfig, "unet": UNetConfig, "diffusion": DiffusionConfig}
    return cls(**{name: _build(parts[name], v) if name in parts and cls is ModelConfig
                  else _checked(name, known[name].type, v) for name, v in values.items()})


def _checked(name: str, kind: type, value):
    """The value of a field, a list as a tuple. Raises ValueError for one of another type, or out of all bounds."""
    low, high = RANGES.get(name, (1, WIDTH))
    if name in CHOICES:
        fits, rule = value in CHOICES[name], f"one of {', '.join(map(repr, CHOICES[name]))}"
    elif kind in (int, float):
        fits = type(value) in (int, kind) and low <= value <= high
        rule = f"a {'whole ' if kind is int else ''}number from {low:g} to {high:g}"
    elif kind in (tuple[int, ...], tuple[bool, ...]):
        value, item = tuple(value) if isinstance(value, list) else value, get_args(kind)[0]
        fits = isinstance(value, tuple) and len(value) <= LEVELS and all(
            type(v) is item and (item is bool or 1 <= v <= high) for v in value)
        rule = f"a list of at most {LEVELS} " + ("of true and false" if item is bool else "whole numbers above 0")
    else:
        fits = isinstance(value, str) or (value is None and kind is not str)
        rule = "a text"
    if not fits:
        raise ValueError(f"{name} is {value!r}; it must be {rule}")
    return value


def modelscope_1_7b() -> ModelConfig:
    """The released model: 256 x 256 pixels, 16 frames, 1.84 billion parameters in use."""
    return ModelConfig()


def mini() -> ModelConfig:
    """The course's model: 64 x 64 pixels, 16 frames, a few million parameters."""
    return ModelConfig(
        name="mini",
        autoencoder=AutoencoderConfig(channels=8, multipliers=(1, 2, 4, 8), res_blocks=1, norm_groups=4,
                                      scaling_factor=1.0),
        text=TextConfig(width=128, heads=4, layers=4, context_length=40, vocab_size=896, merges="merges.txt.gz"),
        unet=UNetConfig(channels=32, multipliers=(1, 4), res_blocks=1, attention=(False, True), head_dim=32,
                        input_heads=1, context_dim=128, norm_groups=8, dropout=0.0),
        diffusion=DiffusionConfig(prediction="velocity"),
        height=64,
        width=64,
        guidance_scale=4.0,
    )
