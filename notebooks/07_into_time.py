# %% [markdown]
# # 07 · Into time
#
# Ask the network of chapter 05 sixteen times for a red circle that moves to the right, and you get sixteen red circles,
# each where it likes. They are sixteen pictures. What is missing before they are a clip is that each frame knows of
# the others. In this chapter you build the two kinds of layers that look along time, and you put them into the image
# network in such a way that, at first, *nothing at all changes*. That last trick is why a video model can begin as a
# picture model that somebody else has trained.

# %% [markdown]
# ## What you will build
#
# The next cell uses the finished network twice, with the same weights, the same sentence and the same noise. The first
# time, every part of it that sees time is switched off.

# %%
import minit2v
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Generator, Tensor, nn

from minit2v.attention import TransformerBlock
from minit2v.config import UNetConfig, modelscope_1_7b
from minit2v.course import figures, widgets
from minit2v.diffusion import denoising_loss, draw_noise, guided_denoiser
from minit2v.samplers import dpm_solver_pp
from minit2v.unet import GroupNorm, ResBlock, SpatialTransformer, Text, UNet, zero_init
from minit2v.video import to_uint8
from minit2v.world import Scene, Thing, render

pipe = minit2v.load()
process = pipe.process

# %%
@torch.inference_mode()
def film(unet, prompts, guidance_scale=4.0, frames=16):
    """One clip for each prompt, in ten steps from the noise of seed 0: (B, F, H, W, 3) uint8."""
    context, uncond = pipe.encode_text(prompts), pipe.encode_text([""])
    denoise = guided_denoiser(unet, process, context, uncond, guidance_scale)
    x = draw_noise((len(prompts), 4, frames, 8, 8), Generator().manual_seed(0))
    return to_uint8(pipe.autoencoder.decode(dpm_solver_pp(denoise, process, x, process.times(10, "linspace"))))


class TimeOff:
    """A UNet without its parts that see time: what remains is the image network of chapter 05."""

    def __init__(self, unet):
        self.prepare, self.unet = unet.prepare, unet

    def __call__(self, *args):
        return self.unet(*args, temporal=False)

# %%
PROMPT = "a red circle moves right on a black background"
pictures, clip = film(TimeOff(pipe.unet), [PROMPT])[0], film(pipe.unet, [PROMPT])[0]
figures.strip([pictures, clip], scale=2, titles=[f"{PROMPT}: time off", "time on"],
              alt="Above, a red shape that is elsewhere in each frame; below, one that travels.")

# %% [markdown]
# Played side by side, at 8 frames a second:

# %%
figures.play([pictures, clip], alt="Left, flicker: a shape that jumps about. Right, a shape that moves evenly.")

# %% [markdown]
# **You need** chapter 05: the residual block, attention, the U. The folds `(b f)` and `(b h w)` come from chapter 01,
# and the sampler in the cell above from chapter 06.
#
# **It takes** about 75 minutes to read and play with. All cells together run in about a minute.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | frames that one temporal convolution sees, and four in a row | 3, 9 |
# | our convolution over (frames, pixels) against PyTorch's in 3-D | equal to 0.000001 |
# | the new network against the image network, at the start | difference 0 |
# | parameters of the released network that see time | 545,323,136 |
# | of these, in temporal convolutions | 266,891,520 |

# %% [markdown]
# ## 1 · A frame and its neighbours: convolution along time
#
# Chapter 01 cut across time and found a sentence: motion is slant in space-time. Let us look at it again. Look at each
# frame from above, so that of each column of pixels only the brightest remains, and stack the sixteen rows that this
# makes. Time runs downwards:

# %%
scene = Scene((Thing("red", "circle", "right", speed="fast", x=0.2, y=0.3),
               Thing("blue", "square", "stay", x=0.85, y=0.7)))
drawn = render([scene])[0]                                   # (F, H, W, 3)
figures.strip([part.amax(1)[None] for part in (drawn, pictures, clip)], frames=1, scale=4,
              titles=["a drawn scene", "the pictures from above", "the clip from above"],
              alt="Three panels, time downwards: a leaning and an upright band; loose dashes; a leaning band.")

# %% [markdown]
# In the drawn scene the circle is a leaning band, and the square at rest an upright one. The network without time
# makes loose dashes, for no row knows what the row above has decided. To make bands of them, a layer has to mix each
# row with the rows above and below it.
#
# That is a convolution, with a kernel of three frames and *one* pixel. For frame $f$ it takes the C channels of the
# frame before, of the frame itself and of the frame after, each through a matrix of its own:
#
# $$y_f = W_0\,x_{f-1} + W_1\,x_f + W_2\,x_{f+1} + b$$
#
# Where there is no frame before or after, it takes zeros. P stands for all pixels of a frame in a row.

# %%
def three_frames(x, weight, bias):
    """The formula. x: (B, C, F, P), weight: (C', C, 3), bias: (C',) -> (B, C', F, P)."""
    before = F.pad(x, (0, 0, 1, 0))[:, :, :-1]               # frame f - 1 stands at f; zeros at the beginning
    after = F.pad(x, (0, 0, 0, 1))[:, :, 1:]                 # frame f + 1 stands at f; zeros at the end
    mixed = [einsum(weight[..., k], part, "o c, b c f p -> b o f p") for k, part in enumerate((before, x, after))]
    return sum(mixed) + bias[:, None, None]

# %% [markdown]
# What can such a layer see? Choose the weights by hand: minus a half, nothing, a half. That is half of the frame
# after minus the frame before: the *change* from one frame to the next. Here it is on the brightness of the drawn
# scene:

# %%
grey = drawn.float().mean(-1) / 255                          # (F, H, W)
change = three_frames(grey.flatten(1)[None, None], torch.tensor([[[-0.5, 0, 0.5]]]), torch.zeros(1))
change = change.view_as(grey)
figures.strip([drawn, figures.tint(change, limit=0.2, scale=1)], scale=2, titles=["the scene", "its change"],
              alt="The circle's front is orange and its back purple; the square shows only at both ends.")

