# %% [markdown]
# # 07 · Exercises: into time
#
# Five exercises on chapter 07, about 80 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("07.frame_conv")` helps, a little more each time.
#
# A clip inside of the network has the shape (B, C, F, H, W): clips, channels, frames, height, width.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.attention import TransformerBlock
from minit2v.course import check, figures, hint, progress, solution, task

# %% [markdown]
# ## 07.frame_conv · A convolution over frames
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: of all layers that see time, only these know what comes
# first.
#
# A frame and its two neighbours, three matrices over the channels, and a bias. Beyond both ends of the clip there are
# zeros. The height and the width play no part, so they are one axis here, P pixels. Torch's convolutions are refused:
# three shifted copies of the clip do it. With what numbers a new `weight` begins does not matter, if it is not all
# zero: in a row of such layers none would ever learn.

# %%
class FrameConv(nn.Module):
    """x: (B, C, F, P) -> the same shape. Parameters: `weight`, (C out, C in, 3, 1, 1), and `bias`, (C,).

    weight[:, :, 0] acts on the frame before, weight[:, :, 1] on the frame itself, weight[:, :, 2] on the one after.
    """

    def __init__(self, channels: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 1, 1) / (3 * channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(channels))
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        frames = x.shape[2]
        padded = F.pad(x, (0, 0, 1, 1))                                             # (B, C, F + 2, P)
        parts = [torch.einsum("oc,bcfp->bofp", self.weight[:, :, k, 0, 0], padded[:, :, k:k + frames])
                 for k in range(3)]
        return parts[0] + parts[1] + parts[2] + self.bias[:, None, None]
        ### END SOLUTION


tuple(FrameConv(4)(torch.zeros(2, 4, 5, 3)).shape)                                  # (2, 4, 5, 3)

# %% tags=["nbval-check-output"]
check("07.frame_conv", FrameConv)

# %% [markdown] tags=["solution"]
# With a frame of zeros at both ends, the frames k to k + F are the past, the present and the future of every frame at
# once. Each meets its own matrix, and the results add up. The zeros are the only thing in the whole network that tells
# a first frame from a last one.

# %% [markdown]
# ## 07.fold · Two clips, mixed up
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: the UNet folds and unfolds its clips dozens of times on the
# way through, and with a single clip in the batch this mistake is not seen at all.
#
# An image layer knows pictures, not clips. `frame_by_frame` lets it see each frame as a picture, together with the time
# of the clip that the frame is of. Of one clip it is right; two clips exchange frames, and more. Find out why, and mend
# it.

# %%
def frame_by_frame(x: Tensor, emb: Tensor, layer) -> Tensor:
    """x: (B, C, F, H, W), emb: (B, D), a time for each clip; returns (B, C, F, H, W).

    `layer` takes pictures, (B*F, C, H, W), and the time of each, (B*F, D); it returns pictures of the same shape.
    """
    ### BEGIN SOLUTION
    frames = x.shape[2]
    images = rearrange(x, "b c f h w -> (b f) c h w")
    times = emb.repeat_interleave(frames, dim=0)                                    # (B*F, D)
    return rearrange(layer(images, times), "(b f) c h w -> b c f h w", f=frames)
    ### END SOLUTION
    frames = x.shape[2]                                                             # broken: mend what follows
    images = rearrange(x, "b c f h w -> (b f) c h w")
    times = emb.repeat(frames, 1)                                                   # (B*F, D)
    return rearrange(layer(images, times), "(f b) c h w -> b c f h w", f=frames)


clips = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).view(2, 1, 3, 1, 1)
added = frame_by_frame(clips, torch.tensor([[0.0], [10.0]]), lambda images, times: images + times[:, :, None, None])
added.flatten().tolist()                                                            # 1, 2, 3, 14, 15, 16

# %% tags=["nbval-check-output"]
check("07.fold", frame_by_frame)

# %% [markdown] tags=["solution"]
# After the fold the pictures lie clip by clip: all frames of the first, then all of the second. So a clip's time is
# repeated for its frames before the next one's turn comes, and the way back has the same bracket. (With the frames
# outside, in all three places, it would be right, too. Only the places have to agree.)

# %% [markdown]
# ## 07.temporal_attention · Along its own history
#
# *Build · hard · 25 minutes · 3 points.* Why it matters: convolutions see a few frames; this layer sees all of them,
# and so a thing keeps its colour from the first to the last.
#
# The transformer block of chapter 05 takes rows of tokens, (rows, tokens, numbers), and lets the tokens of a row attend
# to one another. Which tokens, is your part: all frames of one pixel. Norm the clip, bring it into this shape, send it
# through `proj_in`, `block` and `proj_out`, bring it back, and add it to what went in.

