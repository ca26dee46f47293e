# %% [markdown]
# # 12 · Exercises: fine-tuning
#
# Five exercises on chapter 12, about 70 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("12.lora")` helps, a little more each time.

# %%
import torch
from torch import Tensor, nn

import minit2v
from minit2v.course import check, figures, hint, progress, solution, task

# %% [markdown]
# ## 12.lora · A small change beside a large layer
#
# *Build · medium · 20 minutes · 3 points.* Why it matters: this is how people fine-tune the 1.7 billion on one small
# GPU, and send each other the result by mail.
#
# Beside a linear layer, which stays as it is and does not learn, stands a detour: x goes through two matrices, `down`,
# (rank, in), and `up`, (out, rank), and what comes out counts alpha / rank times. A new adapter changes nothing at all,
# and it can learn nevertheless, up to the full rank. Keep the layer itself, not a copy of it, as `linear`; `down` and
# `up` are parameters themselves (`nn.Parameter`), not layers.

# %%
class LoRA(nn.Module):
    """A linear layer with an adapter beside it (Hu et al. 2021, eq. 3). x: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        ### BEGIN SOLUTION
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features ** 0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        return self.linear(x) + self.scale * (x @ self.down.T @ self.up.T)
        ### END SOLUTION


adapter = LoRA(nn.Linear(64, 64), rank=4, alpha=4.0)
sum(p.numel() for p in adapter.parameters() if p.requires_grad)          # 512 learn, beside 4160 that do not

# %% tags=["nbval-check-output"]
check("12.lora", LoRA)

# %% [markdown] tags=["solution"]
# `up` is zero, so nothing comes out of the detour; what comes into it is not, so `up` has a slope and leaves zero at
# the first step, and then `down` learns, too. Two matrices of rank 4 are a fraction of the one that they change.

# %% [markdown]
# ## 12.min_snr · No noise level too dear
#
# *Build · medium · 15 minutes · 2 points.* Why it matters: all noise levels share one network, and whichever counts
# most has its way.
#
# Hang et al. (2023) let the squared error of the *clip* count min(SNR, gamma) times, where SNR is the signal-to-noise
# ratio alpha-bar / (1 - alpha-bar): nearly clean times, at which little is to be learnt, count no more than `gamma`.
# Our networks answer with the noise or with the velocity. Give the weight of *their* squared error, so that it comes to
# the same. `prediction` is "noise" or "velocity".

# %%
def min_snr(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weight of the squared error at each time (Hang et al. 2023, section 3.4). alpha_bar: any shape; returns it."""
    ### BEGIN SOLUTION
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction == "noise" else snr + 1)
    ### END SOLUTION


bars = torch.tensor([0.1, 0.5, 0.99])                                    # noisy, half and half, nearly clean
min_snr(bars, 5.0, "noise"), min_snr(bars, 5.0, "velocity")              # 1, 1, 0.0505 and 0.1, 0.5, 0.05

# %% tags=["nbval-check-output"]
check("12.min_snr", min_snr)

# %% [markdown] tags=["solution"]
# x0 = (x - sigma eps) / alpha, so an error of the noise makes one of the clip that is sigma / alpha times as large, and
# its square counts 1 / SNR times. x0 = alpha x - sigma v, so there the factor is sigma squared, which is 1 / (SNR + 1).

# %% [markdown]
# ## 12.merge · Merged, and another clip
#
# *Repair · medium · 15 minutes · 2 points.* Why it matters: a merged adapter costs nothing any more. If it is merged
# wrongly, it costs the clip.
#
# With the adapter *beside* the layer a clip is fine; merged into its weight, it is another one. No error is raised, for
# all layers that were tried are square. There are two faults. Find both, and mend them.