# %% [markdown]
# The square at rest is gone, and the circle has a front (orange: it is getting brighter there) and a back (purple).
# Three numbers made by hand, and the layer knows what moves and where to.
#
# But in the first and the last frame the square is still there. In front of the first frame stand the zeros, and so it
# looks to the layer as if everything had just appeared. Is that a flaw? Keep it in mind until section 4.
#
# ### The same sum by other names
#
# PyTorch knows our formula as a 3-D convolution with kernel (3, 1, 1): three frames, one row, one column.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)                                         # PyTorch draws a new layer's weights globally
conv = nn.Conv3d(8, 8, kernel_size=(3, 1, 1), padding=(1, 0, 0))
x = draw_noise((2, 8, 16, 4, 4), Generator().manual_seed(1)) # (B, C, F, H, W)
with torch.no_grad():
    ours = three_frames(x.flatten(3), conv.weight[..., 0, 0], conv.bias).view_as(x)
    theirs = conv(x)
print(tuple(conv.weight.shape), "equal:", torch.allclose(ours, theirs, atol=1e-6))
assert torch.allclose(ours, theirs, atol=1e-6)

# %% [markdown]
# Now look at the kernel once more: it is one pixel high and one wide. So it never asks which pixels are neighbours, and
# the pixels may just as well stand in one long row. Then a clip is a flat table, frames downwards and pixels to the
# right, and the 3-D convolution is a **2-D convolution** on this table, with a kernel three high and one wide. That is
# what the package does. Libraries have polished 2-D convolutions for decades. (Only a wide layer that is asked for a
# few pixels takes a road of its own, `over_frames`: there, bringing the weights from memory is all the work.)

# %%
from minit2v.few import is_few, over_frames

# %%
# from minit2v.unet import FrameConv

# %% tags=["nbval-check-output"]
flat = FrameConv(8)
print(flat.load_state_dict(conv.state_dict(), strict=True))
with torch.no_grad():
    print("as a 2-D convolution, equal:", torch.allclose(flat(x.flatten(3)).view_as(x), theirs, atol=1e-6))
    assert torch.allclose(flat(x.flatten(3)).view_as(x), theirs, atol=1e-6)

# %% [markdown]
# It is still a `Conv3d` by its parameters, so weights of a 3-D convolution fit into it, the released ones too. Only the
# sum is done in another way. On the flat table, a single 1 (frame 3, pixel 5) spreads to three frames and stays in its
# pixel. (The weights are all 1 here.)

# %%
impulse, ones = torch.zeros(1, 1, 8, 12), FrameConv(1)
impulse[0, 0, 3, 5] = 1
nn.init.ones_(ones.weight)
nn.init.zeros_(ones.bias)
figures.heat([impulse[0, 0], ones(impulse)[0, 0]], titles=["a single 1", "after the convolution"], xlabel="pixel",
             ylabel="frame",
             alt="Two tables, frames downwards, pixels to the right: one bright cell; three bright cells in a column.")

# %% [markdown]
# ## 2 · Four in a row
#
# One convolution sees three frames, the next one three frames of *those*, and so on: each adds one frame to either
# side. How far a layer can see is its **receptive field**. We measure it by gradients, as chapter 03 did with words:
# pick one frame of the output, and ask how much it would change if one frame of the input changed a little.

# %%
def influence(layer, x):
    """How much frame f of layer(x) (rows) depends on frame g of x (columns), the most being 1: (F, F)."""
    x = x.detach().requires_grad_()
    y, rows = layer(x), []
    for f in range(x.shape[2]):
        push = torch.zeros_like(y)                           # (B, C, F, ...), a random push on frame f alone
        push[:, :, f] = draw_noise(y[:, :, f].shape, Generator().manual_seed(f)).to(y)
        (gradient,) = torch.autograd.grad(y, x, push, retain_graph=True)
        rows.append(gradient.movedim(2, 0).flatten(1).norm(dim=1))               # (F,)
    table = torch.stack(rows)
    return table / table.amax()

# %%
torch.manual_seed(0)
x = draw_noise((1, 8, 33, 4), Generator().manual_seed(2)).double()               # (B, C, F, P): 33 frames
depths = [1, 2, 4, 8, 16]
reach = {n: influence(nn.Sequential(*[FrameConv(8) for _ in range(n)]).double(), x) for n in depths}
maps = [figures.heat(reach[n].sqrt(), titles=[f"{n} in a row"], limits=(0, 1), size=3.6, xlabel="input frame",
                     ylabel="output frame",
                     alt=f"{n} convolutions, output frames downwards, input frames to the right: a diagonal band.")
        for n in depths]
widgets.slider(maps, labels=[str(n) for n in depths], name="convolutions", start=2)

# %% tags=["nbval-check-output"]
seen = {n: int((reach[n][16] > 0).sum()) for n in depths}    # of frame 16, the middle one
print("frames that the middle frame sees:", seen)
assert seen == {n: 2 * n + 1 for n in depths}

# %% [markdown]
# Two things are to be seen. The band grows by one frame on each side: $n$ convolutions see $2n + 1$ frames, and outside
# of it there is *exactly* nothing. But the band is not evenly filled. Most of what a frame hears comes from close by
# and its far ends are faint, since only one path leads there, and a great many lead to the middle. (The colours show
# the square root, otherwise you would not see them at all.)
#
# ### Whose mean, whose spread?
#
# Between convolutions stand a norm and a SiLU, as in the residual block. The norm is worth a thought. In the image half
# it brings each *frame* to mean 0 and spread 1. Should it do so here? Take a scene that is getting brighter:

# %%
bright = 0.3 * draw_noise((1, 1, 16, 64), Generator().manual_seed(3)) + torch.linspace(-1, 1, 16)[:, None]
each_frame = rearrange(F.group_norm(rearrange(bright, "b c f p -> (b f) c p"), 1), "(b f) c p -> b c f p", f=16)
whole_clip = F.group_norm(bright, 1)
figures.plot({"before": bright.mean((0, 1, 3)), "norm of each frame": each_frame.mean((0, 1, 3)),
              "norm of the whole clip": whole_clip.mean((0, 1, 3))}, xlabel="frame", ylabel="mean",
             alt="Before, a rising line; with the norm of each frame, flat at zero; of the clip, rising again.")

# %% [markdown]
# Norm each frame by itself, and the brightening is gone: each frame is at 0, and no later layer can know that there was
# any. With one mean and one spread for the whole clip, it stays. So the parts that see time take their **statistics
# over all frames together**. In code that costs nothing: the frames are simply not folded into the batch.
#
# ### The package's temporal convolution
#
# Norm, SiLU, convolution, four times in a row, and a way around: $x + f(x)$. (`Dropout` matters in training only.)

# %%
# from minit2v.unet import TemporalConv

# %% [markdown]
# `zero_init` at the end has its own section. For now we fill the last convolution with random numbers, to see the layer
# at work. Which frames does it see?

# %%
def awake(layer):
    """Fills the last weights of a temporal layer, which start at zero, with small random numbers."""
    last = layer.conv4[-1] if hasattr(layer, "conv4") else layer.proj_out
    nn.init.normal_(last.weight, std=0.05)
    return layer


torch.manual_seed(0)
four = awake(TemporalConv(32, groups=8, dropout=0.0)).eval()
clips = draw_noise((1, 32, 16, 8, 8), Generator().manual_seed(4))
convs = influence(lambda x: four(x) - x, clips)              # f alone, without the way around
figures.heat([convs, convs.clamp(min=1e-6).log10()], titles=["influence", "its power of ten"], xlabel="input frame",
             ylabel="output frame",
             alt="Left, a diagonal band, nine frames wide; right, the same on a scale that also shows a faint rest.")

# %% tags=["nbval-check-output"]
band = (torch.arange(16)[:, None] - torch.arange(16)).abs() <= 4
print("the faintest inside the band of 9 beats the strongest outside:", bool(convs[band].min() > convs[~band].max()))
print("outside the band it is not zero:", bool(convs[~band].max() > 0))
assert 0 < convs[~band].max() < 0.05

# %% [markdown]
# Nine frames, four to each side, as computed. But this time the rest is not *exactly* zero. The scale on the right
# shows a faint haze over all frames. That is the norm: its mean and its spread are made of the whole clip, so each
# frame has a small say in them. It says nothing about *where* something happens, only how much of it there is in all.

# %% [markdown]
# ## 3 · A place and its history: attention along time
#
# Convolutions carry news from frame to frame, a few frames at a time. Attention jumps: each frame may ask any other,
# however far away. What are the tokens? In space they were the cells of one frame. Now they are **the frames of one
# cell**: we lay the cells into the batch, and what remains is a row of F tokens, the history of a place.

# %% tags=["nbval-check-output"]
histories = rearrange(clips, "b c f h w -> (b h w) f c")
print(tuple(clips.shape), "->", tuple(histories.shape), "64 places, each a row of 16 frames")
print("row 10 is the cell (1, 2):", torch.equal(histories[10], clips[0, :, :, 1, 2].T))

# %% [markdown]
# The block is the one of chapter 05. There, its second attention read the words. Here there are no words to read (the
# spatial transformer has just done so), so the second attention looks along time once more:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
block = TransformerBlock(32, heads=1)                        # no context: two self-attentions
with torch.no_grad():
    print(tuple(block(histories).shape))
print("a frame is compared with 16 frames,", f"{16 * 16 * 64:,} scores; all cells with all: {(16 * 64) ** 2:,}")

# %% [markdown]
# The second line says what the split is good for. Sixteen frames of 64 cells are 1,024 tokens. Let all of them ask all
# others, and there are a million scores; along time alone, there are sixteen thousand. That is cheap, but it has a
# price too: a cell at time 3 never asks *another* cell at time 5. What moves from cell to cell is followed in two
# turns, one in space and one in time.
#
# How far does attention see? We measure as before: the first attention of this block beside four bare convolutions.

# %%
def along_time(x):
    """The first attention of the block, on the history of each place: (B, C, F, P) -> the same."""
    h = block.attn1(block.norm1(rearrange(x, "b c f p -> (b p) f c")))
    return rearrange(h, "(b p) f c -> b c f p", b=len(x))


bare = nn.Sequential(*[FrameConv(32) for _ in range(4)])
figures.heat([influence(layer, clips.flatten(3)) for layer in (bare, along_time)], limits=(0, 1),
             titles=["four convolutions", "one attention"], xlabel="input frame", ylabel="output frame",
             alt="Left a diagonal band, dark beside it; right a square grey all over, with a brighter diagonal.")

# %% [markdown]
# No band: with its first layer every frame hears every other, near or far. (These weights are random, so no frame has
# learned yet whom to ask, and each asks all alike. The diagonal is brighter because a frame's own numbers count twice:
# they are among the answers, and they are the question.)
#
# The package's layer adds a norm over the clip, the linear maps in and out, and the way around:

# %%
# from minit2v.unet import TemporalTransformer

# %% [markdown]
# ## 4 · Who knows the order of the frames?
#
# Chapter 05 shuffled the cells of a picture and found that attention does not notice: the answers came out shuffled,
# otherwise the same. Does a temporal layer notice when we shuffle the *frames*?

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
far = awake(TemporalTransformer(32, width=32, head_dim=32, groups=8)).eval()
shuffled = torch.randperm(16, generator=Generator().manual_seed(5))


