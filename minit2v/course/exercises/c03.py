"""Chapter 03, text: a merge, who may look at whom, the contrastive loss, the last block but one."""

import math
import random
import re
from collections import Counter

import torch
import torch.nn.functional as F

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors

# 03.merge

def _merge_cases(seed):
    rng = random.Random(seed)
    words = sorted({tuple(rng.choices("abc", k=rng.randint(2, 7))) for _ in range(12)})
    return [
        ([tuple("low"), tuple("new"), tuple("newer"), tuple("lot")], [9, 2, 3, 4]),      # l o stands most often
        ([tuple("moon"), tuple("bear")], [2, 2]),                                       # all are equally frequent
        ([tuple("aaaaa"), tuple("baa"), tuple("cbab")], [3, 1, 2]),                      # pairs that overlap
        ([("ca", "b", "ab"), ("a", "b", "c", "a", "b"), ("a", "ba")], [1, 4, 2]),        # text that looks like the pair
        ([tuple("yzyz"), tuple("ab")], [2, 3]),                                          # y z, twice in a word
        ([("b", "c"), ("ab", "a"), ("a", "bc")], [1, 1, 1]),                           # a before ab before b
        (words, [rng.randint(1, 9) for _ in words]),
    ]


def _call_merge(hand_in, words, counts):
    """The pair, the words, and what they are made of: the next step compares with tuples, and counts them."""
    found = hand_in(words, counts)
    pair, joined = found if isinstance(found, (tuple, list)) and len(found) == 2 else (found, None)
    made = [type(word).__name__ for word in joined] if isinstance(joined, (tuple, list)) else []
    return {"pair": pair, "words": joined, "type of the pair": type(pair).__name__,
            "types of the words": ", ".join(sorted(set(made)))}


def _merge_oracle(words, counts):
    times = {}
    for word, count in zip(words, counts):
        for i in range(1, len(word)):
            times[word[i - 1], word[i]] = times.get((word[i - 1], word[i]), 0) + count
    pair = sorted(times, key=lambda pair: (1 / times[pair], *pair))[0]
    pattern = re.compile(rf"(?<!\S){re.escape(' '.join(pair))}(?!\S)")
    joined = [tuple(pattern.sub("".join(pair), " ".join(word)).split(" ")) for word in words]
    return {"pair": pair, "words": joined, "type of the pair": "tuple", "types of the words": "tuple"}


def _merge(words, counts, weighed=True, alphabet=True, each=True, join=None):
    times = Counter()
    for word, count in zip(words, counts):
        pairs = list(zip(word, word[1:]))
        for pair in pairs if each else dict.fromkeys(pairs):
            times[pair] += count if weighed else 1
    best = min(times, key=lambda pair: (-times[pair], pair if alphabet else 0))
    return best, [(join or _join)(word, best) for word in words]


def _join(word, pair, most=math.inf, overlap=False):
    joined, i = [], 0
    while i < len(word):
        found = word[i:i + 2] == pair and most > 0
        joined.append(word[i] + word[i + 1] if found else word[i])
        most -= found
        last = i + 2 == len(word)
        i += 1 + (found and (last or not overlap))
    return tuple(joined)


def _merge_unweighed(words, counts):
    return _merge(words, counts, weighed=False)


def _merge_in_words(words, counts):
    return _merge(words, counts, each=False)


def _merge_first_come(words, counts):
    return _merge(words, counts, alphabet=False)


def _merge_once(words, counts):
    return _merge(words, counts, join=lambda word, pair: _join(word, pair, most=1))


def _merge_overlapping(words, counts):
    return _merge(words, counts, join=lambda word, pair: _join(word, pair, overlap=True))


def _merge_lists(words, counts):
    return _merge(words, counts, join=lambda word, pair: list(_join(word, pair)))


def _merge_as_text(words, counts):
    return _merge(words, counts, join=lambda word, pair: tuple(
        " ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")))


