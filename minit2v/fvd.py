"""FVD and CLIPSIM, as papers compute them: for the released weights, with networks that are not part of this package.

FVD is the Frechet distance of 400 numbers a clip, the logits of I3D, a network that names human actions. We follow
StyleGAN-V (Skorokhodov et al. 2022), as most papers since: 2048 real and 2048 generated clips of 16 frames, I3D as
TorchScript (`i3d_torchscript.pt`), called with rescale=True, resize=True, return_features=True on values 0 to 255;
covariances divided by N. CLIPSIM is the cosine of CLIP's vectors (ViT-B/32) of a caption and of a clip, whose vector
is the mean over its frames (FETV: Liu et al. 2023, arXiv:2311.01813). `collect` asks both networks about a folder of
films and a model's clips of their captions, a few clips at a time: 2048 of them would not fit into most memories.

How safe is that? CLIP's file holds tensors only; it is read by safetensors or by torch.load(weights_only=True), and
cannot run anything. TorchScript is a *program*. torch.jit.load gives it no Python, no shell and no network, but it may
call what torch's operators can do, some of which read and write files, and the loader itself is not made for files
that mean harm: PyTorch's own advice is to treat such a file like a program from a stranger. So it is loaded only if
named by the user, never fetched, and its SHA-256 is compared with the one the user knows before it is opened; without
one it is printed, so that next time there is one to compare with. Who trusts neither runs it in a container.
"""

import hashlib
import logging
import random
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import footage, frechet, metrics
from .pipeline import TextToVideo

FRAMES, CLIPS = 16, 2048                 # of the protocol
LEAST_FRAMES = 10                        # with fewer nothing is left after I3D's strides
CLIP_NAME = "ViT-B-32-quickgelu"         # OpenAI's weights, which papers use; LAION's are "ViT-B-32"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_i3d(path: str | Path, sha256: str | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """I3D from a TorchScript file. It is a program: see this module's first lines.

    sha256: 64 hexadecimal digits that the file must have. None: a warning says which it has.
    Raises FileNotFoundError if there is no such file, and ValueError for another digest or no TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no I3D in {str(path)!r}; it is the file i3d_torchscript.pt whose address "
                                "stands in StyleGAN-V's frechet_video_distance.py")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is None:
        warnings.warn(f"{path.name} is a program, and was not compared with anything; --i3d-sha256 {found} makes sure "
                      "that it is this file the next time", stacklevel=2)
    elif sha256.lower() != found:
        raise ValueError(f"the SHA-256 of {path} is {found}, not {sha256}: this is another file, and it was not opened")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is no TorchScript: {str(error).strip().splitlines()[0]}") from error


@torch.no_grad()
def i3d_features(detector: nn.Module, clips: Tensor, device: str | torch.device = "cpu", batch: int = 8,
                 progress: bool = True) -> Tensor:
    """Clips (N, F, H, W, 3) uint8, of 16 frames in the protocol -> features (N, 400) float32.

    Raises ValueError for fewer than ten frames.
    """
    if clips.shape[1] < LEAST_FRAMES:
        raise ValueError(f"the clips have {clips.shape[1]} frames; I3D needs {LEAST_FRAMES}, and the protocol {FRAMES}")
    parts = tqdm(clips.split(batch), desc="I3D", disable=not progress)
    return torch.cat([detector(part.to(device).permute(0, 4, 1, 2, 3).contiguous(), rescale=True, resize=True,
                               return_features=True).float().cpu() for part in parts])        # in: (B, 3, F, H, W)


def fvd(features_a: Tensor, features_b: Tensor) -> float:
    """The Frechet distance of I3D's features as StyleGAN-V takes it: covariances are divided by N."""
    return frechet.distance(features_a, features_b, correction=0)