@torch.no_grad()
def notices(layer, x, order):
    """How far "shuffle, then layer" is from "layer, then shuffle", at most."""
    return (layer(x[:, :, order]) - layer(x)[:, :, order]).abs().max()


for name, layer in {"attention": far, "convolution": four}.items():
    print(f"temporal {name} notices:", bool(notices(layer, clips, shuffled) > 1e-3))
assert notices(far, clips, shuffled) < 1e-5 < 1e-3 < notices(four, clips, shuffled)

# %% [markdown]
# To the attention the frames are a bag. It cannot tell a clip from the same clip *backwards*:

# %% tags=["nbval-check-output"]
backwards = torch.arange(15, -1, -1)
print("played backwards, attention notices:", bool(notices(far, clips, backwards) > 1e-3))
print("                convolution notices:", bool(notices(four, clips, backwards) > 1e-3))

# %% [markdown]
# So if there were attention alone, the same noise played backwards would become the same clip played backwards, under
# the same sentence. One noise is as likely as the other, and so, whatever the sentence says, motion to the right and
# to the left would come out equally often. Language models have the same trouble, and they add a position to each
# token. This network adds none. **The order of the frames lives in the convolutions alone**: each of them treats the
# frame before otherwise than the frame after.
#
# And how does a frame know *which* one it is, the first or the seventh? Here the zeros come back that looked like a
# flaw in section 1. Let convolutions that take the mean of three frames run over a clip of nothing but ones. Beside it,
# the same with a clip whose ends are joined, so that there are no zeros (a *circular* padding):

# %%
def ends(times, joined):
    """What is left of sixteen ones after taking the mean of three frames so many times: (F,)."""
    x = torch.ones(1, 1, 16)
    for _ in range(times):
        x = F.conv1d(F.pad(x, (1, 1), mode="circular" if joined else "constant"), torch.full((1, 1, 3), 1 / 3))
    return x[0, 0]

# %%
lines = {f"{n} in a row": ends(n, joined=False) for n in (1, 4, 16)}
figures.plot(lines | {"16, without ends": ends(16, joined=True)}, xlabel="frame", ylabel="value",
             alt="With zeros beyond the ends, the curves sag there, deeper and further in; without, all stays 1.")

# %% tags=["nbval-check-output"]
differing = {n: len({round(v, 5) for v in ends(n, joined=False).tolist()}) for n in (1, 4, 16)}
print("different values, of the 8 that a clip with two equal ends can have:", differing)
print("without ends:", len({round(v, 5) for v in ends(16, joined=True).tolist()}))

# %% [markdown]
# After one convolution the first and the last frame differ from the rest. Each further one carries this knowledge a
# frame inwards, until every frame knows how far away the end is. (Both ends look alike here because our three weights
# do; learnt weights tell the beginning from the end.) What pads the clip is its clock.

# %% [markdown]
# ## 5 · The spatial-temporal block
#
# Now put it together. Image layers want the frames in the batch, time layers want them apart, and two functions of the
# package go to and fro. They move no memory, they only rename axes.

# %%
# from minit2v.levels import as_images

# %%
# from minit2v.levels import as_clip

# %% [markdown]
# The block is four parts in turns: space, time, space, time. The image block of chapter 05 is the first and the third
# of them. With `temporal=False` the other two are left out.

# %%
# from minit2v.unet import Block

# %% [markdown]
# Turns are the point. A temporal layer never leaves its cell, a spatial one never leaves its frame; one after the
# other they reach every cell of every frame. Let one block show the beginning of it, without its two transformers:
# with them one block would already reach everything. What is left are two 3 x 3 convolutions in space and four in
# time. We push on the middle of frame 8, and see where in the input that comes from:

# %%
torch.manual_seed(0)
unit = Block(32, 32, attention=False, config=pipe.config.unet).eval()
awake(unit.temporal_conv)
nn.init.normal_(unit.res.conv2.weight, std=0.05)
x, emb = clips.clone().requires_grad_(), torch.zeros(16, 128)
unit(x, emb)[0, :, 8, 4, 4].sum().backward()
came_from = x.grad[0].norm(dim=0)                            # (F, h, w)
figures.strip(figures.tint(came_from[2:15].log10() + 4, limit=5), frames=13,
              alt="Frames 2 to 14 as small squares: orange patches around the middle in frames 4 to 12, paler outside.")

# %% [markdown]
# You see a patch of cells in nine frames (and the norms' haze around it). A patch that goes through time is what the
# slanted bands at the top are made of.
#
# **The whole network** is the U of chapter 05 with this block in place of the image block, and one more temporal
# transformer at the very beginning, behind `conv_in`. There are no other changes. If it is so, then the code that
# stands in this notebook is the whole of the network's sense of time. We prove it in the way of chapter 05:
# `swap` builds the network anew, with *your* classes in the place of the package's, and loads the shipped weights into
# them, strictly.

# %% tags=["nbval-check-output"]
mine = minit2v.load().swap(Block=Block, TemporalTransformer=TemporalTransformer)
x, timesteps = draw_noise((1, 4, 16, 8, 8), Generator().manual_seed(6)), torch.tensor([500])
context = pipe.encode_text([PROMPT])
with torch.no_grad():
    same = torch.allclose(mine.unet(x, timesteps, context), pipe.unet(x, timesteps, context), atol=1e-5)
kinds = {type(module).__module__ for module in mine.unet.modules() if type(module).__name__ == "TemporalConv"}
print("TemporalConv comes from", kinds, "and the answers are equal:", same)
assert same and kinds == {"__main__"}

