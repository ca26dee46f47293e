# %% [markdown]
# # 11 · Exercises: real clips
#
# Four exercises on chapter 11, about 65 minutes, and at the end a clip that comes out of your own code, from the first
# convolution to the last step. Replace each line that raises `NotImplementedError`, run the cell, then the check below
# it. `hint("11.guided")` helps, a little more each time. Nothing is downloaded: the mini model stands in for the large
# one.

# %%
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task
from minit2v.course.handin import take

# %% [markdown]
# ## 11.guided · Away from the negative
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: real clips need negative prompts ("watermark, blurry"), and
# this is where they act.
#
# Return a function `denoise(x, t)` that asks the network for a batch x at the time t, guides its answers, and gives
# back the clip and the noise in x, `process.split(answer, x, t)`. The answer at scale g lies g times as far from that
# to the negative prompt as the one to the prompt does. Both questions go through `unet(x, timesteps, context)` as one
# batch of two halves, or one after the other, as you like; at scale 1 only the prompt is asked, and `uncond` may be
# None. `process.network_times(t, x)` are the times as the network counts them, (B,).

# %%
def guided_denoiser(unet, process, context: Tensor, uncond: Tensor | None, guidance_scale: float):
    """context: (B, L, D), a prompt for each clip; uncond: (B, L, D), or (1, L, D), one negative prompt for all.

    Returns denoise(x, t) -> (x0, eps); x, x0, eps: (B, 4, F, h, w).
    """
    ### BEGIN SOLUTION
    def denoise(x, t):
        timesteps = process.network_times(t, x)
        within = unet(x, timesteps, context)
        if guidance_scale == 1:
            return process.split(within, x, t)
        without = unet(x, timesteps, uncond.expand_as(context))
        return process.split(without + guidance_scale * (within - without), x, t)

    return denoise
    ### END SOLUTION


pipe = minit2v.load()
prompt, negative = (pipe.encode_text([text]) for text in ("a red circle moves right", "a blue square"))
denoise = guided_denoiser(pipe.unet, pipe.process, prompt, negative, 4.0)
x0, eps = denoise(torch.zeros(1, 4, 16, 8, 8), torch.tensor(500))
tuple(x0.shape), tuple(eps.shape)                                        # (1, 4, 16, 8, 8) twice

# %% tags=["nbval-check-output"]
check("11.guided", guided_denoiser)

# %% [markdown] tags=["solution"]
# A negative prompt takes the place of the empty one, and nothing else changes: the walk begins at what is not wanted
# and leads through the prompt. As one batch of two halves it is faster on a GPU, and takes twice the memory.

# %% [markdown]
# ## 11.attention · A prompt, read once
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: 16 frames and 50 steps read the same sentence. Copied for each
# of them, it would cost more than the clip.
#
# The attention of chapter 05, for two uses. `forward(x)` lets the L tokens of each row see one another.
# `forward(x, text)` lets them read: `text` is what `keys_values(context)` has made of B prompts, once and for all
# steps. x has B*F rows then, all frames of the first clip first, and every frame reads its own clip's prompt, without
# any copy of it: keys and values are there once for each clip, inside of `forward`, too. Layers: `to_q`, `to_k`, `to_v`
# without bias, `to_out` with one. Each head owns a block of neighbouring numbers. (`F.scaled_dot_product_attention` may
# be used; you have written it in chapter 05.)

# %%
class Attention(nn.Module):
    """x: (B*F, L, width) -> the same shape. context_width: the width of a text's tokens; None: that of x."""

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        ### BEGIN SOLUTION
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width or width, width, bias=False)
        self.to_v = nn.Linear(context_width or width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        ### END SOLUTION

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of B prompts, (B, K, context_width) -> (B, heads, K, d) twice."""
        ### BEGIN SOLUTION
        k, v = (rearrange(layer(context), "b k (h d) -> b h k d", h=self.heads) for layer in (self.to_k, self.to_v))
        return k, v
        ### END SOLUTION

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        ### BEGIN SOLUTION
        k, v = self.keys_values(x) if text is None else text
        q = rearrange(self.to_q(x), "(b f) l (h d) -> b h (f l) d", b=len(k), h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)                  # (B, heads, F*L, d)
        return self.to_out(rearrange(mixed, "b h (f l) d -> (b f) l (h d)", l=x.shape[1]))
        ### END SOLUTION


layer = Attention(8, 2, 6)
tuple(layer(torch.zeros(6, 5, 8), layer.keys_values(torch.zeros(2, 3, 6))).shape)                 # (6, 5, 8)

# %% tags=["nbval-check-output"]
check("11.attention", Attention)

# %% [markdown] tags=["solution"]
# Queries do not see one another, so those of all frames of a clip can stand in one row and ask the same keys. Among
# themselves there are as many sets of keys as rows, and the same line holds with F = 1.

# %% [markdown]
# ## 11.seeds · Another clip in company
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: "seed 7 was great" should still be true tomorrow, whatever
# else you make in the same batch.
#
# `start_noise` draws the noise that clips begin with, one for each seed. The first clip of a list is always right. The
# others become other clips than they would be alone. Find out why, and mend it. A clip's noise is drawn in one go, in
# its whole shape; torch's global dice are not to be touched.

# %%
def start_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """Noise for a clip of each seed. shape: of a clip's latents, (4, F, h, w); returns (len(seeds), 4, F, h, w)."""
    ### BEGIN SOLUTION
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in dice])
    ### END SOLUTION
    generator = torch.Generator().manual_seed(seeds[0])                  # broken, from here on
    return torch.randn(len(seeds), *shape, generator=generator)


