"""The syllabus: chapters, notation and glossary of the whole course, said once.

`readme()` makes notebooks/README.md of it, and a test asks `introduced` whether a chapter uses anything
before its time.
"""

from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]


class Chapter(NamedTuple):
    number: int
    slug: str
    builds: str
    minutes: int                                    # to read, run and play with; running alone takes a minute or two

    @property
    def name(self) -> str:
        return f"{self.number:02d}_{self.slug}"


CHAPTERS = [Chapter(number, *rest) for number, rest in enumerate([
    ("first_clip", "nothing yet: one cell makes a clip; the map of the system", 15),
    ("video_as_tensors", "clips as tensors, a scene renderer, captions in two languages, a referee", 60),
    ("autoencoder", "the KL-VAE: frames become latents that are 48 times smaller, and come back", 75),
    ("text", "byte-pair encoding, the text tower, contrastive training", 75),
    ("diffusion", "the noise schedule, noise and velocity prediction, the training loop", 75),
    ("image_unet", "residual block, attention, the U: text to image", 90),
    ("sampling", "DDPM, DDIM, DPM-Solver++, guidance", 75),
    ("into_time", "temporal convolution and attention, and why they start as nothing", 75),
    ("text_to_video", "spatial, then temporal training; the whole pipeline", 75),
    ("measuring", "the referee's table, Fréchet distance, confidence", 60),
    ("the_released_model", "where the 1.7 billion parameters are; loading them", 60),
    ("real_clips", "prompts, guidance, seeds, limits", 45),
    ("fine_tuning", "LoRA, temporal-only training, more than one device", 75),
])]

# Which chapter introduces what: a module, or a name of it that comes earlier or later than the rest of the module.
# The package's public interface (minit2v.load, show, save) is there from the first clip on.
INTRODUCED = {
    "minit2v": 0, "minit2v.course": 0,
    "minit2v.video": 1, "minit2v.world": 1, "minit2v.captions": 1, "minit2v.referee": 1, "minit2v.referee.read": 0,
    "minit2v.config": 2, "minit2v.autoencoder": 2, "minit2v.muon": 2, "minit2v.upsample": 2, "minit2v.winograd": 2,
    "minit2v.text": 3,
    "minit2v.diffusion": 4, "minit2v.diffusion.guided_denoiser": 6, "minit2v.training": 4,
    "minit2v.attention": 5, "minit2v.few": 5, "minit2v.levels": 5, "minit2v.unet": 5,
    "minit2v.samplers": 6, "minit2v.samplers.posterior": 4,
    "minit2v.unet.FrameConv": 7, "minit2v.unet.TemporalConv": 7, "minit2v.unet.TemporalTransformer": 7,
    "minit2v.data": 8, "minit2v.recipe": 8, "minit2v.pipeline": 8, "minit2v.ablation": 8,
    "minit2v.metrics": 9, "minit2v.frechet": 9, "minit2v.judge": 9, "minit2v.evaluate": 9, "minit2v.fvd": 9,
    "minit2v.published": 9,
    "minit2v.checkpoints": 10, "minit2v.layouts": 10, "minit2v.tensorfiles": 10, "minit2v.configfiles": 10,
    "minit2v.convert": 10, "minit2v.inventory": 10, "minit2v.memory": 10, "minit2v.offload": 10,
    "minit2v.hub": 11, "minit2v.limits": 11, "minit2v.translate": 11, "minit2v.swap": 11,
    "minit2v.lora": 12, "minit2v.finetune": 12, "minit2v.footage": 12, "minit2v.examples": 12,
    "minit2v.beforeafter": 12, "minit2v.distributed": 12, "minit2v.sharding": 12, "minit2v.budget": 12,
}


def introduced(name: str) -> int:
    """The chapter that introduces a module ("minit2v.unet") or a name of one ("minit2v.unet.ResBlock").

    Raises KeyError for a module that stands in no chapter.
    """
    if name in INTRODUCED:
        return INTRODUCED[name]
    parent, _, last = name.rpartition(".")
    if parent in ("", "minit2v") and (PACKAGE / f"{last}.py").exists():
        raise KeyError(f"{name} stands in no chapter; put it into INTRODUCED in minit2v/course/syllabus.py")
    return introduced(parent)


