"""The whole system: a sentence goes in, a clip comes out.

    prompt --tokenizer, text encoder--> context (N, L, D)
    seed   --generator--> noise (N, 4, F, h, w) --sampler, which asks the UNet at every step--> latents
    latents --autoencoder--> frames (N, 3, F, H, W) --> clip (N, F, H, W, 3), uint8

Each arrow is a module of its own; this one only strings them together, looks at what it is given before
the work begins, and keeps a model on disk: a folder with `config.json` and the weights of the three
networks as safetensors. The order of things, the defaults and their names are those of the original
(Wang et al. 2023, section 3.1) and of the pipeline in diffusers that serves its weights.
"""

import math
import os
import re
import shutil
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from minit2v import captions, layouts, limits, lora, offload, swap, video
from minit2v.autoencoder import Autoencoder
from minit2v.config import ModelConfig
from minit2v.diffusion import Process, draw_noise
from minit2v.files import write_whole
from minit2v.layouts import NETWORKS, networks  # noqa: F401  (networks: to make a model that has learnt nothing)
from minit2v.offload import present
from minit2v.text import TOKENIZERS, WEIGHTS, TextEncoder, Tokenizer
from minit2v.unet import UNet

SPACINGS = {"ddim": "modelscope", "ddpm": "modelscope", "dpm++": "linspace"}      # each sampler's times, if not asked
FUNCTIONS = {"ddim": "ddim", "ddpm": "ddpm", "dpm++": "dpm_solver_pp"}            # its name in samplers.py