# %%
def merged(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """The weight with the adapter in it. weight: (out, in), down: (rank, in), up: (out, rank); returns (out, in)."""
    ### BEGIN SOLUTION
    return weight + alpha / len(down) * (up @ down)
    ### END SOLUTION
    return weight + alpha / len(up) * (down.T @ up.T)                    # broken: mend this


merged(torch.zeros(2, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), alpha=1.0)         # 1 2, 3 6

# %% tags=["nbval-check-output"]
check("12.merge", merged)

# %% [markdown] tags=["solution"]
# x W^T + s x A^T B^T is x (W + s B A)^T: what is added has the shape of W, and no transpose is left. The rank is the
# length that A and B have in common, the rows of `down`.

# %% [markdown]
# ## 12.temporal · Which layers know time
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: to teach a new motion and keep all colours, only the layers
# of time may learn, and then really all of them.
#
# `learns` says of a parameter's name whether it belongs to a layer that sees more than one frame, that is, to a
# `TemporalConv` or a `TemporalTransformer`. The version below overlooks some. Find out which, and mend it.

# %%
def learns(name: str) -> bool:
    """Whether a parameter of the UNet, named as in `unet.named_parameters()`, belongs to a layer of time."""
    ### BEGIN SOLUTION
    return "temporal" in name or name.startswith("transformer_in.")
    ### END SOLUTION
    return "temporal" in name                                            # broken: mend this


pipe = minit2v.load()
sum(learns(name) for name, _ in pipe.unet.named_parameters())            # 258 tensors

# %% tags=["nbval-check-output"]
check("12.temporal", learns)

# %% [markdown] tags=["solution"]
# The transformer that stands right behind the first convolution is one of time, and only its place is in its name. Who
# forgets it lets the first layer of time go on seeing what it always saw.

# %% [markdown]
# ## 12.forgotten · What was forgotten
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: "the new motion works" is half of the news.
#
# A model was right in the share `before` of its clips; after fine-tuning on something else it is right in the share
# `after` of the same clips. Guessing reaches `chance`. What share of its *skill*, of what it could beyond guessing, has
# it lost? Give it as a number from 0 to 1.

# %%
task("12.forgotten")

# %%
### BEGIN SOLUTION
asked = task("12.forgotten")
answer_forgotten = (asked["before"] - asked["after"]) / (asked["before"] - asked["chance"])
### END SOLUTION
check("12.forgotten", answer_forgotten)

# %% [markdown] tags=["solution"]
# Counted from chance, a model that has fallen to chance has forgotten everything; counted from zero, it would still
# seem to know something.

# %% [markdown]
# ## The model runs on your code
#
# No points, but a good moment. Your adapters stand beside the queries of every attention in the UNet, filled with small
# random numbers, as if they had learnt something odd. Then your `merged` puts them into the weights. With adapters
# beside the layers and with merged ones the clip must be the same; without any it is another.

# %%
# adapter_class, merge = your class and your function, without brackets
### BEGIN SOLUTION
adapter_class, merge = LoRA, merged
### END SOLUTION
sentence, settings = "a green star moves up", dict(num_inference_steps=10, sampler="dpm++", progress=False)
clips, dice = [pipe(sentence, **settings)], torch.Generator().manual_seed(0)
for parent in [module for module in pipe.unet.modules() if hasattr(module, "to_q")]:
    parent.to_q = adapter_class(parent.to_q, 4, 8.0)
    parent.to_q.up.data = torch.randn(parent.to_q.up.shape, generator=dice) / 8
    parent.to_q.down.data = torch.randn(parent.to_q.down.shape, generator=dice) / 8
clips.append(pipe(sentence, **settings))
for parent in [module for module in pipe.unet.modules() if hasattr(module, "to_q")]:
    beside = parent.to_q
    beside.linear.weight.data = merge(beside.linear.weight.data, beside.down.data, beside.up.data, 8.0)
    parent.to_q = beside.linear
clips.append(pipe(sentence, **settings))
assert (clips[1].int() - clips[2].int()).abs().max() <= 2    # the last digit of a colour may be rounded otherwise
figures.strip(clips, titles=["without adapters", "with adapters beside the layers", "with adapters merged"],
              alt="Three film strips of one prompt: without adapters; with random ones, which change the clip; and "
                  "with the same ones merged, which looks like the second.")

# %% [markdown]
# ## What you have now

# %%
progress()
