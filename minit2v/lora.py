"""LoRA: fine-tuning by small added matrices, while the weights stay as they are (Hu et al. 2021, arXiv:2106.09685).

    y = W x + alpha / rank * B (A x)        A: (rank, in), B: (out, rank), rank far below in and out

B starts at zero, so that nothing changes at first. A and B are all that learns and all that is saved: at rank 4 a
hundredth of the attention layers they are added to. Merged, W + alpha / rank * B A is again a plain layer, as fast
as before.

On disk an adapter is a safetensors file with the names of diffusers' own LoRA files. The factor alpha / rank is
multiplied into B on the way out, so no reader has to know it; read back, alpha equals the rank.

diffusers' `load_lora_weights` reads the file, but not by itself: since diffusers 0.32 the class of this UNet lacks the
methods for LoRA that the other UNets have. It works (where all ranks are alike, as `add` makes them, or from diffusers
0.40 on) once the UNet of a TextToVideoSDPipeline `pipe` has borrowed them:

    from diffusers.loaders import PeftAdapterMixin
    pipe.unet.__class__ = type("UNet3DConditionModel", (type(pipe.unet), PeftAdapterMixin), {})
    pipe.load_lora_weights("runs/cats/lora.safetensors")
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .checkpoints import UNET_DIFFUSERS, translate
from .files import write_whole
from .tensorfiles import read

ATTENTION = r"\.attn[12]\.to_(q|k|v|out)$"               # of which layers, by name: all of every attention
TENSOR = r"(?:unet\.|base_model\.model\.)?(.+)\.lora(_A|_B|\.down|\.up)\.(?:default\.)?weight"     # layer, A or B

# Settings of an adapter, and the values with which A, B and alpha say all. (Other starts of A and B, such as PiSSA's,
# change the weight beside them, too.)
PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}
# And those that may be switched on: they say where it stands, as the tensors do, or how it learnt, or `_alphas` reads
# them. Whatever else is switched on is refused.
KNOWN = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
         "use_rslora", "inference_mode", "auto_mapping", "fan_in_fan_out", "eva_config"}


class LoRA(nn.Module):
    """A linear layer with an adapter beside it. x: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__()
        if not 1 <= rank <= min(linear.in_features, linear.out_features):
            raise ValueError(f"rank is {rank}; for a layer of {linear.in_features} to {linear.out_features} numbers it "
                             f"lies between 1 and {min(linear.in_features, linear.out_features)}")
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        bound = linear.in_features ** -0.5               # as torch draws the weights of a linear layer
        generator = generator or torch.Generator().manual_seed(0)                        # never torch's global one
        down = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(linear.weight))                                # A (rank, in)
        self.up = nn.Parameter(torch.zeros_like(linear.weight[:, :1].expand(-1, rank)))  # B (out, rank)
        self.plain: Tensor | None = None                 # the weight as it was, while the adapter is merged into it

    def forward(self, x: Tensor) -> Tensor:
        if self.plain is not None:
            return self.linear(x)
        return self.linear(x) + self.scale * (x @ self.down.T @ self.up.T)

    def merge(self) -> None:
        """Adds the adapter to the weight. Merging twice changes nothing more."""
        if self.plain is None:
            self.plain = self.linear.weight.data
            self.linear.weight.data = self.plain + self.scale * (self.up @ self.down).detach()

    def unmerge(self) -> None:
        """The weight as it was before `merge`, bit for bit, in the type and on the device that it has by now."""
        if self.plain is not None:
            self.linear.weight.data, self.plain = self.plain.to(self.linear.weight), None


def adapters(unet: nn.Module) -> dict[str, LoRA]:
    """The adapters of a UNet by the names of the layers they stand beside."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRA)}


def chosen(unet: nn.Module, where: str = ATTENTION) -> dict[str, nn.Linear]:
    """The linear layers whose names match the regular expression `where`. Raises ValueError if there are none."""
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
    try:
        found = {name: module for name, module in layers.items() if re.search(where, name)}
    except re.error as error:
        raise ValueError(f"{where!r} is no regular expression: {error}") from error
    if not found:
        raise ValueError(f"no linear layer has a name that matches {where!r}; names look like {next(iter(layers))}")
    return found


def add(unet: nn.Module, rank: int = 4, alpha: float | None = None, where: str = ATTENTION,
        generator: torch.Generator | None = None) -> dict[str, LoRA]:
    """Puts adapters beside the linear layers whose names match `where`, and freezes everything else.

    alpha: the adapter counts alpha / rank times; the rank by default. generator: draws A, on the CPU.
    Raises ValueError if no layer matches, if there are adapters already, or for a rank that does not fit.
    """
    if adapters(unet):
        raise ValueError("this UNet has adapters already; remove them first (what is merged stays in the weights)")
    layers = chosen(unet, where)
    generator = generator or torch.Generator().manual_seed(0)
    made = {name: LoRA(linear, rank, rank if alpha is None else alpha, generator) for name, linear in layers.items()}
    unet.requires_grad_(False)
    for name, adapter in made.items():
        _replace(unet, name, adapter)
        adapter.down.requires_grad_()
        adapter.up.requires_grad_()
    return made


def merge(unet: nn.Module) -> None:
    """Merges every adapter; the model computes the same, as fast as without."""
    for adapter in adapters(unet).values():
        adapter.merge()


def unmerge(unet: nn.Module) -> None:
    """Takes every adapter out of the weights again, bit for bit."""
    for adapter in adapters(unet).values():
        adapter.unmerge()


def remove(unet: nn.Module) -> None:
    """Takes the adapters away. What is merged stays merged: merge, then remove, makes the change for good."""
    for name, adapter in adapters(unet).items():
        _replace(unet, name, adapter.linear)


def save(unet: nn.Module, path: str | Path) -> None:
    """Writes the adapters, and nothing else, under diffusers' names. Raises ValueError if there are none."""
    found = adapters(unet)
    if not found:
        raise ValueError("this UNet has no adapters to save; add them first")
    tensors = {}
    for name, adapter in found.items():
        theirs = "unet." + translate(name + ".", UNET_DIFFUSERS)
        tensors[f"{theirs}lora_A.weight"] = adapter.down.detach().contiguous()
        tensors[f"{theirs}lora_B.weight"] = (adapter.scale * adapter.up.detach()).contiguous()
    with write_whole(Path(path)) as part:
        save_file(tensors, part, metadata={"format": "pt"})