class TextToVideo:
    """A model with all its parts: `tokenizer`, `text_encoder`, `unet`, `autoencoder`, `process`, `config`.

    `minit2v.load` makes one from weights; `TextToVideo(config, **networks(config))` one that has learnt nothing.
    """

    def __init__(self, config: ModelConfig, text_encoder: TextEncoder, unet: UNet, autoencoder: Autoencoder):
        self.config = config
        self.tokenizer = Tokenizer(config.text)
        self.text_encoder = text_encoder.eval()
        self.unet = unet.eval()
        self.autoencoder = autoencoder.eval()
        self.process = Process(config.diffusion)
        self.swapped: dict[str, object] = {}                                      # see `swap`
        self.guest_of: torch.device | None = None                                 # where to compute, if offloaded,
        self.offloaded: str | None = None                                         # and which way; see `offload`

    @property
    def device(self) -> torch.device:
        return self.guest_of or next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of this: what the autoencoder shrinks, times what the UNet halves."""
        return self.config.autoencoder.downscale * 2 ** (len(self.config.unet.multipliers) - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless frames can have height x width pixels."""
        for name, size in (("height", height), ("width", width)):
            _check_whole(name, size)
            if size != (nearest := max(1, round(size / self.size_multiple)) * self.size_multiple):
                raise ValueError(f"{name} is {size} pixels, but must be a multiple of {self.size_multiple} (what the "
                                 f"autoencoder shrinks, times what the UNet halves); try {nearest}")

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "TextToVideo":
        """Moves the three networks to a device, or to another number type, or both. Returns self."""
        for name in NETWORKS:
            getattr(self, name).to(device=device, dtype=dtype)
        if device is not None:
            self.guest_of = self.offloaded = None
        return self

    def offload(self, device: str | torch.device, way: str = "parts") -> "TextToVideo":
        """Lets the networks wait on the processor and compute on `device`, which need not hold them all. Returns self.

        way: "parts", one network after the other; or "blocks", and the UNet block by block (see offload.py).
        `to(device)` ends it. Raises ValueError for another way.
        """
        if way not in offload.WAYS:
            raise ValueError(f"the way to offload is {way!r}, but must be one of {', '.join(offload.WAYS)}")
        self.to("cpu")
        self.guest_of, self.offloaded = torch.device(device), way
        return self

    def at_work(self, name: str) -> AbstractContextManager:
        """Inside, the network of this name ("unet", ..) can compute on `self.device`, wherever its weights wait."""
        network = getattr(self, name)
        if self.offloaded == "blocks" and name == "unet":
            return offload.streaming(offload.stops(network), self.guest_of)
        return offload.visiting(network, self.guest_of) if self.offloaded else nullcontext()

    def swap(self, part: str | None = None, /, **replacements) -> "TextToVideo":
        """Lets the model run on other code: `pipe.swap(TemporalConv=MyTemporalConv)`. Returns self.

        replacements: by the name of ours, a class for every place in the networks where ours stands (it is called with
            the same arguments and gets the same weights, strictly), a sampler (ddim, ddpm, dpm_solver_pp),
            guided_denoiser, or Process. Our own class swaps back; `self.swapped` holds what is swapped in.
        part: "unet" or "autoencoder" where both have a class of that name, such as ResBlock; the UNet's is meant if
            nothing is said: `pipe.swap("autoencoder", ResBlock=MyResBlock)`.

        Raises ValueError, and changes nothing, if a name is unknown, or a class takes other arguments or has
        parameters of other names or shapes; the error lists them. See swap.py.
        """
        swap.swap(self, part, replacements)
        return self

    def load_lora(self, path: str | os.PathLike, scale: float = 1.0) -> "TextToVideo":
        """Adds what fine-tuning with LoRA learnt to the weights of the UNet, `scale` times. Returns self.

        path: a safetensors file of `minit2v finetune --learns lora`, diffusers or peft. It becomes part of the weights:
        to be rid of it, load the model anew. (lora.load keeps the two apart.) Raises ValueError, and changes nothing,
        for an adapter of another model.
        """
        for adapter in lora.load(self.unet, path).values():
            adapter.scale *= scale
        lora.merge(self.unet)
        lora.remove(self.unet)
        return self

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (N, L, D), what the UNet's cross-attention reads."""
        with self.at_work("text_encoder"):
            return self.text_encoder(self.tokenizer(prompts).to(self.device))

    def __call__(self, prompt: str | list[str], negative_prompt: str | list[str] = "", num_frames: int | None = None,
                 height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
                 guidance_scale: float | None = None, sampler: str = "ddim", eta: float = 0.0,
                 seed: int | list[int] = 0, latents: Tensor | None = None, progress: bool = True,
                 spacing: str | None = None, on_step=None, rounding: str = "round",
                 decode_chunk: int | None = None) -> Tensor:
        """Makes a clip of one prompt, (F, H, W, 3) uint8, or of a list of N prompts, (N, F, H, W, 3).

        negative_prompt: what the clip shall not show; guidance moves away from it. "" is the original's.
        num_frames, height, width: None takes those of `latents`, or else of the configuration.
        num_inference_steps: times the UNet is asked.
        guidance_scale: 1 is none; None is the model's own, 9 for the released one.
        sampler: "ddim" (the original's; eta from 0 to 1 adds randomness), "ddpm", or "dpm++" (good from 15 steps).
        seed: decides all noise. One number serves each prompt of a list alike, so a prompt in a list becomes
            the clip that it would become alone; a list of N seeds gives each its own.
        latents: the noise to start from, (N, 4, F, h, w), in the place of the one drawn from the seed.
        spacing: which times are visited ("modelscope", "leading", "linspace"); None is the model's own choice, if it
            has one (`config.diffusion.spacing`), or what each sampler is used to.
        on_step: called as on_step(i, x0) after step i with the guess so far of the clean latents, (N, 4, F, h, w).
        rounding: "round" to the nearest colour, or "truncate", as the original does: half of the values one darker.
        decode_chunk: frames that the autoencoder decodes at a time; fewer take less memory, the clip is the same.

        The same arguments give the same clip, bit for bit, on one machine. Raises ValueError for whatever
        does not fit, and as soon as a number is NaN or infinite; warns of words that were cut off, of words that
        the mini model never saw, and of another language than English where the weights know no other.
        """
        prompts = _listed(prompt, "prompt")
        negatives = _listed(negative_prompt, "negative_prompt", count=len(prompts))
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        spacing = self._check_sampling(sampler, spacing, num_inference_steps, guidance_scale, eta)
        generators = [torch.Generator().manual_seed(s) for s in _seeds(seed, len(prompts))]
        shape = self._latent_shape(len(prompts), num_frames, height, width, latents)
        video.to_uint8(torch.zeros(3, 1, 1, 1), rounding)                         # a wrong word is told before the work
        if self.config.name == "mini":
            captions.warn_of_unknown_words(prompts + negatives)
        if limits.is_released(self.config.text):
            limits.warn_of_language(prompts + negatives)

        # The sampler keeps its state in float32 around a half-precision network, as the original does.
        precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        start = draw_noise(shape, generators) if latents is None else latents
        times = self.process.times(num_inference_steps, spacing)
        bar = tqdm(total=len(times) - 1, desc=sampler, disable=not (progress and _is_watched()), leave=False)
        with torch.inference_mode(), offload.recycled(), bar:
            def after_step(i, x0):
                limits.check_step(x0, i + 1, len(times) - 1, self.dtype)
                bar.update()
                if on_step is not None:
                    on_step(i, x0)

            context = self.encode_text(prompts)                                       # (N, L, D)
            uncond = self.encode_text(negatives) if guidance_scale != 1 else None
            code = {**swap.FUNCTIONS, **self.swapped}
            chance = {"ddim": {"eta": eta, "generator": generators}, "ddpm": {"generator": generators}, "dpm++": {}}
            with self.at_work("unet"):
                denoise = code["guided_denoiser"](self.unet, self.process, context=context, uncond=uncond,
                                                  guidance_scale=guidance_scale)
                x = code[FUNCTIONS[sampler]](denoise, self.process, x=start.to(self.device, precision), times=times,
                                             on_step=after_step, **chance[sampler])
            limits.check_step(x, len(times) - 1, len(times) - 1, self.dtype)
            vae_dtype = next(self.autoencoder.parameters()).dtype
            with self.at_work("autoencoder"):
                frames = self.autoencoder.decode(x.to(vae_dtype), decode_chunk)       # (N, 3, F, H, W)
            limits.check_frames(frames, vae_dtype)
            clips = video.to_uint8(frames.float(), rounding).cpu()                    # (N, F, H, W, 3)
        clips = clips.clone()                                    # a tensor made in inference mode may not be changed
        return clips[0] if isinstance(prompt, str) else clips

    def save(self, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> Path:
        """Writes the model so that `load(folder)` finds it: config.json, *.safetensors and the tokenizer's merges.

        dtype: number type on disk, float16 halves the files; None keeps the weights' own. All files are written
        under other names first and renamed at the end, config.json last: a folder that has one is whole.
        """
        if lora.adapters(self.unet):
            raise ValueError("this model has LoRA adapters beside its weights; lora.save(pipe.unet, FILE) writes them "
                             "alone, lora.merge and then lora.remove make them part of the weights")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config
        with ExitStack() as renames:                             # leaves in reverse: the first entered is renamed last
            config_file = renames.enter_context(write_whole(folder / "config.json"))
            if config.text.merges is not None:
                merges = WEIGHTS / config.text.merges                # an absolute path stays what it is
                config = replace(config, text=replace(config.text, merges=merges.name))
                shutil.copyfile(merges, renames.enter_context(write_whole(folder / merges.name)))
            for name in NETWORKS:
                tensors = {key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
                           for key, tensor in getattr(self, name).state_dict().items()}
                save_file(tensors, renames.enter_context(write_whole(folder / f"{name}.safetensors")))
            config_file.write_text(config.to_json() + "\n", encoding="utf-8")
        return folder

    def _check_sampling(self, sampler, spacing, steps, guidance_scale, eta) -> str:
        if sampler not in SPACINGS:
            raise ValueError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SPACINGS)}")
        _check_whole("num_inference_steps", steps, most=self.process.timesteps)
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale}, but must be a finite number; 1 is none, 9 is usual")
        if not 0 <= eta <= 1 or (eta > 0 and sampler != "ddim"):
            raise ValueError(f"eta is {eta} with the sampler {sampler}; it must lie between 0 and 1, and only ddim "
                             "knows it (ddpm is always random, dpm++ never)")
        return (self.config.diffusion.spacing or SPACINGS[sampler]) if spacing is None else spacing

    def _latent_shape(self, count, num_frames, height, width, latents) -> tuple[int, ...]:
        """(N, 4, F, h, w) for the sizes asked for; checks them, and that `latents`, if given, are like that."""
        downscale, channels = self.config.autoencoder.downscale, self.config.unet.latent_channels
        default = self.config.num_frames, self.config.height, self.config.width
        if latents is not None:
            if latents.ndim != 5:
                raise ValueError(f"latents have shape {tuple(latents.shape)}; the start noise must be (prompts, "
                                 f"{channels}, frames, height, width)")
            default = latents.shape[2], latents.shape[3] * downscale, latents.shape[4] * downscale
        asked = [value if given is None else given for given, value in zip((num_frames, height, width), default)]
        _check_whole("num_frames", asked[0])
        self.check_size(*asked[1:])
        shape = (count, channels, asked[0], asked[1] // downscale, asked[2] // downscale)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, but for {count} prompts of {asked[0]} frames "
                             f"and {asked[1]} x {asked[2]} pixels, they must be {shape}")
        if latents is not None and not latents.isfinite().all():
            raise ValueError("latents hold values that are NaN or infinite; the start noise must be finite numbers")
        return shape