# Symbol, name in code, shape or range, meaning.
NOTATION = [
    ("$B$, $N$", "`batch`", "whole number", "how many clips at once"),
    ("$F$", "`frames`, `num_frames`", "16", "frames of a clip"),
    ("$H, W$", "`height`, `width`", "64, 64 (released: 256, 256)", "pixels of a frame"),
    ("$h, w$", "", "$H/8$, $W/8$", "cells of a frame's latents"),
    ("$C$", "`channels`", "3 colours, 4 latents, more inside", "numbers a pixel or a cell"),
    ("$L$", "`context_length`", "40 (released: 77)", "tokens of a prompt, padding included"),
    ("$D$", "`context_dim`", "128 (released: 1024)", "numbers a token"),
    ("", "`clip`", "(F, H, W, 3) uint8", "a clip as it is shown and saved"),
    ("", "`frames`", "(B, 3, F, H, W), −1 to 1", "clips as a network sees them"),
    ("", "`t` (of a scene), `seconds`", "(F,)", "when each frame is seen, in seconds"),
    ("$\\mu, \\log\\sigma^2$", "`mean`, `logvar`", "(B, 4, F, h, w)", "the encoder's answer: a small Gaussian cloud"),
    ("$z$, $x_0$", "`latents`, `x0`", "(B, 4, F, h, w)", "clean latents, of about unit size"),
    ("", "`pull`, `kl_weight`", "0 to 1", "weight of the KL term in the autoencoder's loss"),
    ("$c$", "`context`", "(B, L, D)", "the prompt, encoded"),
    ("$\\varnothing$", "`uncond`", "(B, L, D)", "the empty or negative prompt, encoded"),
    ("$u_i, v_j$", "`u`, `v`", "(N, D), length one", "caption $i$ and clip $j$, as contrastive training compares them"),
    ("$\\tau$", "`tau`, `scale`", "1/0.07 at first, at most 100", "how much cosines are enlarged before the softmax"),
    ("$t$", "`t`, `times`", "0 (clean) to 1000 (noise); (B,) or (B, F)", "time of the noising process"),
    ("", "`timesteps`", "0 to 999", "the same time as the released network counts it, $t-1$"),
    ("$T$", "`process.timesteps`", "1000", "number of noise levels"),
    ("$\\beta_t$", "`betas`", "(1000,)", "share of noise that step $t$ adds"),
    ("$\\bar\\alpha_t$", "`alphas_cumprod`", "(1001,)", "product of all $1-\\beta$ up to $t$"),
    ("$\\alpha_t, \\sigma_t$", "`process.alpha(t)`, `process.sigma(t)`", "shape of `t`",
     "$\\sqrt{\\bar\\alpha_t}$ and $\\sqrt{1-\\bar\\alpha_t}$: how much clip, how much noise"),
    ("$\\varepsilon$", "`eps`", "as $x_0$", "noise, each number drawn from $N(0, 1)$"),
    ("$x_t$", "`x`", "as $x_0$", "latents at time $t$: $\\alpha_t x_0 + \\sigma_t \\varepsilon$"),
    ("$\\varphi$", "", "0 to nearly 90 degrees",
     "the time as an angle: $\\alpha_t = \\cos\\varphi$, $\\sigma_t = \\sin\\varphi$"),
    ("$v_t$", "`velocity`", "as $x_0$", "$\\alpha_t \\varepsilon - \\sigma_t x_0$: what the mini network predicts"),
    ("$\\varepsilon_\\theta$", "`unet`", "", "the network, with weights $\\theta$"),
    ("$s$", "`s`", "as $t$", "the next, less noisy time that a sampler goes to"),
    ("$g$", "`guidance_scale`", "4 (released: 9)", "how much the prompt is exaggerated; 1 is not at all"),
    ("$\\hat x_0, \\hat\\varepsilon$", "`x0`, `eps`", "as $x_0$",
     "a denoiser's guess: which clip and which noise make $x_t$"),
    ("$r_t$", "`ratio(t)`", "shape of `t`", "$\\alpha_t/\\sigma_t$: how many times as much clip there is as noise"),
    ("$\\lambda_t$", "", "shape of `t`",
     "$\\log r_t$, the clock of DPM-Solver++: it rises while we denoise"),
    ("$\\tilde\\sigma$", "`posterior(...)[2]`", "shape of `t`", "how much noise a random step draws"),
    ("$\\eta$", "`eta`", "0 to 1", "randomness of DDIM's steps"),
    ("", "`emb`", "(B·F, 4·channels)", "a time, encoded for the residual blocks"),
    ("$q, k, v$", "`q`, `k`, `v`", "(N, heads, length, d)", "queries, keys and values of attention"),
    ("$d$", "`head_dim`", "32 (released: 64)", "width of one attention head"),
]