def check_file(path: Path) -> Path:
    """Returns `path`. Raises FileNotFoundError that says what to give if there is no file."""
    if path.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is a folder; name the file of the adapter in it, such as "
                                f"{str(path / 'lora.safetensors')!r}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter {str(path)!r}; `minit2v finetune --learns lora --out DIR` writes "
                                "one as DIR/lora.safetensors")
    return path


def load(unet: nn.Module, path: str | Path) -> dict[str, LoRA]:
    """Adds the adapters of a file that `save`, diffusers' save_lora_weights or peft's save_pretrained wrote.

    path: the safetensors file. Of peft's, adapter_config.json beside it says alpha, of diffusers' the file's header, or
    else alpha is the rank. Rank and alpha may differ from layer to layer. Raises FileNotFoundError if a file is not
    there, and ValueError, naming it, if a tensor is missing, has no layer here, or another shape; if a setting asks for
    more than A and B, as DoRA does; or if a file is damaged or holds no adapter at all. Nothing changes then.
    """
    if adapters(unet):
        raise ValueError("this UNet has adapters already; remove them before others are loaded")
    path = check_file(Path(path))
    stored = read(path)
    alphas, root = _alphas(path, stored)
    layers = dict(unet.named_modules())
    ours = {translate(name + ".", UNET_DIFFUSERS)[:-1]: name for name, m in layers.items() if isinstance(m, nn.Linear)}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        match = re.fullmatch(TENSOR, key)
        if not match:
            raise ValueError(f"{path.name} holds {key}, which is neither A nor B of LoRA; nothing but these can be "
                             "read here, no DoRA, no bias, no whole layer")
        if match[1] not in ours:
            raise ValueError(f"{path.name} holds {key}, and this UNet has no such layer; the adapter is of another "
                             "model")
        pairs.setdefault(match[1], {})["A" if match[2] in ("_A", ".down") else "B"] = value
    for there, pair in pairs.items():
        name = ours[there]
        shape = tuple(layers[name].weight.shape)
        found = tuple(tuple(pair[p].shape) if p in pair else None for p in "BA")
        if None in found or found[0][1:] != found[1][:1] or (found[0][0], found[1][1]) != shape:
            raise ValueError(f"{path.name}: for {name}, {shape}, B and A are {found[0]} and {found[1]}; they should be "
                             f"({shape[0]}, rank) and (rank, {shape[1]})")
    if not pairs:
        raise ValueError(f"{path.name} holds no adapter; `lora.save` and `minit2v finetune --learns lora` write one")
    unet.requires_grad_(False)
    for there, pair in pairs.items():
        name, rank = ours[there], len(pair["A"])
        alpha = next((alpha for pattern, alpha in alphas if pattern.fullmatch(there)), rank)
        adapter = LoRA(layers[name], rank, alpha * rank ** 0.5 if root else alpha)
        adapter.down.data, adapter.up.data = (pair[p].to(layers[name].weight) for p in "AB")
        _replace(unet, name, adapter)
    return adapters(unet)


def share(unet: nn.Module) -> float:
    """How much of all parameters the adapters are, 0 to 1."""
    mine = sum(a.down.numel() + a.up.numel() for a in adapters(unet).values())
    return mine / max(1, sum(p.numel() for p in unet.parameters()))


def _alphas(path: Path, names: Iterable[str]) -> tuple[list[tuple[re.Pattern, float]], bool]:
    """alpha by patterns of diffusers' names, the first that matches counts; and if the rank's square root divides it.

    They stand in adapter_config.json beside a file of peft's, and in the header of a file of diffusers'.
    """
    where, text = path.name, "{}"
    if any(name.startswith("base_model.model.") for name in names):
        where = path.with_name("adapter_config.json")
        if not where.is_file():
            raise FileNotFoundError(f"{path.name} is a file of peft's, whose alpha stands in {where.name}, and "
                                    f"there is none beside it; copy it into {str(path.parent)!r}, too")
        text = where.read_bytes()
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        settings = {name.removeprefix("unet."): value for name, value in json.loads(text).items()
                    if not name.startswith("text_encoder")}
        alphas = [*(settings.get("alpha_pattern") or {}).items(), (".*", settings.get("lora_alpha", 8))]  # 8 as in peft
        alphas = [(re.compile(rf"(.*\.)?({name})"), float(alpha)) for name, alpha in alphas]
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ValueError(f"the settings of the adapter in {where} cannot be read ({error}); copy it again") from error
    for name, value in settings.items():
        switched = value is True or isinstance(value, (dict, list))
        if value and (value not in PLAIN[name] if name in PLAIN else switched and name not in KNOWN):
            raise ValueError(f"{where} sets {name} to {value!r}, and here nothing but A, B and alpha can be read; "
                             "merge the adapter into its model with peft, or train it without that")
    return alphas if settings else [], bool(settings.get("use_rslora"))


def _replace(unet: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(unet.get_submodule(parent), last, module)