# %%
class TemporalTransformer(nn.Module):
    """x: (B, channels, F, H, W) -> the same shape: x plus what the frames of each pixel tell one another."""

    def __init__(self, channels: int, width: int, head_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width)
        self.block = TransformerBlock(width, width // head_dim)
        self.proj_out = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        height, width = x.shape[3:]
        h = rearrange(self.norm(x), "b c f h w -> (b h w) f c")
        h = self.proj_out(self.block(self.proj_in(h)))                              # (B*H*W, F, C)
        return x + rearrange(h, "(b h w) f c -> b c f h w", h=height, w=width)
        ### END SOLUTION


tuple(TemporalTransformer(4, 6, 3, 2)(torch.zeros(2, 4, 5, 3, 2)).shape)            # (2, 4, 5, 3, 2)

# %% tags=["nbval-check-output"]
check("07.temporal_attention", TemporalTransformer)

# %% [markdown] tags=["solution"]
# Every pixel of every clip is a row of its own, its frames are the tokens, and its channels are their numbers. Nothing
# else tells this layer from the spatial one: the same block, other rows.

# %% [markdown]
# ## 07.zero · It starts as nothing
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: this is how an image model becomes a video model without
# forgetting a single picture.
#
# `TemporalConv` has four parts, `conv1` to `conv4`, each an `nn.Sequential` of group norm, SiLU and a `FrameConv`; from
# the second part on there is an `nn.Dropout` in front of the convolution. One part follows the other, and the result is
# added to what went in. A new one changes nothing at all, and it can learn nevertheless. (In the place of your
# `FrameConv` you may use `nn.Conv3d`.)

# %%
class TemporalConv(nn.Module):
    """x: (B, C, F, H, W) -> the same shape. The norms take their statistics over all frames of a clip together."""

    def __init__(self, channels: int, groups: int, dropout: float):
        super().__init__()
        ### BEGIN SOLUTION
        self.conv1 = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), FrameConv(channels))
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout), FrameConv(channels))
            for _ in range(3))
        for parameter in self.conv4[-1].parameters():
            nn.init.zeros_(parameter)
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        h = x.flatten(3)                                                            # (B, C, F, H*W)
        h = self.conv4(self.conv3(self.conv2(self.conv1(h))))
        return x + h.view_as(x)
        ### END SOLUTION


x = torch.randn(2, 4, 5, 3, 2, generator=torch.Generator().manual_seed(0))
torch.equal(TemporalConv(4, 2, 0.0)(x), x)                                          # True: nothing yet

# %% tags=["nbval-check-output"]
check("07.zero", TemporalConv)

# %% [markdown] tags=["solution"]
# The last convolution alone begins as zero, weight and bias. What comes into it is not zero, so its weight has a slope
# and leaves zero at the first step; from then on the slopes reach the other three as well.

# %% [markdown]
# ## 07.reach · How far a frame sees
#
# *Explore · easy · 5 minutes · 1 point.* Why it matters: it says which motions convolutions can follow, and for which
# attention is needed.
#
# `task` gives you a number of convolutions over three frames, one after the other. On how many frames of a long clip,
# its own among them, does a frame in the middle of the result depend? Say it first; then try it, with a flash in one
# frame and your `FrameConv`.

# %%
task("07.reach")

# %%
### BEGIN SOLUTION
answer_reach = 2 * task("07.reach")["layers"] + 1
### END SOLUTION
check("07.reach", answer_reach)

# %% [markdown] tags=["solution"]
# Each layer adds one frame on each side, and the frame itself is in the middle. Four of them make a `TemporalConv`:
# nine frames of the sixteen. With the next one it is seventeen.

# %% [markdown]
# ## The model runs on your code
#
# No points, but the best moment. Your `TemporalConv`, with your `FrameConv` inside, and your `TemporalTransformer` go
# into every place of the trained UNet where ours stand. All that this model knows of time then runs on your code, and
# the same clip must come out. `mine` is a dict: the name of our class, and yours.

# %%
### BEGIN SOLUTION
mine = {"TemporalConv": TemporalConv, "TemporalTransformer": TemporalTransformer}
### END SOLUTION
pipe = minit2v.load()
sentence, settings = "a blue circle moves right", dict(num_inference_steps=10, sampler="dpm++", progress=False)
clip = pipe(sentence, **settings)
again = pipe.swap(**mine)(sentence, **settings)
assert (clip.int() - again.int()).abs().max() <= 1           # the last digit of a colour may be rounded otherwise
figures.strip([clip, again], titles=["with the package's layers of time", "with yours"],
              alt="Two film strips of the same clip, one made with each set of layers. They look alike.")

# %% [markdown]
# ## What you have now

# %%
progress()