MERGE = Exercise(
    name="03.merge", target="merge_step", kind="build", title="One merge", minutes=20, level=2, cases=_merge_cases,
    oracle=_merge_oracle, call=_call_merge, forbidden=("join_pair", "learn_merges"),
    mistakes=(
        Mistake("each word once", _merge_unweighed, "You count every word once. A pair counts as often as the words "
                "that it stands in: what is frequent is to become one piece."),
        Mistake("once in each word", _merge_in_words, "A pair that stands twice in a word counts twice; you count in "
                "how many words it stands."),
        Mistake("first come", _merge_first_come, "Where two pairs are equally frequent, you take the one that was seen "
                "first. The alphabet is to decide, so that the order of the words does not matter. (Chapter 03, "
                "section 1.)"),
        Mistake("once a word", _merge_once, "You join the pair in one place of each word and stop. It can stand there "
                "more than once."),
        Mistake("used twice", _merge_overlapping, "In a a a you make two pairs out of three letters. From the left: "
                "what has been joined is used up, and cannot be half of a second pair."),
        Mistake("as text", _merge_as_text, "You look for the pair in a text, and find it where a longer symbol only "
                "ends, or begins, like it. Compare whole symbols."),
        Mistake("lists for tuples", _merge_lists, "The symbols are right, but your words come back as lists. They are "
                "what the next step begins with: a slice of a list equals no pair, so from then on nothing would be "
                "joined any more."),
    ),
    hints=(sketches.merge,
           "Three steps: count all neighbours, choose, join. Chapter 03 does the first two on six words.",
           "`min` with a key can do the choice: of two tuples the one with the smaller first entry is the smaller one, "
           "and only if these are equal the second counts.",
           "To join, walk along the word by an index, which moves on by two where the pair was found."),
)


# 03.weights

def _weights_cases(seed):
    scores, more = random_tensors(seed, (3, 5, 5), (2, 4, 4))
    return [(scores, torch.tensor([[8, 3, 9, 0, 0], [8, 2, 5, 1, 9], [8, 9, 0, 0, 0]])),
            (3 * more, torch.tensor([[8, 4, 9, 0], [8, 6, 7, 9]]))]


def _call_weights(hand_in, scores, tokens):
    """The hand-in's weights. Rows in which everything is hidden are not numbers; they are compared as -1."""
    found = hand_in(scores, tokens)
    return found.nan_to_num(-1.0) if isinstance(found, torch.Tensor) else found


def _weights_oracle(scores, tokens):
    allowed = torch.tensor([[[float(j <= i and row[j] != 0) for j in range(len(row))] for i in range(len(row))]
                            for row in tokens.tolist()], dtype=scores.dtype)
    shares = scores.exp() * allowed
    return shares / torch.einsum("nij->ni", shares)[:, :, None]


def _weights(scores, tokens, causal=1, padding="keys", low=-math.inf):
    hidden = torch.zeros(scores.shape, dtype=torch.bool)
    if causal is not None:
        hidden |= torch.ones(scores.shape[1:], dtype=torch.bool).triu(causal)
    if padding:
        hidden |= (tokens == 0)[:, None, :] if padding == "keys" else (tokens == 0)[:, :, None]
    return scores.masked_fill(hidden, low)


def _weights_padding_seen(scores, tokens):
    return _weights(scores, tokens, padding=None).softmax(-1)


def _weights_future(scores, tokens):
    return _weights(scores, tokens, causal=None).softmax(-1)


def _weights_rows(scores, tokens):
    return _weights(scores, tokens, padding="queries").softmax(-1)


def _weights_not_itself(scores, tokens):
    return _weights(scores, tokens, causal=0).softmax(-1)


def _weights_zero(scores, tokens):
    return _weights(scores, tokens, low=0.0).softmax(-1)


def _weights_late(scores, tokens):
    return scores.softmax(-1) * (_weights(scores, tokens) > -math.inf)


def _weights_columns(scores, tokens):
    return _weights(scores, tokens).softmax(-2)


_EXAMPLE = torch.tensor([[8, 1, 2, 3, 9, 0, 0]])


def _draw_weights(function=_weights_oracle):
    names = ["START", "a", "red", "star", "END", "0", "0"]
    weights = function(torch.zeros(1, 7, 7, dtype=torch.float64), _EXAMPLE)[0]
    return figures.heat(weights, values=True, rows=names, columns=names, size=4, limits=(0, 1),
                        alt="Weights for equal scores: a lower triangle of shares that add up to 1 in each row; the "
                            "two columns of the padding are zero.")


WEIGHTS = Exercise(
    name="03.weights", target="look", kind="build", title="A mask for two", minutes=15, level=2, points=3,
    cases=_weights_cases, oracle=_weights_oracle, call=_call_weights, gradients=True, celebrate=_draw_weights,
    mistakes=(
        Mistake("padding seen", _weights_padding_seen, "No place looks ahead, that is right. But the padding's own "
                "places look at the padding."),
        Mistake("future seen", _weights_future, "Nobody looks at the padding, that is right. But words look at what "
                "stands after them."),
        Mistake("rows for columns", _weights_rows, "You hide everything from the padding, and its weights are a "
                "division of zero by zero. The padding is to be hidden from the others: it is about who is looked at."),
        Mistake("not itself", _weights_not_itself, "Your words do not look at themselves, and START, which has nothing "
                "before it, has nobody left to look at. Mind on which side of the mask the diagonal belongs."),
        Mistake("zero for nothing", _weights_zero, "You give hidden places a score of 0. That is a score like any "
                "other, and its exponential is 1."),
        Mistake("too late", _weights_late, "Your weights do not add up to 1: what the hidden places were given is "
                "lost. Hide before you share out."),
        Mistake("shared out the wrong way", _weights_columns, "Your columns add up to 1. It is the one who looks, the "
                "row, who has a whole to share out."),
    ),
    hints=(_draw_weights, "Two reasons to be hidden: it comes later, or it is padding. Either is enough.",
           "The first is (L, L) and the same for all texts. The second is (N, L), about columns; give it the axis that "
           "is missing. Then both fit (N, L, L)."),
)


