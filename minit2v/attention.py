"""Attention, feed-forward, and the transformer block made of the two.

One block serves all three kinds of attention of the model (Wang et al. 2023, "ModelScope
Text-to-Video Technical Report", arXiv:2308.06571); only the tokens differ:

    spatial   the tokens are the pixels of one frame        each frame looks around inside itself
    cross     ... and the keys are the words of the prompt  each pixel reads the sentence
    temporal  the tokens are the frames of one pixel        each place looks along its own history

Nothing in here knows what a token is. Attention does not even know the order of its tokens: permute
them and the output is permuted in the same way.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .few import Projection

# Up to this many keys, and this many scores in all, the two plain lines of `attend` are used.
PLAIN_KEYS = 256
PLAIN_SCORES = 2**25
SEQUENCES = 2**16 - 1                                    # at a time: kernels of cards take no more (pytorch #142228)
ROWS = 2048                                              # tokens that the feed-forward widens at a time


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, the scaled dot-product attention (Vaswani et al. 2017, equation 1).

    q: (N, heads, Q, d) queries; k, v: (N, heads, K, d) keys and values. Returns (N, heads, Q, d).

    Two ways to the same numbers: PyTorch's fused operation, which never holds the whole (Q, K) matrix, or
    the formula itself. The formula is for training with few keys, because the fused operation's bfloat16
    backward pass is slow on a processor and took half of a training step.
    """
    few = k.shape[-2] <= PLAIN_KEYS and q.shape[:-1].numel() * k.shape[-2] <= PLAIN_SCORES
    if few and q.requires_grad:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)      # (N, heads, Q, K)
        return scores.softmax(dim=-1) @ v                             # (N, heads, Q, d)
    parts = zip(q.split(SEQUENCES), k.split(SEQUENCES), v.split(SEQUENCES))
    outs = [F.scaled_dot_product_attention(*part) for part in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


class Attention(nn.Module):
    """Multi-head attention: of tokens to one another, or of tokens to a text.

    `context_width` is the width of what keys and values are made from; it is the tokens' own by default.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = Projection(width, width, bias=False)
        self.to_k = Projection(context_width or width, width, bias=False)
        self.to_v = Projection(context_width or width, width, bias=False)
        self.to_out = Projection(width, width)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context: (B, L, context_width) -> two of (B, heads, L, d)."""
        k = rearrange(self.to_k(context), "b l (h d) -> b h l d", h=self.heads)
        v = rearrange(self.to_v(context), "b l (h d) -> b h l d", h=self.heads)
        return k, v

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x: (N, L, C) -> (N, L, C). Without `text` each of the N sequences attends to itself.

        `text` holds the keys and values of B prompts, (B, heads, L, d) each, where N = B * frames: all
        frames of a clip share one prompt, so they are lined up as one long row of queries. The prompt is
        neither projected nor stored once per frame.
        """
        k, v = self.keys_values(x) if text is None else text
        q = rearrange(self.to_q(x), "(b f) l (h d) -> b h (f l) d", b=k.shape[0], h=self.heads)
        out = attend(q, k, v)                                         # (B, heads, frames * L, d)
        return self.to_out(rearrange(out, "b h (f l) d -> (b f) l (h d)", l=x.shape[1]))


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv:2002.05202): a widened layer, each value of it opened or closed by a gate.

    x: (..., C) -> (..., C), with 4 C values and 4 C gates in between. Of all layers it needs the most memory.
    Where no gradient is wanted it therefore takes ROWS tokens at a time: what is wide then stays in the cache.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj = Projection(width, 8 * width)
        self.out = Projection(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)                                     # (N, C)
        rows = len(tokens) if torch.is_grad_enabled() else ROWS
        return torch.cat([self.gated(some) for some in tokens.split(rows)]).view(x.shape)

    def gated(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)                   # (N, 4C) each
        return self.out(value * F.gelu(gate.contiguous()))            # gelu is twice as fast on unbroken memory


class TransformerBlock(nn.Module):
    """Two attentions and a feed-forward, each as x + f(LayerNorm(x)).

    The first attention is always among the tokens. The second reads the text if `context_width` is
    given; otherwise it is among the tokens once more, as in the original's temporal transformers.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x: (N, L, C) -> (N, L, C); `text` as in `Attention.forward`, for the second attention."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))