# Term, chapter that explains it, meaning in one sentence.
GLOSSARY = [
    ("alpha, coverage", 1, "How much of a pixel an object covers, from 0 to 1; colours are mixed by it."),
    ("anti-aliasing", 1,
     "Drawing an edge by coverage instead of by yes and no, so that it can move by less than a pixel."),
    ("attention", 5,
     "A layer in which each position takes a weighted mean of others; the weights come from the content."),
    ("autoencoder", 2,
     "An encoder that makes something small of a frame, and a decoder that makes the frame of it again."),
    ("bias (of a model)", 11, "What a model shows when nobody has asked for it, because its training clips did."),
    ("bootstrap", 9, "Drawing a sample again from itself, many times, to see how much a number of it would vary."),
    ("byte-pair encoding", 3, "A vocabulary learnt by joining the most frequent neighbours, again and again."),
    ("caption", 1, "A sentence that says what is to be seen in a clip."),
    ("caption dropout", 8,
     "Leaving some captions of a training empty, so that the network also knows what to draw without one."),
    ("causal mask", 3, "Hides from each token what stands behind it, padding included."),
    ("ceiling, floor", 9,
     "What a score cannot pass, and what it has when there is nothing to find; both belong beside it."),
    ("CFG", 6, "Short for classifier-free guidance; see guidance."),
    ("channel", 1, "One of the numbers that stand at each pixel: red, green and blue, or one of a network's features."),
    ("checkpoint", 8, "Weights on disk, from which a run or a reader can go on."),
    ("clip", 1, "A short video: here a uint8 tensor of shape (F, H, W, 3)."),
    ("contrastive training", 3, "Training two encoders so that what belongs together lies close, and the rest apart."),
    ("cross-attention", 5, "Attention in which pixels ask and words answer: the door by which the prompt comes in."),
    ("DDIM", 6,
     "A sampler that goes straight: the same guess of the clip, the same noise, mixed anew for the next time."),
    ("DDPM", 4, "Denoising diffusion probabilistic model: the paper by Ho et al. (2020), its process and its sampler."),
    ("denoiser", 4,
     "The network seen from outside: noisy latents and a time go in, a guess of the clean ones comes out."),
    ("DPM-Solver++", 6, "A sampler that also looks where the guess is heading, and so needs fewer steps."),
    ("einops", 1,
     "A library that rearranges the axes of tensors by patterns that can be read: `b c f h w -> (b f) c h w`."),
    ("EMA", 4, "Exponential moving average of the weights over training: smoother, and the ones that are used."),
    ("embedding", 3, "A learnt table with one vector for each token, or for each place."),
    ("epsilon (noise) prediction", 4, "The network's answer is the noise that was mixed in."),
    ("features", 9, "What a network that was trained for something else makes of a clip: a row of numbers."),
    ("film strip", 1, "Frames of a clip side by side, as one picture."),
    ("FLOP", 10, "A floating-point operation: one addition or one multiplication."),
    ("fps", 1, "Frames per second."),
    ("Fréchet distance", 9,
     "How far apart two sets of feature vectors are, seen as two Gaussians; FID and FVD are such."),
    ("GEGLU", 5, "A layer of values, each multiplied by a gate: the feed-forward of a transformer block."),
    ("group norm", 2, "Normalising groups of channels to mean 0 and spread 1, for each sample by itself."),
    ("guidance", 6,
     "Asking the network with and without the prompt, and going further in the direction of the difference."),
    ("half precision", 10, "Numbers of two bytes: float16, which ends at 65,504, or bfloat16, which is coarser."),
    ("head", 5, "One of several attentions side by side, each over its own share of a token's numbers."),
    ("hook", 2, "A function that PyTorch calls with what goes into a layer, or comes out, so that one can look."),
    ("inflation", 7, "Turning an image network into a video network by adding layers that see time."),
    ("KL term", 2, "The pull that keeps the encoder's clouds close to $N(0, 1)$."),
    ("latents", 2, "What the encoder makes of frames: 4 channels, 8 times smaller along each side."),
    ("layout", 10, "Which files a model on disk consists of, and what its tensors are called in them."),
    ("LoRA", 12, "Fine-tuning by small added matrices of low rank, while the weights stay as they are."),
    ("memory map", 10, "A file shown as if it were memory: a page of it is fetched when somebody looks at it."),
    ("meta device", 10, "Where PyTorch's tensors have shapes, and neither memory nor numbers."),
    ("moment", 1, "A mean of powers of the place, over an object's area: its centre, its spread, its symmetry."),
    ("negative prompt", 6, "A prompt to go away from; it takes the place of the empty one in guidance."),
    ("noise schedule", 4, "How much noise there is at each time."),
    ("offloading", 10, "Letting weights wait in the processor's memory until their turn on the card has come."),
    ("oracle", 6, "The best possible denoiser: in a world whose density is a formula, its guess is a formula too."),
    ("padding", 3, "Zeros behind the end of a text, so that all rows of tokens have one length."),
    ("penultimate layer", 3,
     "The last but one block of the text tower, where each word still has a meaning of its own."),
    ("pickle", 10, "Python's format for objects: a little program, which can do anything when it is opened."),
    ("posterior", 2,
     "What is still possible once something is known: of latents given a frame, of $x_s$ given $x_t$ and $x_0$."),
    ("posterior collapse", 2, "Clouds that are the same whatever the frame: the KL term has won, and nothing is told."),
    ("prompt", 0, "The sentence that a clip is made from."),
    ("PSNR", 2, "Peak signal-to-noise ratio: the mean squared error of pictures, told in decibels; more is better."),
    ("referee", 1, "Code that reads colour, shape and motion back from a clip, by rule."),
    ("reparametrisation", 2, "Drawing as $\\mu + \\sigma \\varepsilon$, so that gradients pass by the dice."),
    ("residual", 2, "A layer that computes what to add to its input: $x + f(x)$."),
    ("sampler", 6, "The procedure that walks from noise to a clip, asking the network at each step."),
    ("scaling factor", 2, "One over the size of an autoencoder's latents: multiplied by it, they have unit size."),
    ("seed", 0, "The number that decides all noise; the same seed makes the same clip."),
    ("self-attention", 5, "Attention among the cells of one picture, or among the frames of one place."),
    ("signal-to-noise ratio", 4, "How much clip for how much noise, $\\alpha_t^2 / \\sigma_t^2$; SNR for short."),
    ("signed distance", 1, "Distance to an object's edge, negative inside."),
    ("skip connection", 5, "What the U hands across from its way down to its way up."),
    ("softmax", 5, "Makes weights of any numbers: positive, adding up to 1, the larger the more."),
    ("spacing", 6, "Which of the thousand times a sampler of few steps visits, and at which it ends."),
    ("spatial, temporal", 7, "Spatial layers see one frame at a time; temporal layers see one place in all frames."),
    ("stand-in", 10, "A small model with random numbers, in the same files and by the same names as a large one."),
    ("strict loading", 10, "Loading weights only if every name is there, none is left over, and each shape fits."),
    ("temporal convolution", 7, "A convolution over three neighbouring frames, at one pixel."),
    ("text tower", 3, "The network that turns tokens into the context; half of a CLIP model, frozen."),
    ("token", 3, "A piece of text with a number: a word, a part of one, or padding."),
    ("UNet", 5, "The network that predicts the noise: down over smaller and smaller maps and up again."),
    ("unseen combination", 1, "A colour, shape and motion that never occur together in training."),
    ("VAE", 2, "Variational autoencoder: its encoder answers with a cloud instead of a point."),
    ("velocity prediction", 4, "The network's answer is $v = \\alpha \\varepsilon - \\sigma x_0$."),
    ("warm-up", 8, "A rising learning rate at the start of a run, while the optimizer knows nothing yet."),
    ("watermark", 11, "A sign of the owner across a picture; the released model has learnt to paint one."),
    ("zero initialisation", 7,
     "Starting a layer's last weights at zero, so that a new branch changes nothing at first."),
    ("ZeroScope", 11, "The released model, trained on at 576 x 320 pixels and 24 frames, without watermarks."),
]