# 03.loss

def _loss_cases(seed):
    u, v, a, b = random_tensors(seed, (5, 3), (5, 3), (6, 4), (6, 4))
    return [(u, v, 2.0), (3 * a, b / 2, 1 / 0.07)]


def _loss_oracle(u, v, tau):
    total = 0.0
    for i in range(len(u)):
        own = tau * F.cosine_similarity(u[i], v[i], dim=0)
        rows, columns = (tau * F.cosine_similarity(one[i][None], many, dim=1) for one, many in ((u, v), (v, u)))
        total = total + (rows - own).exp().sum().log() + (columns - own).exp().sum().log()
    return total / (2 * len(u))


def _loss(u, v, tau, unit=True, ways=(1, 0), over=2, mean=True):
    if unit:
        u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
    scores = tau * u @ v.T
    parts = [scores.logsumexp(dim=way) - scores.diagonal() for way in ways]
    return sum(part.mean() if mean else part.sum() for part in parts) / over


def _loss_long(u, v, tau):
    return _loss(u, v, tau, unit=False)


def _loss_captions(u, v, tau):
    return _loss(u, v, tau, ways=(1,), over=1)


def _loss_clips(u, v, tau):
    return _loss(u, v, tau, ways=(0,), over=1)


def _loss_divided(u, v, tau):
    return _loss(u, v, 1 / tau)


def _loss_deaf(u, v, tau):
    return _loss(u, v, 1.0)


def _loss_added(u, v, tau):
    return _loss(u, v, tau, over=1)


def _loss_summed(u, v, tau):
    return _loss(u, v, tau, mean=False)


def _draw_loss(function=_loss_oracle):
    taus, right = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), torch.eye(8, dtype=torch.float64)
    lines = {"each has found its own": [function(right, right, tau).item() for tau in taus],
             "all alike": [function(right[:1].repeat(8, 1), right[:1].repeat(8, 1), tau).item() for tau in taus]}
    return figures.plot(lines, x=torch.tensor(taus).log10(), xlabel="log10 of tau", ylabel="loss of 8 pairs",
                        alt="All alike: log 8, about 2.08, at every tau. Found: falls from there to 0 as tau grows.")


LOSS = Exercise(
    name="03.loss", target="clip_loss", kind="build", title="Which belongs to which", minutes=15, level=2, points=3,
    cases=_loss_cases, oracle=_loss_oracle, gradients=True, forbidden=("ClipLoss",),
    celebrate=_draw_loss,
    mistakes=(
        Mistake("long vectors", _loss_long, "You compare the vectors as they come. Without a common length, a long one "
                "wins every comparison."),
        Mistake("captions only", _loss_captions, "Each caption looks for its clip, and that is half of the loss. Each "
                "clip looks for its caption, too."),
        Mistake("clips only", _loss_clips, "Each clip looks for its caption, and that is half of the loss. Each "
                "caption looks for its clip, too."),
        Mistake("the wrong side", _loss_divided, "You divide by tau. Here it is a factor: the larger, the sharper the "
                "choice. (Chapter 03, section 6.)"),
        Mistake("deaf to tau", _loss_deaf, "tau changes nothing. Cosines from -1 to 1 alone are differences too small "
                "for a softmax."),
        Mistake("both added", _loss_added, "Your loss is twice as large: of the two directions the mean is wanted."),
        Mistake("a sum", _loss_summed, "You add up over the pairs. A loss that is a mean can be compared from one "
                "batch size to another, and with log N."),
    ),
    hints=(_draw_loss, "First the table of all N x N scores; row i is a choice among N clips with the right answer i.",
           "`F.cross_entropy` takes such a table and the right answers. For the other direction turn the table."),
)


# 03.penultimate

def _block(strength):
    def block(x, mask=None):
        scores = strength * x @ x.mT + (0 if mask is None else mask)
        return x + torch.tanh(scores.softmax(-1) @ x + strength)
    return block


def _norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def _mask(x):
    return x.new_full((x.shape[1], x.shape[1]), -math.inf).triu(1)


def _call_penultimate(hand_in, x):
    blocks = [_block(s) for s in (0.1, 0.4, -0.3, 0.2)]
    return {"context": hand_in(x, blocks, _norm, _mask(x)), "number of blocks afterwards": len(blocks)}