# %% [markdown]
# ## 6 · Beginning as nothing
#
# The abstract of the report says of the model that it evolves from an image model, Stable Diffusion. Making a video
# network out of an image network by adding layers that see time is called **inflation**. But the new layers start with
# random weights, and there are many of them. Would they not ruin the pictures that the old ones have learned to draw?
#
# Not if they begin as nothing. Each is $x + f(x)$, and if the last layer of $f$ has weights and biases of zero, then
# $f(x) = 0$, whatever stands before it. That is **zero initialisation**. Here is a fresh network of the shipped size.
# Its image half gets the shipped weights, its temporal half is as it was born.

# %% tags=["nbval-check-output"]
def sees_time(name):
    return "temporal" in name or name.startswith("transformer_in")


torch.manual_seed(0)
newborn = UNet(pipe.config.unet).eval()
image_half = {name: value for name, value in pipe.unet.state_dict().items() if not sees_time(name)}
missing, unexpected = newborn.load_state_dict(image_half, strict=False)
print("unexpected:", unexpected, " missing and not of time:", [name for name in missing if not sees_time(name)])

# %% tags=["nbval-check-output"]
with torch.no_grad():
    video, images = newborn(x, timesteps, context), newborn(x, timesteps, context, temporal=False)
print("largest difference:", (video - images).abs().max().item())
assert torch.equal(video, images)

# %% [markdown]
# Not small: **zero**, bit for bit. The video network *is* the image network, and everything the latter knew, the
# former knows. Now the same without the trick, twice: once the last layers get the small random weights that PyTorch
# gives to any new layer, once all new layers get those of He's rule, which is made to keep the size of what passes.

# %%
@torch.no_grad()
def careless(fill):
    """The newborn network, but fill(layer) gives each temporal layer its weights."""
    torch.manual_seed(0)
    unet = UNet(pipe.config.unet).eval()
    unet.load_state_dict(image_half, strict=False)
    for module in unet.modules():
        if type(module).__name__ in ("TemporalConv", "TemporalTransformer"):
            fill(module)
    return unet


def little(layer):
    (layer.conv4[-1] if hasattr(layer, "conv4") else layer.proj_out).reset_parameters()


def he(layer):
    for p in layer.parameters():
        if p.ndim > 1:                                       # matrices and kernels, not biases and norms
            nn.init.kaiming_normal_(p)

# %%
starts = {"the image network": TimeOff(newborn), "inflated, zero at the start": newborn,
          "inflated, small random numbers": careless(little), "inflated, by He's rule": careless(he)}
births = [film(unet, [PROMPT])[0] for unet in starts.values()]
figures.strip(births, titles=list(starts), scale=2, frames=6,
              alt="Two equal rows of red shapes in changing places; a third that differs; in the fourth only rubble.")

# %% tags=["nbval-check-output"]
off = []
for unet in list(starts.values())[1:]:
    with torch.no_grad():
        off.append(((unet(x, timesteps, context) - images).abs().mean() / images.abs().mean()).item())
print("zero at the start, the same pictures:", torch.equal(births[0], births[1]))
print("off by, as a share of the answer:", off[0], "| more than 0.05:", off[1] > 0.05, "| more than 0.5:", off[2] > 0.5)
assert torch.equal(births[0], births[1]) and off[0] == 0 and off[1] > 0.05 and off[2] > 0.5

# %% [markdown]
# All four rows have the same image weights. In the last they are of no use any more, because what they are fed is not
# what they have learned on. Training would have to repair this before it could begin to teach motion, and while it
# repairs, it would overwrite. Small numbers do less harm here, where eight blocks follow one another. But harm it is:
# the damage of each block is passed on to the next, the released network has 22 of them, and zero costs nothing.
#
# ### Will a zero ever wake up?
#
# You may have heard that weights must not start at zero, because then nothing learns. That is so if *all* do. Look at
# one layer $y = Wh$, and let $g$ be the gradient of the loss with respect to $y$. The gradient of $W$ is $g\,h^\top$.
# Neither factor is zero: $h$ comes from random weights, and $g$ from the error of the answer. So the last layer
# learns in the first step. What stands before it gets its gradient through $h$, and that is $W^\top g = 0$, as $W =
# 0$. So it learns nothing in that step. From the second step on, W is no longer zero and they all learn.

# %%
torch.manual_seed(0)
layer = TemporalConv(32, groups=8, dropout=0.0)
goal = clips.roll(1, dims=2)                                 # learn to show the frame before
gradients = []
for step in range(3):
    layer.zero_grad()
    F.mse_loss(layer(clips), goal).backward()
    convolutions = [layer.conv1[-1], layer.conv2[-1], layer.conv3[-1], layer.conv4[-1]]
    gradients.append(torch.stack([conv.weight.grad.norm() for conv in convolutions]))
    with torch.no_grad():
        for p in layer.parameters():
            p -= 1.0 * p.grad                                # a plain step of gradient descent

# %% tags=["nbval-check-output"]
for step, row in enumerate(gradients):
    print(f"step {step}: has a gradient:", {f"conv{i + 1}": bool(value > 0) for i, value in enumerate(row)})
assert (gradients[0][:3] == 0).all() and gradients[0][3] > 0 and (gradients[1] > 0).all()

# %% [markdown]
# ## 7 · What each part does in the shipped model
#
# The shipped network was trained like this: first pictures, then time (chapter 08 does it). We switch off its temporal
# parts by kind. A class that does nothing takes the place of ours:

# %%
class NoConv(TemporalConv):
    def forward(self, x):
        return x


class NoAttention(TemporalTransformer):
    def forward(self, x):
        return x

# %%
unets = {"all parts": pipe.unet, "without temporal convolution": minit2v.load().swap(TemporalConv=NoConv).unet,
         "without temporal attention": minit2v.load().swap(TemporalTransformer=NoAttention).unet,
         "without both": TimeOff(pipe.unet)}
shown = [film(unet, [PROMPT])[0] for unet in unets.values()]
figures.strip(shown, titles=list(unets), scale=2,
              alt="Four rows. The first travels evenly to the right; the second and fourth jump, the third sinks.")