shape = (4, 2, 4, 4)
torch.equal(start_noise([3, 7], shape)[1], start_noise([7], shape)[0])   # True, in company as alone

# %% tags=["nbval-check-output"]
check("11.seeds", start_noise)

# %% [markdown] tags=["solution"]
# Dice of its own for each clip. They are thrown on the processor, so that a seed means the same on every device.

# %% [markdown]
# ## 11.room · What a larger clip costs
#
# *Explore · medium · 10 minutes · 1 point.* Why it matters: ZeroScope makes larger clips with the same network. Before
# you ask for one, you should know what you ask for.
#
# `task` gives you a clip. At the uppermost level of the UNet, every cell of a frame's latents attends to every cell of
# the same frame, and each of these pairs is a score. How many times as many scores does this clip need as one of 16
# frames of 256 x 256? A cell is 8 x 8 pixels.

# %%
task("11.room")

# %%
### BEGIN SOLUTION
asked = task("11.room")
cells = asked["height"] // 8 * (asked["width"] // 8)
answer_room = asked["frames"] / 16 * (cells / (32 * 32)) ** 2
### END SOLUTION
check("11.room", answer_room)

# %% [markdown] tags=["solution"]
# Frames count once and cells count squared. Convolutions grow with the cells only, so at large sizes attention is what
# takes the time.

# %% [markdown]
# ## The model runs on your code, all of it
#
# No points, but the best moment of all. Your notebooks of the chapters before lie beside this one, and out of them come
# the classes and functions that you have written: the residual block of 05, the layers of time of 07, the decoder's
# parts of 02, the sampler of 06; from here the attention and the guidance. `take` reads a definition out of a notebook,
# without running the rest. All of it goes into the trained model at once, with its weights, and the shipped clip must
# come out. Fill three dicts, each of our names and what stands in for it, as you handed them to `pipe.swap` in those
# chapters: `network` for the UNet, `pictures` for the autoencoder, `walk` for functions, the sampler and the guidance.
# (What you have not solved yet, leave out of the dicts.)

# %%
def from_chapter(number: str, name: str):
    """What you wrote under this name in the exercises of a chapter."""
    found = take(sorted(Path().glob(f"{number}_*.ipynb")), name)
    assert found is not None, f"there is no {name} in the exercises of chapter {number} beside this notebook"
    return found


# network = {"ResBlock": from_chapter("05", "ResBlock"), ..}, pictures = {..}, walk = {..}
### BEGIN SOLUTION
network = {"ResBlock": from_chapter("05", "ResBlock"), "TemporalConv": from_chapter("07", "TemporalConv"),
           "TemporalTransformer": from_chapter("07", "TemporalTransformer"), "Attention": Attention}
pictures = {"ResBlock": from_chapter("02", "Residual"), "PixelAttention": from_chapter("02", "Attention"),
            "Downsample": from_chapter("02", "HalfSize")}
walk = {"ddim": from_chapter("06", "my_ddim"), "guided_denoiser": guided_denoiser}
### END SOLUTION
prompt, settings = "a red circle moves right", dict(num_inference_steps=15, progress=False)
clip = pipe(prompt, latents=start_noise([0], (4, 16, 8, 8)), **settings)
pipe.swap("unet", **network).swap("autoencoder", **pictures).swap(**walk)
mine = pipe(prompt, latents=start_noise([0], (4, 16, 8, 8)), **settings)
assert (clip.int() - mine.int()).abs().max() <= 2            # the last digit of a colour may be rounded otherwise
print("runs on your code:", ", ".join(pipe.swapped))
figures.strip([clip, mine], titles=["the clip of the package", "the same, from your code"],
              alt="Two film strips of the same clip, one made by the package and one by the learner's code. They look "
                  "alike.")

# %% [markdown]
# ## What you have now

# %%
progress()
