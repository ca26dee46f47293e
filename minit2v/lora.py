"""LoRA: fine-tuning by small added matrices, while the weights stay as they are (Hu et al. 2021, arXiv:2106.09685).

    y = W x + alpha / rank * B (A x)        A: (rank, in), B: (out, rank), rank far below in and out

B starts at zero, so that nothing changes at first. A and B are all that learns and all that is saved: at rank 4 a
hundredth of the attention layers they are added to. Merged, W + alpha / rank * B A is again a plain layer, as fast
as before.

On disk an adapter is a safetensors file with the names that diffusers and peft read. The factor alpha / rank is
multiplied into B on the way out, so no reader has to know it; read back, alpha equals the rank.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .checkpoints import UNET_DIFFUSERS, translate
from .files import write_whole
from .tensorfiles import read

ATTENTION = r"\.attn[12]\.to_(q|k|v|out)$"               # of which layers, by name: all of every attention


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
        """The weight as it was before `merge`, bit for bit."""
        if self.plain is not None:
            self.linear.weight.data, self.plain = self.plain, None


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

    path: the safetensors file; for peft's, adapter_config.json beside it says alpha. The ranks may differ from layer
    to layer. Raises FileNotFoundError if there is no such file, and ValueError, naming the tensors, if one is missing,
    has no layer here, or another shape, or if the file is damaged or holds no adapter at all. Nothing changes then.
    """
    if adapters(unet):
        raise ValueError("this UNet has adapters already; remove them before others are loaded")
    path = check_file(Path(path))
    stored, settings = read(path), path.with_name("adapter_config.json")
    alpha = json.loads(settings.read_text(encoding="utf-8")).get("lora_alpha") if settings.exists() else None
    ours = {translate(name + ".", UNET_DIFFUSERS): name for name, m in unet.named_modules() if isinstance(m, nn.Linear)}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        match = re.fullmatch(r"(?:unet\.|base_model\.model\.)?(.+\.)lora_(A|B)\.(?:default\.)?weight", key)
        layer = ours.get(match[1]) if match else None
        if not layer:
            raise ValueError(f"{path.name} holds {key}, and this UNet has no such layer; the adapter is of another "
                             "model")
        pairs.setdefault(layer, {})[match[2]] = value
    layers = dict(unet.named_modules())
    for name, pair in pairs.items():
        shape = tuple(layers[name].weight.shape)
        found = tuple(tuple(pair[p].shape) if p in pair else None for p in "BA")
        if None in found or found[0][1:] != found[1][:1] or (found[0][0], found[1][1]) != shape:
            raise ValueError(f"{path.name}: for {name}, {shape}, B and A are {found[0]} and {found[1]}; they should be "
                             f"({shape[0]}, rank) and (rank, {shape[1]})")
    if not pairs:
        raise ValueError(f"{path.name} holds no adapter; `lora.save` and `minit2v finetune --learns lora` write one")
    unet.requires_grad_(False)
    for name, pair in pairs.items():
        rank = len(pair["A"])
        adapter = LoRA(layers[name], rank, rank if alpha is None else alpha)
        adapter.down.data, adapter.up.data = (pair[p].to(layers[name].weight) for p in "AB")
        _replace(unet, name, adapter)
    return adapters(unet)


def share(unet: nn.Module) -> float:
    """How much of all parameters the adapters are, 0 to 1."""
    mine = sum(a.down.numel() + a.up.numel() for a in adapters(unet).values())
    return mine / max(1, sum(p.numel() for p in unet.parameters()))


def _replace(unet: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(unet.get_submodule(parent), last, module)