# %% [markdown]
# These weights learned with all parts in place, so a network that lacks some is a patient, not a fair rival. Still one
# can see that neither kind does the work alone: without the convolutions the shape jumps to and fro and is now and then
# in two pieces, and without the attention it still travels, but it sinks on its way, and a dark spot in it comes and
# goes. And the test of section 4 can be put to a whole network: does it notice when the frames of its noise are
# shuffled?

# %% tags=["nbval-check-output"]
for name, unet in unets.items():
    told = bool(notices(lambda x: unet(x, timesteps, context), x, shuffled) > 1e-2)
    print(f"{name:30} notices the order: {told}")
    assert told == (name in ("all parts", "without temporal attention"))

# %% [markdown]
# It is a fact about the architecture, not about the training: where there are no temporal convolutions, nothing in the
# network knows the order. And the reach? The same table as before, output frames downwards and input frames to the
# right, now through whole networks:

# %%
tables = [influence(lambda x: unet(x, timesteps, context), x) for unet in unets.values()]
figures.heat([table.sqrt() for table in tables], titles=list(unets), limits=(0, 1), size=2.6,
             alt="Four tables of 16 by 16 frames; the last is a bare diagonal, the others are filled beside it.")

# %% tags=["nbval-check-output"]
beside = {name: bool((table - table.diag().diag()).max() > 0) for name, table in zip(unets, tables)}
print("frames hear of one another:", beside)
print("temporal convolutions in a row:", 4 * sum(isinstance(m, TemporalConv) for m in mine.unet.modules()))
assert list(beside.values()) == [True, True, True, False]

# %% [markdown]
# With eight blocks of four, 32 convolutions stand in a row. That would reach 32 frames to either side, more than a clip
# has, so even without attention everybody could hear everybody.
#
# ### Whom does a frame ask?
#
# We listen at the first attention of each temporal transformer, as we did for words in chapter 05, and take the mean
# over all cells and heads. Row f says whom frame f asks.

# %%
def asked(unet, x):
    """The mean weights of each temporal transformer's first attention: (F, F) each, rows adding up to 1."""
    seen, hooks = [], []

    def note(layer, inputs):
        q, k = (rearrange(to(inputs[0]), "n f (h d) -> n h f d", h=layer.heads) for to in (layer.to_q, layer.to_k))
        seen.append((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1).mean((0, 1)))

    for name, module in unet.named_modules():
        if sees_time(name) and name.endswith("attn1"):
            hooks.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        unet(x, timesteps, context)
    for hook in hooks:
        hook.remove()
    return seen

# %%
latents = pipe.autoencoder.encode(rearrange(clip, "f h w c -> 1 c f h w").float() / 127.5 - 1).detach()
noisy = process.noise(latents, 500, draw_noise(latents.shape, Generator().manual_seed(7)))
looks = asked(pipe.unet, noisy)
figures.heat(looks, titles=["at the entry", "down", "middle", "up, first", "up, second"], size=2.4,
             alt="Five tables of 16 by 16 frames: whom each frame asks, in five layers of the network.")

# %% tags=["nbval-check-output"]
print(len(looks), "layers, rows add up to 1:", all(torch.allclose(look.sum(1), torch.ones(16), atol=1e-5)
                                                   for look in looks))

# %% [markdown]
# To ask all alike would be 1/16, or 0.06, everywhere. A bright diagonal says that frames ask themselves and those who
# look like them, and that is all the first layer can go by: no convolution stands before it, so it knows of no order. A
# bright *column* is a frame that everybody asks, a landmark. Where such columns stand at the ends of the clip, or far
# and near are treated differently, the layer makes use of what the convolutions in front of it have written into the
# tokens. (Trained anew, a network may share out this work in another way.)

# %% [markdown]
# ### Any number of frames
#
# A convolution slides, and attention takes as many tokens as there are. No layer has a 16 in it:

# %% tags=["nbval-check-output"]
for frames in (1, 5, 24):
    x_long = draw_noise((1, 4, frames, 8, 8), Generator().manual_seed(8))
    with torch.no_grad():
        print(frames, "frames ->", tuple(pipe.unet(x_long, timesteps, context).shape))

# %% [markdown]
# It *runs* on any number. What it has *learned* is clips of 16 frames, and single pictures: a picture is a clip of one
# frame, and with F = 1 the network can go on learning from pictures while it learns from clips. Chapter 08 does so.

# %% [markdown]
# ## 8 · What the original does
#
# **The same block.** In ModelScope's file `unet_sd.py` each residual block holds a member called `temopral_conv`. It is
# spelled like this in the released weights, so every program that loads them has to keep the typo somewhere.
# (Ours keeps it in its rules for names, chapter 10.) It is our `TemporalConv`: four times group norm, SiLU, dropout 0.1
# (not in the first) and a `Conv3d` of (3, 1, 1), the last of them zero at the start, its norms over the whole clip.
#
# **An input transformer.** Behind the first convolution stands a temporal transformer, with 8 heads of 64 on 320
# channels. So it is wider inside, 512, than outside. Ours is `transformer_in`.
#
# **Two self-attentions.** All temporal transformers are built with `only_self_att=True`: they take no text, and where
# the spatial ones read the words, they look along time a second time. There is no mask and there are no positions, so
# each frame sees past and future, and what you have read about the order holds for the released model, too.
#
# **The report** calls this the spatio-temporal block, and counts its parts: two spatial convolutions, four temporal
# ones, two spatial attentions (one of them reads the words), two temporal ones. (That we have from a reader's notes.
# Of the report itself we could read no more than the abstract, and not section 3.2, where this should stand. What is
# said above is read off the code.) Here are the parameters, on the left of our network, on the right of the released
# one, counted with PyTorch's `meta` tensors, which have shapes and no memory:

# %% tags=["nbval-check-output"]
KINDS = {"temporal_conv": "temporal convolutions", "temporal_transformer": "temporal transformers",
         "transformer_in": "input transformer", "": "all that sees single frames"}


def inventory(unet):
    """Parameters by kind; each goes to the first kind whose mark is in its name."""
    found = dict.fromkeys(KINDS, 0)
    for name, p in unet.named_parameters():
        found[next(mark for mark in KINDS if mark in name)] += p.numel()
    return found


with torch.device("meta"):
    big = UNet(modelscope_1_7b().unet)
released, shipped = inventory(big), inventory(pipe.unet)
for (mark, theirs), ours in zip(released.items(), shipped.values()):
    print(f"{KINDS[mark]:28} {ours:9,}   {theirs:13,}")
blocks = [sum(type(module).__name__ == "Block" for module in unet.modules()) for unet in (pipe.unet, big)]
print(f"{'blocks':28} {blocks[0]:9}   {blocks[1]:13}")
assert released["temporal_conv"] == 266_891_520 and blocks == [8, 22]
assert sum(released.values()) - released[""] == 545_323_136

# %% [markdown]
# In the released network nearly two parameters in five see time, shared about equally between convolution and
# attention. And yet none of them had any effect at the moment when training began.

# %% [markdown]
# ## 9 · What can go wrong
#
# Four mistakes, each with shipped weights that load strictly, all shapes right and no line failing. You already know a
# fifth from section 6, the forgotten zero: *pictures that were fine are rubble as soon as time is switched on*.
#
# **The wrong fold.** Somebody writes `(f b)` on the way in and `(b f)` on the way back.

# %%
def wrong_fold(x):
    return rearrange(x, "b c f h w -> (f b) c h w")


for batch in (1, 2):
    numbered = torch.arange(batch * 3.0).view(batch, 1, 3, 1, 1)                 # (B, C, F, h, w): 3 frames each
    print(f"{batch} clip:", as_clip(wrong_fold(numbered), 3).flatten(1).tolist())

# %% [markdown]
# With one clip it is right! With two, the first clip holds a frame of the second. A test with a batch of one will never
# find this. And guidance always makes two, so the frames of the prompted and of the unprompted answer get mixed up.

# %%
class WrongFold(Block):
    def forward(self, x, emb, text=None, temporal=True):
        frames = x.shape[2]
        x = as_clip(self.res(wrong_fold(x), emb), frames)    # in by (f b), out by (b f)
        x = self.temporal_conv(x)
        if self.attention:
            x = as_clip(self.spatial_transformer(as_images(x), text), frames)
            x = self.temporal_transformer(x)
        return x

# %% [markdown]
# **Attention over the wrong axis.** The tokens are cells again instead of frames. Any number of tokens will do for
# attention, so nothing complains.

# %%
class WrongAxis(TemporalTransformer):
    def forward(self, x):
        b, _, frames, height, _ = x.shape
        h = rearrange(self.norm(x.flatten(3)), "b c f p -> (b f) p c")           # all pixels of a frame in a row
        h = self.proj_out(self.block(self.proj_in(h)))
        return x + rearrange(h, "(b f) (h w) c -> b c f h w", f=frames, h=height)

# %% [markdown]
# **A norm for each frame.** The frames are folded into the batch before the norm, as in the image half.

# %%
class FrameNorm(GroupNorm):
    def forward(self, x):
        each = super().forward(rearrange(x, "b c f p -> (b f) c p"))
        return rearrange(each, "(b f) c p -> b c f p", f=x.shape[2])


class NormPerFrame(TemporalConv):
    def __init__(self, channels, groups, dropout):
        super().__init__(channels, groups, dropout)
        for row in (self.conv1, self.conv2, self.conv3, self.conv4):
            row[0] = FrameNorm(groups, channels)

# %% [markdown]
# A test for it: let the clip become three times as strong from its first frame to its last. A layer whose norms see
# single frames finds the same to add, as if nothing had happened.

# %% tags=["nbval-check-output"]
rising = clips * torch.linspace(1, 3, 16)[:, None, None]
for name, kind in {"norm of the clip": TemporalConv, "norm of each frame": NormPerFrame}.items():
    torch.manual_seed(0)
    layer = awake(kind(32, groups=8, dropout=0.0))
    with torch.no_grad():
        blind = torch.allclose(layer(rising) - rising, layer(clips) - clips, atol=1e-3)
    print(f"{name:18} is blind to it: {blind}")
    assert blind == (kind is NormPerFrame)

# %% [markdown]
# **Time backwards.** The three matrices of each convolution in the opposite order, as happens when a formula is written
# as a true convolution (which flips its kernel) and the library means correlation.

# %%
class Backwards(FrameConv):
    def forward(self, x):
        return F.conv2d(x, self.weight.squeeze(-1).flip(2), self.bias, padding=(1, 0))

# %%
swaps = {"all is right": {}, "the wrong fold": {"Block": WrongFold}, "wrong axis": {"TemporalTransformer": WrongAxis},
         "norm per frame": {"TemporalConv": NormPerFrame}, "time backwards": {"FrameConv": Backwards}}
suspects = {name: minit2v.load().swap(**classes).unet for name, classes in swaps.items()}
asked_for = [PROMPT, "a blue star moves down on a white background"]
rows = [film(unet, asked_for) for unet in suspects.values()]

# %%
figures.strip([row[0] for row in rows], scale=2, frames=6,
              titles=[f"{name}: {asked_for[0]}" for name in suspects],
              alt="Five rows: in the first a red circle moves right, in the second is rubble; in the third it drifts "
                  "upwards as well, the fourth is like the first, and in the fifth the circle goes left.")

# %%
figures.strip([row[1] for row in rows], scale=2, frames=6,
              titles=[f"{name}: {asked_for[1]}" for name in suspects],
              alt="Five rows: in the first a blue star moves down, in the second is rubble; in the third it stops "
                  "halfway, the fourth is like the first, and in the fifth the star goes up.")