def _penultimate_oracle(x):
    for strength in (0.1, 0.4, -0.3):
        rows = [((strength * torch.einsum("nd,njd->nj", x[:, i], x[:, :i + 1])).softmax(-1)[:, :, None]
                 * x[:, :i + 1]).sum(1) for i in range(x.shape[1])]
        x = x + torch.tanh(torch.stack(rows, dim=1) + strength)
    return {"context": F.layer_norm(x, x.shape[-1:], eps=1e-5), "number of blocks afterwards": 4}


def _context(x, blocks, norm, mask, each=False):
    for block in blocks:
        x = norm(block(x, mask)) if each else block(x, mask)
    return x if each else norm(x)


def _penultimate_all(x, blocks, norm, mask):
    return _context(x, blocks, norm, mask)


def _penultimate_early(x, blocks, norm, mask):
    return _context(x, blocks[:-2], norm, mask)


def _penultimate_first(x, blocks, norm, mask):
    return _context(x, blocks[1:], norm, mask)


def _penultimate_raw(x, blocks, norm, mask):
    return _context(x, blocks[:-1], lambda x: x, mask)


def _penultimate_each(x, blocks, norm, mask):
    return _context(x, blocks[:-1], norm, mask, each=True)


def _penultimate_pop(x, blocks, norm, mask):
    blocks.pop()
    return _context(x, blocks, norm, mask)


def _penultimate_open(x, blocks, norm, mask):
    return _context(x, blocks[:-1], norm, None)


def _penultimate_end(x, blocks, norm, mask):
    return _context(x, blocks[:-1], norm, mask)[:, -1]


PENULTIMATE = Exercise(
    name="03.penultimate", target="context", kind="repair", title="One block too many", minutes=10, level=1,
    cases=lambda seed: [tuple(random_tensors(seed, (2, 4, 3))), tuple(random_tensors(seed + 1, (1, 6, 5)))],
    oracle=_penultimate_oracle, call=_call_penultimate, gradients=True,
    mistakes=(
        Mistake("as trained", _penultimate_all, "Every block still runs, as when the text network was trained. The "
                "last one writes for nobody but END. (Chapter 03, section 4.)"),
        Mistake("too early", _penultimate_early, "Now you stop two blocks before the end. One less is what the video "
                "network was trained with."),
        Mistake("the wrong end", _penultimate_first, "You have left out the first block, not the last."),
        Mistake("norm lost", _penultimate_raw, "The right block; but the norm at the end belongs to what the video "
                "network was trained with, and it has got lost."),
        Mistake("norm each time", _penultimate_each, "The norm has got into the loop. It comes once, at the end."),
        Mistake("a block lost", _penultimate_pop, "The right block; but the last one is gone from `blocks` for good, "
                "and the next call loses another. Leave the list as it is."),
        Mistake("mask lost", _penultimate_open, "The right block; but the mask has got lost, and words look ahead."),
        Mistake("one vector", _penultimate_end, "That is the vector of one place. The video network reads those of "
                "all places."),
    ),
    hints=(sketches.penultimate,
           "Print how many blocks run, and how many there are.",
           "A slice of a list can leave out its last entry; what comes after the loop stays as it is."),
)


# 03.known

def _known(clips, groups):
    known = torch.eye(groups, dtype=torch.float64).repeat(clips // groups, 1)                 # one-hot: its group
    scores = 1000 * known @ known.T
    return (scores.logsumexp(dim=1) - scores.diagonal()).mean().item()


KNOWN = Exercise(
    name="03.known", target="answer_known", kind="explore", title="What colours are worth", minutes=10, points=1,
    options=lambda rng: {"clips": rng.choice((32, 128, 256)), "groups": rng.choice((4, 8))}, oracle=_known,
    tolerance=5e-3,
    mistakes=(
        Mistake("guessing", lambda clips, groups: math.log(clips), "That is the loss of one who knows nothing at all."),
        Mistake("the gain", lambda clips, groups: math.log(groups), "That is what knowing the colour saves. What is "
                "left to lose?"),
        Mistake("in bits", lambda clips, groups: math.log2(clips / groups), "Those are bits. Our losses use the "
                "natural logarithm."),
        Mistake("a share", lambda clips, groups: groups / clips, "That is the share of captions that find their clip. "
                "A loss is asked for."),
    ),
    hints=(sketches.known,
           "Once the colour is known, among how many clips must a caption still choose by guessing?",
           "To try it, give all clips of one colour the same vector of zeros and a single one, as in section 3 of the "
           "chapter, and put them into 03.loss with a large tau."),
)

EXERCISES = [MERGE, WEIGHTS, LOSS, PENULTIMATE, KNOWN]