class Clip:
    """An open_clip model from a file of weights: `embed(clips)` and `embed_text(captions)`, vectors of length one.

    path: a state dict of open_clip, .safetensors, or .bin or .pt that torch.save wrote. name: open_clip's name of the
    architecture. Raises FileNotFoundError if there is no such file, ValueError for weights of another architecture.
    """

    def __init__(self, path: str | Path, name: str = CLIP_NAME, device: str | torch.device = "cpu"):
        import open_clip

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no CLIP in {str(path)!r}; it is a file of open_clip's weights of "
                                    "ViT-B/32, 605 MB, such as open_clip_model.safetensors of the Hub's "
                                    "timm/vit_base_patch32_clip_224.openai")
        if name not in open_clip.list_models():
            raise ValueError(f"open_clip knows no model {name!r}; for OpenAI's weights it is {CLIP_NAME!r}")
        with torch.random.fork_rng(devices=[]), _quiet():             # it draws weights first, and warns that it did
            self.model = open_clip.create_model(name)
        self.device = device
        self.tokenizer = open_clip.get_tokenizer(name)
        try:
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            state = state.get("state_dict", state)
            self.model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        except Exception as error:
            raise ValueError(f"{path} does not hold the weights of open_clip's {name}: {str(error)[:300]}") from error
        self.model.eval().requires_grad_(False).to(device)
        self.size = self.model.visual.image_size[0] if isinstance(self.model.visual.image_size, tuple) else (
            self.model.visual.image_size)

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames (N, H, W, 3) uint8 -> (N, 3, 224, 224): the shorter side scaled, bicubic; the middle; CLIP's mean."""
        x = frames.permute(0, 3, 1, 2).float()                                                # (N, 3, H, W)
        sides = [self.size * side // min(x.shape[-2:]) for side in x.shape[-2:]]
        x = F.interpolate(x, sides, mode="bicubic", antialias=True).clamp(0, 255) / 255
        top, left = (round((side - self.size) / 2) for side in sides)
        x = x[:, :, top:top + self.size, left:left + self.size]                               # (N, 3, 224, 224)
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        return (x - mean) / std

    @torch.inference_mode()
    def embed(self, clips: Tensor, progress: bool = True) -> Tensor:
        """Clips (N, F, H, W, 3) uint8 -> (N, D): the mean of at most 16 frames' vectors. The frames' order is lost."""
        found = []
        for clip in tqdm(clips, desc="CLIP", disable=not progress):
            picked = torch.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().long()
            vectors = self.model.encode_image(self.pixels(clip[picked]).to(self.device)).float().cpu()    # (16, D)
            found.append(F.normalize(F.normalize(vectors, dim=-1).mean(0), dim=-1))
        return torch.stack(found)

    @torch.inference_mode()
    def embed_text(self, captions: list[str], batch: int = 64) -> Tensor:
        """Captions -> (N, D). CLIP reads English, and 77 tokens."""
        parts = [captions[i:i + batch] for i in range(0, len(captions), batch)]
        vectors = [self.model.encode_text(self.tokenizer(part).to(self.device)).float().cpu() for part in parts]
        return F.normalize(torch.cat(vectors), dim=-1)


# ---------------------------------------------------------------- a folder of films, and a model's clips

def collect(pipe: TextToVideo, folder: str | Path, count: int, networks: dict[str, Callable[[Tensor], Tensor]],
            halves: bool, seed: int = 0, progress: bool = True,
            **settings) -> tuple[list[str], dict[str, dict[str, Tensor]]]:
    """What networks, {name: function of clips (N, F, H, W, 3)}, say of films and of clips made of their captions.

    Returns the captions, of `count` films at most, and {kind: {name: (N, D)}}. Kinds: "model", "shuffled", "real",
    "real shuffled", row i of each about caption i. halves: also "other", as many films (or one more) that lend no
    caption. Then all kinds are equally many, and compared with films of which none is among them.
    A film that cannot be read is left out with a warning, before a clip is made. Raises ValueError for fewer than four.
    """
    config, films = pipe.config, []
    found, _ = footage.scan(folder, config.num_frames, config.fps, progress=progress)
    wanted = min(2 * count if halves else count, len(found))

    def read():
        for film in tqdm(random.Random(f"films {seed}").sample(found, len(found)), desc="reading films",
                         disable=not progress):
            try:
                clip = footage.read_clip(film, config.num_frames, config.fps, config.height, config.width)
            except ValueError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            films.append(film)
            yield clip[None]                                                                  # (1, F, H, W, 3)
            if len(films) == wanted:
                return

    def make():
        for i in tqdm(range(0, len(captions), 4), desc="generating clips", disable=not progress):
            yield metrics.generate(pipe, captions[i:i + 4], seed=seed + i, progress=False, **settings)

    real, mixed = _look(networks, read(), seed)
    if len(films) < 4:
        raise ValueError(f"{len(films)} of the {len(found)} films in {folder} were read, for {count} clips; a distance "
                         f"needs 4 films, and a reported one {CLIPS}")
    asked = len(films) // 2 if halves else len(films)
    captions = [film.caption for film in films[:asked]]
    kinds = dict(zip(("model", "shuffled"), _look(networks, make(), seed)))
    kinds |= {kind: {name: rows[:asked] for name, rows in lot.items()}
              for kind, lot in (("real", real), ("real shuffled", mixed))}
    return captions, {**kinds, "other": {name: rows[asked:] for name, rows in real.items()}} if halves else kinds


def _look(networks: dict[str, Callable], batches: Iterable[Tensor], seed: int) -> list[dict[str, Tensor]]:
    """What networks say of clips, and of the same with their frames shuffled: {name: (N, D)} each. No clip is kept."""
    lots = [{name: [] for name in networks} for _ in range(2)]
    for i, clips in enumerate(batches):
        for lot, shown in zip(lots, (clips, metrics.shuffled(clips, seed + i))):
            for name, network in networks.items():
                lot[name].append(network(shown))
    return [{name: torch.cat(parts) for name, parts in lot.items() if parts} for lot in lots]


@contextmanager
def _quiet():
    """Without what is logged as a warning or less."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