# %% [markdown]
# What would a test see? We take drawn scenes, noise them, and compare the error of the answers: once for one clip at
# time 100, where there is little noise, and once for a batch of eight, at times from 100 to 900. Because the times
# differ, compare within a column, not across. Of the four mistakes, only the wrong fold depends on the size of the
# batch:

# %%
scenes = [Scene((Thing(colour, shape, motion),), ground) for colour, shape, motion, ground in [
    ("red", "circle", "right", "black"), ("blue", "star", "down", "white"), ("green", "square", "grow", "grey"),
    ("pink", "triangle", "left", "black"), ("cyan", "circle", "shrink", "white"), ("yellow", "star", "up", "grey"),
    ("orange", "square", "spin", "black"), ("purple", "triangle", "stay", "white")]]
verbs = {"grow": "grows", "shrink": "shrinks", "spin": "spins", "stay": "stays still"}
texts = [f"a {scene.things[0].colour} {scene.things[0].shape} "
         f"{verbs.get(scene.things[0].motion, 'moves ' + scene.things[0].motion)} on a {scene.ground} background"
         for scene in scenes]

# %%
@torch.inference_mode()
def loss(unet, x0, texts):
    """The denoising error on clips, one time for all suspects: a float."""
    times = torch.linspace(100, 900, len(x0)).long()
    return denoising_loss(unet, process, x0, pipe.encode_text(texts), Generator().manual_seed(9), t=times)[0].item()


with torch.inference_mode():
    x0 = pipe.autoencoder.encode(rearrange(render(scenes), "b f h w c -> b c f h w").float() / 127.5 - 1)
costs = {name: (loss(unet, x0[:1], texts[:1]), loss(unet, x0, texts)) for name, unet in suspects.items()}
for name, (one, eight) in costs.items():
    print(f"{name:16} one clip: {one:.3f}   eight clips: {eight:.3f}")

# %% tags=["nbval-check-output"]
right = costs.pop("all is right")
print("with a single clip the wrong fold is invisible:", abs(costs["the wrong fold"][0] - right[0]) < 1e-4)
print("with eight it at least doubles the loss:", costs["the wrong fold"][1] > 2 * right[1])
print("all four cost something on eight clips:", all(eight > right[1] for _, eight in costs.values()))
assert abs(costs["the wrong fold"][0] - right[0]) < 1e-4 and costs["the wrong fold"][1] > 2 * right[1]
assert all(eight > right[1] for _, eight in costs.values())

# %% [markdown]
# Two rows deserve a second look. **Time backwards** turns the motion round: the star goes up, and the circle that was
# sent to the right goes left. It is section 4 once more, as an experiment: which way is forward stands in the
# convolutions and nowhere else. And the **norm for each frame** is the most treacherous of the four. Its clips are
# nearly right, and on the eight clips its loss is hardly raised. What it loses is what frames differ in as a whole, and
# one has to look for that on purpose, as the test above did.
#
# The symptoms, in short:
#
# | what you see | where to look |
# |---|---|
# | fine alone, mixed up in a batch or under guidance | the folds: `(b f)` in, `(b f)` out |
# | frames do not agree on what they show | time switched off |
# | nearly nothing; but make one frame stronger, and no answer changes | norms that see single frames |
# | the object is there, the motion is not the one asked for | the frames' order: flipped or lost; the wrong axis |
# | everything was fine before the temporal layers were added | the forgotten zero |

# %% [markdown]
# ## Recap
#
# 1. A temporal convolution mixes a frame with its two neighbours, at one place: a 2-D convolution on (frames, pixels).
# 2. Temporal attention lets all frames of one place ask one another; it knows no order, and needs none.
# 3. The order lives in the convolutions, and the zeros beyond the clip's ends tell a frame where it is.
# 4. Norms of layers that see time take their statistics over the whole clip.
# 5. Every new branch ends in zeros, so the video network starts as the image network, bit for bit.
#
# What you now own: the whole network of a text-to-video model. It stands still, as long as its temporal half is
# newborn. Chapter 08 teaches it to move.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/07_into_time](../exercises/07_into_time.ipynb).
#
# 1. **A convolution over frames** (build). Write the sum over three frames as a class of your own.
# 2. **Two clips, mixed up** (repair). A fold that is right with one clip and wrong with two. Mend it.
# 3. **Along its own history** (build). Let all frames of one place attend to one another.
# 4. **It starts as nothing** (build). Write a temporal convolution that changes nothing at first, and can learn.
# 5. **How far a frame sees** (explore). Predict how many frames a stack of convolutions reaches.
#
# And without a check, for an evening: pad the temporal convolutions with the clip's own first and last frame instead of
# zeros, and watch what happens to clips of 16 and of 48 frames.

# %% [markdown]
# ## References
#
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. Its section 3.2 should be on
#   the spatio-temporal block.
# - U. Singer et al., *Make-A-Video: Text-to-Video Generation without Text-Video Data*, 2022, arXiv:2209.14792.
#   Convolution and attention along time, added to an image model and started as the identity.
# - J. Ho et al., *Video Diffusion Models*, 2022, arXiv:2204.03458. Space and time in turns; pictures as clips of one
#   frame.
# - A. Blattmann et al., *Align your Latents: High-Resolution Video Synthesis with Latent Diffusion Models*, 2023,
#   arXiv:2304.08818. The same inflation of Stable Diffusion, with a learned mixture in place of the zero.
# - J. Carreira and A. Zisserman, *Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset*, 2017,
#   arXiv:1705.07750. Where the word inflation comes from.
# - M. A. Islam, S. Jia and N. Bruce, *How Much Position Information Do Convolutional Neural Networks Encode?*, 2020,
#   arXiv:2001.08248. That networks know places by the zeros at the rim.