def readme(written: set[str]) -> str:
    """The text of notebooks/README.md. written: names of the chapters that exist ("01_video_as_tensors")."""
    lines = ["<!-- Made by `make notebooks` from minit2v/course/syllabus.py. Edit that file, not this one. -->", "",
             "# Chapters", "",
             "Each chapter has a source, `NN_slug.py`, which is what people edit, and a notebook built from it, "
             "`NN_slug.ipynb`, with its outputs stored: it can be read here without running it. `make lab` opens "
             "them, `make notebooks` builds them again.", "",
             "| chapter | you build | minutes |", "|---|---|---|"]
    for chapter in CHAPTERS:
        link = f"[{chapter.name}]({chapter.name}.ipynb)" if chapter.name in written else chapter.name
        lines.append(f"| {link} | {chapter.builds} | {chapter.minutes} |")
    lines += ["", "## Notation", "", "Symbols and names mean the same in every chapter and in the package.", "",
              "| symbol | in code | shape or range | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in NOTATION]
    lines += ["", "## Glossary", "", "The number is the chapter that explains the term.", "",
              "| term | chapter | meaning |", "|---|---|---|"]
    lines += [f"| {term} | {chapter:02d} | {meaning} |" for term, chapter, meaning in GLOSSARY]
    return "\n".join(lines) + "\n"
