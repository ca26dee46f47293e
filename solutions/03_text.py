# %% [markdown]
# # 03 · Exercises: text
#
# Five exercises on chapter 03, about 70 minutes. Replace each line that raises `NotImplementedError`, run the cell,
# then the check below it. `hint("03.merge")` helps, a little more each time.

# %%
import math
import random
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from minit2v.captions import caption_words
from minit2v.course import check, hint, progress, solution, task
from minit2v.text import learn_merges
from minit2v.world import sample_scene

# %% [markdown]
# ## 03.merge · One merge
#
# *Build · medium · 20 minutes · 2 points.* Why it matters: repeated a few hundred times, it is how our vocabulary was
# made; repeated 48,894 times, the released model's.
#
# Words are tuples of symbols, those that you return as well: the next step begins with them. `counts` says how often
# each word occurs. Count all neighbours, choose the most frequent pair, and join it in all words, from left to right.
# Among equally frequent pairs the first in the alphabet is chosen, by its first symbol and then by its second, as
# tuples are sorted: ("a", "bc") comes before ("ab", "a").

# %%
def merge_step(words: list[tuple[str, ...]], counts: list[int]) -> tuple[tuple[str, str], list[tuple[str, ...]]]:
    """One step of byte-pair encoding. Returns the pair, and the words in the same order with the pair joined."""
    ### BEGIN SOLUTION
    times = Counter()
    for word, count in zip(words, counts):
        for pair in zip(word, word[1:]):
            times[pair] += count
    best = min(times, key=lambda pair: (-times[pair], pair))
    joined = []
    for word in words:
        symbols, i = [], 0
        while i < len(word):
            width = 2 if word[i:i + 2] == best else 1
            symbols.append("".join(word[i:i + width]))
            i += width
        joined.append(tuple(symbols))
    return best, joined
    ### END SOLUTION


merge_step([tuple("red"), tuple("green"), tuple("bed")], [3, 1, 1])     # e and d, four times: r ed, g r e e n, b ed

# %% tags=["nbval-check-output"]
check("03.merge", merge_step)

# %% [markdown] tags=["solution"]
# The key of `min` puts the highest count first and lets the alphabet decide between equals. The index moves on by two
# where the pair was found, so no symbol is used twice.

# %% [markdown]
# ## 03.weights · A mask for two
#
# *Build · medium · 15 minutes · 3 points.* Why it matters: with a wrong mask nothing fails, and everything is a little
# worse.
#
# Make weights of attention scores: row i says at whom place i looks. A place looks at itself and at what stands before
# it, and nobody looks at padding, which is token 0. Each row adds up to 1. (CLIP hides only what comes later; many
# other text networks hide the padding, too.)

# %%
def look(scores: Tensor, tokens: Tensor) -> Tensor:
    """Attention weights. scores: (N, L, L); tokens: (N, L), START first; returns (N, L, L)."""
    ### BEGIN SOLUTION
    length = tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(diagonal=1)
    hidden = later | (tokens == 0)[:, None, :]                                   # (N, L, L)
    return scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
    ### END SOLUTION


look(torch.zeros(1, 4, 4), torch.tensor([[894, 700, 895, 0]]))[0, -1]            # a third each, and 0 for the padding

# %% tags=["nbval-check-output"]
check("03.weights", look)

# %% [markdown] tags=["solution"]
# The triangle is about pairs of places, the padding about columns; broadcasting brings both to (N, L, L). Minus
# infinity goes in before the softmax, so the others share out the whole. The padding's own places still look at the
# words: START is always there, so no row is empty. What still changes with the length of a row is how many such places
# there are; whoever reads the result has to leave them out, too.

# %% [markdown]
# ## 03.loss · Which belongs to which
#
# *Build · medium · 15 minutes · 3 points.* Why it matters: from this loss alone the text network learnt what words
# mean.
#
# Row i of `u` is the vector of caption i, row i of `v` that of its clip, of any length. Scale them to length one, score
# all pairs by `tau` times their product, and return the mean of both cross-entropies: captions find their clips, and
# clips their captions.