def load(source: str | os.PathLike | None = None, dtype: str | torch.dtype | None = None,
         device: str | torch.device | None = None, vae_dtype: str | torch.dtype | None = None,
         tokenizer: str = "open_clip", offload: str | None = None) -> TextToVideo:
    """Loads a model: the mini model that comes with the package, that of a folder, or one of the Hugging Face Hub.

    source: None for the mini model; a folder that `TextToVideo.save` wrote, or one with released weights in the
        layout of diffusers or ModelScope, recognised by itself (see `layouts`); or "owner/name" on the Hub.
    dtype: "float32" (the default, whatever the files hold), "float16", "bfloat16", "float64", or a torch.dtype.
    device: where the networks run, the CPU by default. Weights are mapped from the file, not copied, where
        their number type allows; otherwise they are converted one by one. There is never a second copy.
    vae_dtype: the autoencoder's number type, `dtype` by default. "float32" where it overflows in float16.
    tokenizer: "open_clip", the original's; or "hub", what transformers makes of the files on the Hub, which reads
        "!" and a few other things differently (`text.HubTokenizer`): for numbers that equal those of diffusers.
    offload: "parts" or "blocks" for a device that cannot hold all networks at once (see `TextToVideo.offload`).

    Of the released weights it says on the standard error what they cannot do, once (`limits.NOTE`).
    Raises FileNotFoundError for a missing file and ValueError for a device that is not there, for a damaged file, for
    one that carries code (nothing of it is run), or one whose tensors are not those of the configuration. Nothing is
    loaded then.
    """
    folder, name = WEIGHTS if source is None else Path(source), None
    dtype, device = _number_type(dtype), present(device)
    vae_dtype = dtype if vae_dtype is None else _number_type(vae_dtype)
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer {tokenizer!r} is unknown; choose one of {', '.join(TOKENIZERS)}")
    half = dtype.itemsize == 2
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        from .hub import fetch
        try:
            folder, name = fetch(str(source), half=half), str(source)
        except (FileNotFoundError, ConnectionError) as error:
            raise type(error)(f"there is no folder {str(source)!r} here; as the id of a model on the Hub: {error}"
                              ) from error
    stored = layouts.open_model(folder, half)
    parts = {network: stored.part(network) for network in NETWORKS}      # all is accounted for before any is loaded
    for network, part in parts.items():
        tensors = part.tensors(vae_dtype if network == "autoencoder" else dtype, "cpu" if offload else device)
        stored.networks[network].load_state_dict(tensors, strict=True, assign=True)
    pipe = TextToVideo(replace(stored.config, name=name or stored.config.name), **stored.networks)
    if tokenizer != "open_clip":                                                  # which the pipeline has made already
        pipe.tokenizer = TOKENIZERS[tokenizer](pipe.config.text)
    if offload is not None:
        pipe.offload(device, offload)
    if limits.is_released(pipe.config.text):
        limits.tell()
    return pipe


def _is_watched() -> bool:
    """Whether somebody sees a progress bar: in a terminal or in a notebook, but not in a log file."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def _listed(prompt: str | list[str], name: str, count: int | None = None) -> list[str]:
    prompts = [prompt] * (count or 1) if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{name} is {prompt!r}, but must be a string, or a list of at least one")
    if count not in (None, len(prompts)):
        raise ValueError(f"{len(prompts)} strings as {name} for {count} prompts; give one for all, or one for each")
    return list(prompts)


def _seeds(seed: int | list[int], count: int) -> list[int]:
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed] * count
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts; give one for all, or one for each")
    for s in seeds:
        if not isinstance(s, int) or not 0 <= s < 2 ** 63:
            raise ValueError(f"seed is {s!r}, but must be a whole number from 0 to 2^63 - 1")
    return seeds


def _check_whole(name: str, value: int, most: int | None = None) -> None:
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}, but must be a whole number, {limits}")


def _number_type(dtype: str | torch.dtype | None) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype is None or dtype in known:
        return known[dtype or "float32"]
    if dtype in known.values():
        return dtype
    raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(known)}")