# %%
def clip_loss(u: Tensor, v: Tensor, tau: float) -> Tensor:
    """CLIP's loss (Radford et al. 2021, figure 3). u, v: (N, D); returns a scalar."""
    ### BEGIN SOLUTION
    scores = tau * F.normalize(u, dim=1) @ F.normalize(v, dim=1).T               # (N, N)
    own = torch.arange(len(u), device=u.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    ### END SOLUTION


clip_loss(torch.eye(4), 5 * torch.eye(4), tau=1.0)           # 0.7437, far above 0 though all is found: tau is small

# %% tags=["nbval-check-output"]
check("03.loss", clip_loss)

# %% [markdown] tags=["solution"]
# Row i of the table is a choice among N with the right answer i, and column i is one, too. The same table serves both;
# it is only turned.

# %% [markdown]
# ## 03.penultimate · One block too many
#
# *Repair · easy · 10 minutes · 2 points.* Why it matters: the released video network was trained to read one block
# before the end; from another one it gets vectors of the same shape and draws something else.
#
# Someone's text encoder gives a context of the right shape, and from it the released model draws clips that have little
# to do with the prompt. Find the cause, and mend it.

# %%
def context(x: Tensor, blocks: list, norm, mask: Tensor) -> Tensor:
    """Tokens and places, added, -> what the video network reads. x: (N, L, D); block(x, mask); norm(x). (N, L, D)."""
    ### BEGIN SOLUTION
    for block in blocks[:-1]:
        x = block(x, mask)
    return norm(x)
    ### END SOLUTION
    for block in blocks:                                     # broken: mend this
        x = block(x, mask)
    return norm(x)


blocks = [lambda x, mask, factor=factor: factor * x for factor in (2, 3, 5)]
context(torch.ones(1, 2, 2), blocks, norm=lambda x: x - 1, mask=None)            # 5 everywhere: 2 times 3, less 1

# %% tags=["nbval-check-output"]
check("03.penultimate", context)

# %% [markdown] tags=["solution"]
# Only END was ever read behind the last block. One block earlier every place was read by that block, and so says what
# its word means. The norm at the end stays: the original uses it there, too.

# %% [markdown]
# ## 03.known · What colours are worth
#
# *Explore · easy · 10 minutes · 1 point.* Why it matters: a loss that falls well may be stuck at something simple, and
# this number tells you at what.
#
# A batch has `clips` clips in `groups` colours, equally many of each. A network knows the colour perfectly and nothing
# else. What is its loss, for a very large `tau`? Think first, then try it with your `clip_loss`, and write the number
# into `answer_known`, to three digits or more.

# %%
task("03.known")

# %%
### BEGIN SOLUTION
answer_known = math.log(task("03.known")["clips"] / task("03.known")["groups"])
### END SOLUTION
check("03.known", answer_known)

# %% [markdown] tags=["solution"]
# Among clips of the same colour it has to guess, and guessing among n costs log n. Of all captions, one for each colour
# finds its clip, however large the batch is. Larger batches do not teach more by themselves; harder ones do.

# %% [markdown]
# ## The vocabulary on your code
#
# No points. Repeat your step on the words of two hundred captions: the merges must be those of the package.

# %%
rng = random.Random(0)
pieces = Counter(word for i in range(200) for word in caption_words(sample_scene(rng, 1 + i % 3), rng, "en"))
words, counts = [(*word[:-1], word[-1] + "</w>") for word in pieces], list(pieces.values())
merges = []
### BEGIN SOLUTION
for _ in range(100):
    pair, words = merge_step(words, counts)
    merges.append(pair)
### END SOLUTION
assert merges == learn_merges({(word, True): count for word, count in pieces.items()}, vocab_size=512 + 100 + 2)
print(" ".join("".join(pair).replace("</w>", "▁") for pair in merges))

# %% [markdown]
# ## What you have now

# %%
progress()
