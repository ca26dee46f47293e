# %% [markdown]
# # 03 · Text
#
# A network cannot read. It can only multiply numbers. In this chapter a sentence becomes a row of vectors that a
# network can use: you cut text into pieces, give each piece a vector, let the pieces look at one another, and train
# the whole until sentences lie close to the clips they tell of. At the end English and Chinese mean the same,
# though nobody has ever shown the network a translation.

# %% [markdown]
# ## What you will build
#
# The next cell uses the finished code. It reads eight sentences in English and the same eight in Chinese with the
# text network that ships with the course, takes one vector for each, and compares every vector with every other: 1
# means that two point the same way, 0 that they have nothing to do with each other, and less than 0 that they point
# apart.

# %%
import math
import random

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minit2v
from minit2v.course import figures

pairs = [("a red circle moves right", "一个红色的圆向右移动"), ("a blue circle moves right", "一个蓝色的圆向右移动"),
         ("a blue square moves left", "一个蓝色的方块向左移动"), ("a yellow star spins", "一个黄色的星星旋转"),
         ("a yellow star grows", "一个黄色的星星变大"), ("a pink triangle grows", "一个粉色的三角形变大"),
         ("a green square bounces", "一个绿色的方块弹跳"), ("a cyan circle stays still", "一个青色的圆静止不动")]
pipe = minit2v.load()


@torch.no_grad()
def sentence_vectors(sentences):
    """One vector of length one for each sentence: (N, D)."""
    tokens = pipe.tokenizer(sentences)                       # (N, L)
    context = pipe.text_encoder(tokens)                      # (N, L, D)
    return F.normalize(context[torch.arange(len(tokens)), tokens.argmax(dim=1)], dim=-1)


english, chinese = (sentence_vectors(list(sentences)) for sentences in zip(*pairs))
figures.heat(english @ chinese.T, values=True, size=4.5, rows=[sentence for sentence, _ in pairs],
             columns=[f"zh {i}" for i in range(1, 9)],
             alt="8 by 8 similarities of English and Chinese sentences: near 1 on the diagonal, far lower elsewhere.")

# %%
for i, (_, sentence) in enumerate(pairs, 1):
    print(f"zh {i}:", sentence)

# %% [markdown]
# In each row one cell stands out, and it lies on the diagonal: the sentence has found its translation. Look at what
# lies beside it, too. A red circle that moves right is rather like a blue one that does, and a star that spins is
# rather like one that grows.
#
# **You need** chapter 01's captions. That a layer has weights and learns by gradient descent is assumed; what
# *attention* is, is not. It is explained here as far as needed, and in full in chapter 05.
#
# **It takes** about 75 minutes to read and play with. All cells together run in less than a minute on one idle core.
#
# **Numbers to expect**, each asserted by a cell below:
#
# | what | number |
# |---|---|
# | tokens in our vocabulary | 896 = 512 bytes + 382 merges + 2 |
# | 一个红色的小圆快速向右移动, 13 characters | 9 tokens for us, 33 for the released model |
# | loss of a model that guesses, 64 clips in a batch | log 64 = 4.16 |
# | a caption finds its clip among 64, by guessing | 1 of 64 |
# | the same after our training, in either language | more than 16 of 64 |
# | parameters of the released text network, as it is used | 340,387,840 |

# %% [markdown]
# ## 1 · From letters to pieces
#
# A computer stores text as bytes, whole numbers from 0 to 255. English letters take one byte each, and a Chinese
# character takes three:

# %% tags=["nbval-check-output"]
for text in ("red", "红"):
    print(text, list(text.encode("utf-8")))

# %% [markdown]
# So 256 numbers are enough for every language there is. But a caption of ten words would be fifty numbers, and none
# of them means anything by itself. Whole words mean more, but then the word list is never complete, and what is
# missing from it cannot be said at all. *Byte-pair encoding* takes the middle way: start with single letters, and
# **join the two neighbours that stand together most often, again and again**. Common words end up as one piece. A rare
# word stays in several pieces, and nothing is ever unknown.
#
# ### By hand
#
# Here is a text of six words, each with the number of times it occurs. We cut the words into letters. The last
# letter of each gets the mark `</w>`, for the end of the word; why, you will see soon.

# %% tags=["nbval-check-output"]
from collections import Counter

words = {"moves": 6, "moving": 3, "goes": 4, "growing": 2, "spins": 2, "spinning": 1}


def letters_of(word):
    """A word as single letters, the last one marked: red -> (r, e, d</w>)."""
    return (*word[:-1], word[-1] + "</w>")


corpus = {letters_of(word): count for word, count in words.items()}
for symbols, count in corpus.items():
    print(count, "times", " ".join(symbols))

# %% [markdown]
# Count all neighbours, over all words, each as often as its word occurs:

# %% tags=["nbval-check-output"]
def count_pairs(corpus):
    """How often each two symbols stand side by side."""
    pairs = Counter()
    for symbols, count in corpus.items():
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += count
    return pairs


print(count_pairs(corpus).most_common(5))

# %% [markdown]
# An e before a final s wins: it stands in "moves" and in "goes". We make one symbol of the two, everywhere:

# %%
# from minit2v.text import join_pair

# %% tags=["nbval-check-output"]
print(join_pair(letters_of("moves"), ("e", "s</w>")))

# %% [markdown]
# Then count again, for there is a new symbol now, and join again. That is the whole algorithm. When two pairs are
# equally frequent, the alphabet decides, so that the result is the same on every machine.

# %% tags=["nbval-check-output"]
merges = []
for _ in range(8):
    pairs_now = count_pairs(corpus)
    best = min(pairs_now, key=lambda pair: (-pairs_now[pair], pair))
    merges.append(best)
    corpus = {join_pair(symbols, best): count for symbols, count in corpus.items()}
    some = list(corpus)[:5]                                  # "spinning" is left out, or the line would be too long
    print(f"{pairs_now[best]:2} x {best[0]} + {best[1]}".ljust(20), " | ".join(" ".join(word) for word in some))

# %% [markdown]
# Read the columns downwards. Nobody said what a stem or an ending is, but `moves` is whole by now, and the ending
# `ing` has been found. To cut a *new* word, apply the merges in the order in which they were learnt:

# %% tags=["nbval-check-output"]
def cut(word, merges):
    symbols = letters_of(word)
    for pair in merges:
        symbols = join_pair(symbols, pair)
    return symbols


for word in ("moving", "showing", "moon"):
    print(word, "->", " ".join(cut(word, merges)))

# %% [markdown]
# "showing" was never in the text, and yet its ending is understood.
#
# ### The package's version
#
# `learn_merges` does the same on bytes. Its words come with a yes or no, `final`, that says whether the end mark is to
# be set. The loop below is the one that you have just written.

# %%
from open_clip.tokenizer import bytes_to_unicode

from minit2v.text import BASE_TOKENS, SPECIAL_TOKENS

# %%
# from minit2v.text import learn_merges

# %% tags=["nbval-check-output"]
theirs = learn_merges({(word, True): count for word, count in words.items()}, vocab_size=512 + 8 + 2)
print("the same eight merges:", theirs == merges)
assert theirs == merges

# %% [markdown]
# Why 512? Each of the 256 bytes is in the vocabulary twice, once plain and once with the end mark. The 2 are the
# marks for the start and the end of a text.
#
# ### A vocabulary for two languages
#
# Now the real thing: six hundred scenes, each told in both languages. English is split at its spaces. Chinese has
# none; a sentence is one unbroken run. There we let the captions' author say where a word ends, so that no piece
# reaches across two words, but only the last word before a comma or at the end is `final`.

# %%
from minit2v.captions import caption, caption_words
from minit2v.world import COLOURS, MOTIONS, SHAPES, SIZES, Scene, render, sample_scene, sample_thing

rng, pieces = random.Random("vocabulary"), Counter()
for i in range(600):
    scene = sample_scene(rng, 1 + i % 3)
    pieces.update((word, True) for word in caption_words(scene, rng, "en"))
    chinese = caption_words(scene, rng, "zh")
    ends = [k + 1 == len(chinese) or "，" in chinese[k:k + 2] for k in range(len(chinese))]
    pieces.update(zip(chinese, ends))

# %% tags=["nbval-check-output"]
merges = learn_merges(pieces, vocab_size=896)
print(len(merges), "merges out of", len(pieces), "different words,", sum(pieces.values()), "in all")
assert 512 + len(merges) + 2 == 896

# %% [markdown]
# The merges go into a small file, and a `Tokenizer` reads it. Inside it is the tokenizer of the library open_clip,
# which is also the original's. A *token* is a piece with its number. In order of learning, the first and the last
# pieces are:

# %%
import tempfile
from dataclasses import replace

from minit2v.config import TextConfig, mini, modelscope_1_7b
from minit2v.text import Tokenizer, write_merges

with tempfile.TemporaryDirectory() as folder:
    write_merges(f"{folder}/merges.txt.gz", merges)
    config = replace(mini().text, merges=f"{folder}/merges.txt.gz", context_length=20)
    tokenizer = Tokenizer(config)

# %% tags=["nbval-check-output"]
def spell(tokenizer, ids):
    """Each token as text. A mark ▁ shows the end of a word, ? a token that is no whole character."""
    texts = [tokenizer.bpe.decode([i]) for i in ids]
    return " ".join(text.replace(" ", "▁").replace("\ufffd", "?") for text in texts)


print("first:", spell(tokenizer, range(512, 540)))
print("last: ", spell(tokenizer, range(874, 894)))

# %% [markdown]
# Frequent things came first: the bytes that many Chinese characters begin with (each `?` is a part of a character),
# then whole characters and English syllables. At the end it is down to rare words. Three captions as tokens:

# %% tags=["nbval-check-output"]
captions = ["a small red circle moves quickly to the right", "一个红色的小圆快速向右移动", "a red elephant"]
for sentence in captions:
    ids = tokenizer.encode(sentence)
    print(f"{len(sentence)} characters, {len(ids)} tokens: {spell(tokenizer, ids)}")
assert len(tokenizer.encode(captions[1])) == 9

# %% [markdown]
# A word of our world is one token, in Chinese too, where no space says where it ends. The elephant is spelled out. The
# tokenizer can write it; whether the network will know what it means is another matter.
#
# ### What the end mark is for
#
# The tokenizer throws the spaces away. "up right" is a direction in our world, and "upright" would be something else.
# The mark keeps them apart, and it lets the tokens be put together to a text again:

# %% tags=["nbval-check-output"]
for text in ("up right", "upright"):
    ids = tokenizer.encode(text)
    print(f"{text:8} -> {spell(tokenizer, ids):12} -> {tokenizer.decode(ids)}")

# %% [markdown]
# ### A row of numbers
#
# A network wants rows of one length. So the tokenizer puts the token for *start of text* before the sentence and *end
# of text* behind it, and fills up with zeros. That is *padding*. The two marks are the highest numbers of all, 894 and
# 895; the end will be found by that later.

# %% tags=["nbval-check-output"]
tokens = tokenizer(["a red circle moves right", "红色的圆向右移动"])
print(tuple(tokens.shape), "start", tokenizer.sot, "end", tokenizer.eot)
print(tokens[:, :12])

# %% [markdown]
# ## 2 · From pieces to vectors
#
# A token's number says nothing: 700 is not "more" than 650. So each token gets a row of numbers of its own, a vector,
# in a table that is learnt. PyTorch calls the table an *embedding*. Looking up a row is the same as multiplying the
# table by a vector that is 1 in one place and 0 elsewhere, only cheaper:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
table = nn.Embedding(896, 128)
one_hot = F.one_hot(tokens, num_classes=896).float()                             # (N, L, 896)
print(tuple(table(tokens).shape), torch.allclose(table(tokens), one_hot @ table.weight))

# %% [markdown]
# ### Words look back
#
# In "a red circle", what colour is the circle? Its vector cannot say, as long as it depends on "circle" alone. Words
# have to look at one another. The layer that does it is *attention*, which let the cells of a picture look at each
# other in chapter 02. Its core is four lines. Write the vectors of a sentence as the rows of a matrix $x$: L words, D
# numbers each. Each word compares itself with the others by a product of vectors (divided by $\sqrt{D}$, or the
# products would grow with the width), and makes weights of the results that add up to 1. Then it takes the weighted
# mean:
#
# $$\text{weights} = \text{softmax}\left(\frac{x\,x^\top}{\sqrt{D}} + \text{mask}\right), \qquad
#   \text{new } x = \text{weights} \cdot x$$
#
# The mask says who may look at whom. In the text network of CLIP, the model that we follow here (section 3), a word
# sees itself and what stands *before* it. There the mask is 0; elsewhere it is minus infinity, and the exponential in
# the softmax makes zero of that. It is called *causal*, as the past may act on the future, and not the other way
# round.

# %%
def look_back(x):
    """x (L, D): each row becomes a mean of itself and the rows before it. Returns the new rows and the weights."""
    scores = x @ x.T / x.shape[1] ** 0.5                                         # (L, L)
    mask = torch.full_like(scores, -math.inf).triu(diagonal=1)                   # above the diagonal
    weights = (scores + mask).softmax(dim=1)                                     # each row adds up to 1
    return weights @ x, weights

# %%
places = ["START", "a", "red", "circle", "moves", "right", "END"]
x = 0.4 * table(tokens[0, :7]).detach()                      # (L, D); made small, or each word would see only itself
new, weights = look_back(x)
figures.heat(weights, values=True, rows=places, columns=places, size=4, ylabel="who looks", xlabel="at whom",
             alt="Weights of seven words, a lower triangle: START looks only at itself, END at all seven words.")

# %% tags=["nbval-check-output"]
oracle = F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True)[0]
print("as PyTorch has it:", torch.allclose(new, oracle, atol=1e-6))

# %% [markdown]
# The table is random, so every word likes itself best and treats the others alike. In a trained network, what a word
# asks, what it is found by, and what it hands over are three different projections of its vector, with learnt weights,
# and several such *heads* work side by side. Chapter 05 builds all that.
#
# ### Words have places
#
# Attention compares, weighs and adds, and none of the three knows an order. Without the mask, turn the words round and
# you get the same vectors, turned round:

# %% tags=["nbval-check-output"]
from open_clip.transformer import LayerNorm, TextTransformer, Transformer

blocks = Transformer(width=128, layers=2, heads=4).eval()
turned = blocks(x.flip(0)[None])[0].flip(0)
print("order makes no difference:", torch.allclose(blocks(x[None])[0], turned, atol=1e-4))

# %% [markdown]
# Then "a red circle and a blue square" would be the same as "a blue circle and a red square". The cure is simple: a
# second learnt table, with one vector for each *place*, is added to the words' vectors. `Transformer` above is
# open_clip's. Each of its blocks is an attention and a small two-layer network, and each of the two *adds* to what
# is there:
#
# $$x \leftarrow x + \text{attention}(\text{norm}(x)), \qquad x \leftarrow x + \text{mlp}(\text{norm}(x))$$
#
# ### The text network
#
# Tokens, places, mask, blocks, a last norm: it is the whole of the package's `TextEncoder`. There are
# `layers - 1` blocks in it; the one that is missing is the subject of section 4.

# %%
# from minit2v.text import TextEncoder

# %% tags=["nbval-check-output"]
encoder = TextEncoder(mini().text)
for name, part in encoder.named_children():
    print(f"{name:20} {sum(p.numel() for p in part.parameters()):9,} parameters")
print(f"positional_embedding {encoder.positional_embedding.numel():9,} parameters")
context = encoder(tokens)
print("context:", tuple(context.shape))

# %% [markdown]
# That is what the video network will be given: (B, L, D), one vector for each token. We call it the *context*.
#
# Does the mask hold? We take the trained network, change one word of a sentence at a time, and measure how far each
# vector moves. Two places of padding are shown as well.

# %%
@torch.no_grad()
def influence(tokens, other):
    """How far the vector in each place (row) moves if the token in a place (column) is changed: (L, L)."""
    length = tokens.shape[1]
    changed = tokens.repeat(length, 1)                                           # (L, L): one change a row
    changed.fill_diagonal_(other)
    return (pipe.text_encoder(changed) - pipe.text_encoder(tokens)).norm(dim=-1).T


moved = influence(pipe.tokenizer("a red circle moves right")[:, :9], other=pipe.tokenizer.encode("green")[0])
figures.heat(moved, rows=[*places, "0", "0"], columns=[*places, "0", "0"], size=4.6,
             titles=["how far a vector moves (row) for a changed word (column)"],
             alt="A lower triangle of influences: nothing above the diagonal; END and padding react to every word.")

# %% tags=["nbval-check-output"]
print("above the diagonal:", round(moved.triu(1).max().item(), 4), "- below, everywhere more than 0.1:",
      bool((moved[torch.tril(torch.ones(9, 9)) == 1] > 0.1).all()))

# %% [markdown]
# Three things to remember. A word knows its past and not its future. END has seen everything, so it can stand for
# the whole sentence. And the padding *behind* it is not empty at all: it has seen the sentence too.

# %% [markdown]
# ## 3 · Meaning, from clips
#
# The network has tables and blocks full of random numbers. Who tells it what "red" means? Not a dictionary. We show
# it clips together with their captions, and ask a question that can only be answered by knowing: **which caption
# belongs to which clip?** This is CLIP, Contrastive Language-Image Pre-training (Radford et al. 2021), with clips in
# the place of images.
#
# ### The question as a loss
#
# A text network makes one vector of each of N captions, and a video network one of each of N clips. All are scaled to
# length one, so that their product is the cosine of the angle between them, from -1 to 1. All N x N products,
# multiplied by a number $\tau$, are the scores:
#
# $$s_{ij} = \tau \; u_i \cdot v_j \qquad u_i: \text{caption } i, \quad v_j: \text{clip } j$$
#
# Row i asks: which clip does caption i belong to? That is a choice among N with the right answer i, and the loss for
# a choice is the cross-entropy. Column j asks which caption belongs to clip j. We take the mean of both:
#
# $$\mathcal{L} = \frac{1}{2N} \sum_i \Big(
#   \underbrace{\log \sum_j e^{s_{ij}} - s_{ii}}_{\text{caption i finds its clip}} \; + \;
#   \underbrace{\log \sum_j e^{s_{ji}} - s_{ii}}_{\text{clip i finds its caption}} \Big)$$

# %%
def contrastive_loss(u, v, tau):
    """Captions u and clips v, (N, D) of length one, row by row belonging together -> the loss, a number."""
    scores = tau * u @ v.T                                                       # (N, N)
    own = scores.diagonal()                                                      # (N,)
    caption_finds_clip = (scores.logsumexp(dim=1) - own).mean()
    clip_finds_caption = (scores.logsumexp(dim=0) - own).mean()
    return (caption_finds_clip + clip_finds_caption) / 2

# %% [markdown]
# PyTorch's `cross_entropy`, both ways, and open_clip's own `ClipLoss` must say the same. And where all vectors are
# equal, so that nothing can be told apart, the loss must be the logarithm of N:

# %% tags=["nbval-check-output"]
from open_clip.loss import ClipLoss

generator = torch.Generator().manual_seed(0)
u, v = (F.normalize(torch.randn(64, 128, generator=generator), dim=1) for _ in range(2))
scores, right = 10 * u @ v.T, torch.arange(64)
oracle = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
mine = contrastive_loss(u, v, 10)
print(torch.allclose(mine, oracle), torch.allclose(mine, ClipLoss()(u, v, 10)))
equal = u[:1].repeat(64, 1)
print(f"all equal: {contrastive_loss(equal, equal, 10):.2f}, log 64 = {math.log(64):.2f}")

# %% [markdown]
# What does this loss *do*? Let us take the networks away and leave only the vectors: six captions and six clips in a
# plane, thrown at random onto a circle, and moved by gradient descent. Rings are captions, crosses are clips, and what
# belongs together has one colour.

# %%
free = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(4)).requires_grad_()
start = F.normalize(free.detach().clone(), dim=-1)
for _ in range(400):
    gradient, = torch.autograd.grad(contrastive_loss(*F.normalize(free, dim=-1), tau=5), free)
    free.data -= 0.1 * gradient
end = F.normalize(free.detach(), dim=-1)

# %%
from matplotlib.figure import Figure
from matplotlib.patches import Circle

figure = Figure(figsize=(6.4, 3.1), layout="constrained")
for axes, (captions, clips), title in zip(figure.subplots(1, 2), (start, end), ("before", "after 400 steps")):
    for i, name in enumerate(("blue", "orange", "green", "purple", "red", "black")):
        axes.plot(*captions[i], "o", color=figures.PALETTE[name], markersize=11, fillstyle="none", markeredgewidth=2)
        axes.plot(*clips[i], "x", color=figures.PALETTE[name], markersize=8, markeredgewidth=2)
    axes.add_patch(Circle((0, 0), 1, fill=False, color="lightgrey", zorder=0))
    axes.set(title=title, aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[])
figures.picture(figure, alt="Rings are captions, crosses clips, six colours. Before, scattered on a circle; after, "
                            "each cross lies in its ring, and the six pairs are spread around the circle.")

# %% [markdown]
# What belongs together has met, and the pairs have pushed each other apart as far as the circle allows. Now the vectors
# come out of networks. Then they cannot move freely: a network that is to place "a red star grows" well will have to
# find out what the words have to do with the pictures.
#
# ### The other side: a video network
#
# The package compares captions with *latents*, the small frames of chapter 02. Encoding thousands of clips takes
# minutes, so here we use another way to make frames small that costs nothing. We draw 4 frames of 32 x 32 pixels, and
# fold each block of 8 x 8 pixels into channels. No pixel is lost; a frame is then a 4 x 4 map of 192 numbers. And we
# draw on black only, so that half a minute of training goes into things and not into grounds.

# %%
def scenes_on_black(count, seed, split="train"):
    rng = random.Random(seed)
    return [replace(sample_scene(rng, split=split), ground="black") for _ in range(count)]


def small_clips(scenes):
    """Scenes -> (N, 4, 32, 32, 3) uint8: four frames half a second apart."""
    return render(scenes, num_frames=4, fps=2, height=32, width=32)


def folded(clips):
    """(N, 4, 32, 32, 3) uint8 -> (N, 192, 4, 4, 4): 8 x 8 pixels of 3 colours become 192 channels. Black is 0."""
    return rearrange(clips.float() / 64, "n f (h a) (w b) c -> n (c a b) f h w", a=8, b=8)

# %%
train_scenes = scenes_on_black(1500, seed=1)
train_clips = small_clips(train_scenes)
rng = random.Random(0)
figures.strip(list(train_clips[:3]), frames=4, scale=3, titles=[caption(scene, rng) for scene in train_scenes[:3]],
              alt="Three strips of four small frames with their captions above.")

# %% [markdown]
# The video network is small, too. It looks at each frame by itself, lays the frames beside one another *as channels*,
# so that each frame has weights of its own and order can be seen, and ends in one vector.

# %%
# from minit2v.text import VideoTower

# %% [markdown]
# Both networks together, CLIP's image and text "towers", are the package's `ContrastiveText`. The text tower is
# open_clip's `TextTransformer`: our `TextEncoder` with the last block still there. Its answer is the vector at the
# highest token of each row, which is END, times a matrix. The number $\tau$ is learnt with the rest; as it must stay
# positive, its logarithm is. It starts at 1/0.07 and may not grow above 100, as in the paper.

# %%
# from minit2v.text import ContrastiveText

# %%
torch.manual_seed(0)
model = ContrastiveText(replace(config, width=64, layers=3))
model.video = VideoTower(width=64, num_frames=4, channels=192)
print(f"{sum(p.numel() for p in model.text.parameters()):,} + {sum(p.numel() for p in model.video.parameters()):,}")

# %% tags=["nbval-check-output"]
tokens, clips = tokenizer([caption(scene, rng) for scene in train_scenes[:8]]), folded(train_clips[:8])
loss, parts = model.loss(tokens, clips)
mine = contrastive_loss(model.embed_text(tokens), model.embed_video(clips), tau=1 / 0.07)
print(tuple(tokens.shape), tuple(clips.shape), "the package's loss is mine:", torch.allclose(loss, mine, atol=1e-4))

# %% [markdown]
# ### Before and after
#
# Sixteen clips that are not used for training, two of each colour, with a caption each. The matrix of their
# similarities is what the loss sees. We keep the one from before training:

# %%
def cosines(scenes, language="en"):
    """Captions (rows) against clips (columns): (N, N)."""
    rng = random.Random(2)
    with torch.no_grad():
        u = model.embed_text(tokenizer([caption(scene, rng, language) for scene in scenes]))
        return u @ model.embed_video(folded(small_clips(scenes))).T


fresh = scenes_on_black(64, seed=2)
sixteen = [scene for name in COLOURS for scene in [s for s in fresh if s.things[0].colour == name][:2]]
labels = [" ".join((s.things[0].colour, s.things[0].shape, s.things[0].motion)) for s in sixteen]
before = cosines(sixteen)

# %% [markdown]
# Then we train. A batch is 64 clips, each with a caption in English or in Chinese, as the dice fall. The learning
# rate rises over ten steps and then falls in a straight line. (The first loss lies above log 64. An untrained network
# does not guess evenly: its similarities differ by chance, $\tau = 14$ makes much of the differences, and it is wrong
# with confidence.) **No batch ever shows which English sentence belongs to which Chinese one**; all that they share
# is the clips.

# %%
losses = []
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))


def learn(steps, rng):
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 10) * (1 - 0.9 * step / steps)
        rows = rng.sample(range(len(train_scenes)), 64)
        texts = [caption(train_scenes[i], rng, rng.choice(("en", "zh"))) for i in rows]
        loss, parts = model.loss(tokenizer(texts), folded(train_clips[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:3}: loss {losses[-1]:.2f}, {parts['accuracy']:.2f} of the captions found their clip")

# %%
learn(steps=200, rng=random.Random(0))

# %%
figures.plot({"loss": losses, "guessing": [math.log(64)] * len(losses)}, xlabel="step", ylabel="loss",
             alt="The loss stays at the level of guessing for some steps and then falls far below it.")

# %%
figures.heat([before, cosines(sixteen)], titles=["before", "after"], rows=labels, limits=(-1, 1), size=4.2,
             xlabel="clip", ylabel="caption of",
             alt="Before: pale, without a pattern. After: a dark diagonal, two by two, and paler away from it.")

# %% [markdown]
# Captions are rows, clips are columns, in the same order. Before, all is pale and there is no diagonal. After, there
# is one, and it is broad: most pairs of one colour are like each other, and the colours, which stand in the order of
# the rainbow, are mostly like their neighbours.

# %% [markdown]
# ### Retrieval
#
# Now the test. 64 new scenes, 64 captions; each caption takes the clip that is most similar. By guessing, one of the 64
# would be right.

# %%
def found(similarities):
    """How many rows are largest on the diagonal."""
    return int((similarities.argmax(dim=1) == torch.arange(len(similarities))).sum())


for language in ("en", "zh"):
    print(f"{language}: {found(cosines(fresh, language))} of 64 captions find their clip (guessing: 1)")
unseen = scenes_on_black(64, seed=4, split="unseen")
print(f"en: {found(cosines(unseen))} of 64, when each colour, shape and motion is a combination never trained on")

# %% tags=["nbval-check-output"]
counts = {language: found(cosines(fresh, language)) for language in ("en", "zh")}
print("more than 16 of 64 find their clip:", {language: count > 16 for language, count in counts.items()})
assert min(counts.values()) > 16

# %% [markdown]
# ### Two languages, one place
#
# Each sentence has been drawn to its clips, whatever its language. So the two languages must have met there. For each
# of the 64 scenes we take an English caption and, worded independently, a Chinese one:

# %%
rng = random.Random(5)
in_english, in_chinese = ([caption(scene, rng, language) for scene in fresh] for language in ("en", "zh"))
with torch.no_grad():
    across = model.embed_text(tokenizer(in_english)) @ model.embed_text(tokenizer(in_chinese)).T         # (64, 64)
print(f"{found(across)} of 64 English captions find their Chinese one (guessing: 1)")

# %%
for i in range(4):                                           # in brackets: the English caption of the same clip
    nearest = across[i].argmax()
    print(f"{in_english[i]} -> {in_chinese[nearest]} ({in_english[nearest]})")

# %% [markdown]
# So the languages have met, but the places are still coarse. Read the pairs that miss: even there the colour tends to
# be right, while the motion or the shape is another. And now ask for clips in your own words. Change the sentence, in
# either language:

# %%
prompt = "a green star moves down"                           # try: "绿色的星星向下移动"
gallery = scenes_on_black(300, seed=6)
with torch.no_grad():
    videos = model.embed_video(folded(small_clips(gallery)))
    nearest = (model.embed_text(tokenizer(prompt)) @ videos.T)[0].topk(3)
figures.strip(render([gallery[i] for i in nearest.indices]), scale=2,
              titles=[f"similarity {value:.2f}" for value in nearest.values],
              alt="Three film strips, those of 300 clips that are most similar to the sentence.")

# %% [markdown]
# ### What has been learnt, and what has not
#
# Three clips are soon called good. Let us ask sharper. Four clips differ in their colour *alone*, or in their motion,
# or in their shape, and the caption of each has to choose among the four. Guessing is right one time in four.

# %%
KINDS = {"colour": list(COLOURS), "motion": list(MOTIONS), "shape": list(SHAPES)}


def groups_of_four(kind, seed, count=32):
    """(4 count) scenes: each four in a row differ in `kind` alone, which is "colour", "motion" or "shape"."""
    rng, scenes = random.Random(seed), []
    for _ in range(count):
        common = {name: rng.choice(values) for name, values in KINDS.items()} | {"size": rng.choice(list(SIZES))}
        scenes += [Scene((sample_thing(rng, **(common | {kind: value})),)) for value in rng.sample(KINDS[kind], 4)]
    return scenes


def share_right(kind, language):
    scores = cosines(groups_of_four(kind, seed=3), language)                  # (128, 128)
    inside = torch.stack([scores[i:i + 4, i:i + 4] for i in range(0, len(scores), 4)])         # (32, 4, 4)
    return (inside.argmax(dim=2) == torch.arange(4)).float().mean().item()

# %%
for kind in KINDS:
    print(f"{kind:6} {share_right(kind, 'en'):.2f} in English, {share_right(kind, 'zh'):.2f} in Chinese")

# %% [markdown]
# Colours are known, motions are on their way, and of shapes it knows next to nothing. Neither the loss nor the
# retrieval has told us so. Why shapes? Ask what they are *worth*. Suppose a network knew the colours perfectly and
# nothing else: its vectors would be the truth about the colour. What is the loss of such a network? And if it knew
# the motions as well, and the shapes as well?

# %%
def truth(scenes, kinds):
    """Vectors of length one that say the truth about these kinds and nothing else: (N, 16 len(kinds))."""
    parts = [torch.tensor([KINDS[kind].index(getattr(scene.things[0], kind)) for scene in scenes]) for kind in kinds]
    return F.normalize(torch.cat([F.one_hot(part, 16).float() for part in parts], dim=1), dim=1)


def losses_of_knowing(scenes):
    """The loss of one who knows the colours; the motions, too; the shapes, too."""
    vectors = [truth(scenes, kinds) for kinds in (["colour"], ["colour", "motion"], ["colour", "motion", "shape"])]
    return torch.stack([contrastive_loss(u, u, tau=100) for u in vectors])

# %%
by_colour = {colour: [scene for scene in train_scenes if scene.things[0].colour == colour] for colour in COLOURS}
rng = random.Random(0)
table = []
for _ in range(20):                                          # the mean of 20 batches of 64 clips
    some, two = rng.sample(train_scenes, 64), rng.sample(list(COLOURS), 2)
    table.append(torch.stack([losses_of_knowing(some),
                              losses_of_knowing([scene for c in two for scene in rng.sample(by_colour[c], 32)])]))
figures.heat(torch.stack(table).mean(0).T, values=True, columns=["mixed batch", "two colours"], size=3.6,
             rows=["knows colour", "and motion", "and shape"], limits=(0, math.log(64)), titles=["loss"],
             alt="Losses of a network that knows colour; motion too; shape too: for a mixed batch, and for one of two "
                 "colours, where the step from motion to shape is much larger.")

# %% [markdown]
# Read the first column from log 64 = 4.16 downwards. In a mixed batch, colours save half of the loss, motions most of
# the rest, and shapes a last quarter of a unit, because there are seldom two clips that share colour *and* motion.
# The network takes the large gains first, and ours is not done with motions yet. In a batch of two colours, shapes
# are worth almost three times as much. Among red things, red is no answer.
#
# We met this when the course's own text network was trained (the note is at `train_text` in `recipe.py`). In mixed
# batches, shapes made 0.3 % of the variance of its answers, and a video network cannot draw what its text does not
# say. So the package draws each half of a batch
# from one colour, or from one motion, or from everything. **What the batch does not ask for is not learnt.** The
# tower that ships was trained in this way, and it knows its shapes in both languages:

# %%
shapes = [("circle", "圆"), ("square", "方块"), ("triangle", "三角形"), ("star", "星星")]
english = sentence_vectors([f"a red {shape} moves right" for shape, _ in shapes])
chinese = sentence_vectors([f"一个红色的{shape}向右移动" for _, shape in shapes])
figures.heat(english @ chinese.T, values=True, rows=[shape for shape, _ in shapes],
             columns=[f"zh {shape}" for shape, _ in shapes], size=4.6,
             alt="Four by four similarities of sentences that differ in the shape: highest on the diagonal.")

# %% [markdown]
# ## 4 · The last block but one
#
# The text network is trained; now it is to serve the video network. It would be natural to take what comes out at its
# end. But what has the loss ever looked at there? *One* vector a sentence, the one at END. What about the others? Ask
# by taking away: behind one of the three blocks, in all 64 captions, we set the vectors of *one place* to zero, and
# look whether the loss notices. (A hook may also give back another output than the layer's; PyTorch goes on with that.)

# %%
rng = random.Random(8)
texts = [caption(scene, rng) for scene in fresh]
tokens, clips = tokenizer(texts), folded(small_clips(fresh))


def loss_without(place, block):
    """The loss of the 64 pairs, if behind a block (1, 2 or 3) the vectors of a place are set to zero."""
    def wipe(module, inputs, output):                        # output: (N, L, D)
        return output.index_fill(1, torch.tensor(place), 0.0)

    hook = model.text.transformer.resblocks[block - 1].register_forward_hook(wipe)
    with torch.no_grad():
        loss, _ = model.loss(tokens, clips)
    hook.remove()
    return loss.item()

# %% tags=["nbval-check-output"]
with torch.no_grad():
    loss, _ = model.loss(tokens, clips)
for place, what in {2: "a word", 19: "padding"}.items():
    print(f"without {what}, the loss is another:",
          {f"behind block {block}": abs(loss_without(place, block) - loss.item()) > 1e-3 for block in (1, 2, 3)})

# %% [markdown]
# Behind blocks 1 and 2 the word is missed, for the next block reads it. Behind block 3 nobody reads it any more. The
# padding is not missed anywhere: thanks to the mask, no word and no END has ever seen it.
#
# Place by place this is slow. A *gradient* asks all places at once, and more gently. It belongs to a vector, and says
# how the loss would change if that vector moved a little; so its length says how much the loss **feels** the place.
# Length zero: nobody reads there. For one caption, behind each of the three blocks, the largest of each being 1:

# %%
kept = []
hooks = [block.register_forward_hook(lambda module, inputs, output: kept.append(output))
         for block in model.text.transformer.resblocks]
loss, _ = model.loss(tokens, clips)
felt = [gradient[0].norm(dim=-1) for gradient in torch.autograd.grad(loss, kept)]          # three times (L,)
for hook in hooks:
    hook.remove()

# %%
ids = tokenizer.encode(texts[0])
places = ["START", *(tokenizer.decode([i]) for i in ids), "END", "0", "0"]
shares = torch.stack([lengths[:len(places)] / lengths.max() for lengths in felt])
figures.heat(shares.T, values=True, columns=["1", "2", "3"], rows=places, size=5, xlabel="behind block",
             titles=["how much the loss feels a place"],
             alt="Behind blocks 1 and 2 the loss feels all places up to END; behind block 3 it feels END alone.")

# %% tags=["nbval-check-output"]
counts = [int((lengths > 0).sum()) for lengths in felt]
print(len(ids) + 2, "places from START to END; the loss feels", counts)
assert counts == [len(ids) + 2, len(ids) + 2, 1]

# %% [markdown]
# So what the last block writes at "red" and "circle" was never read by anyone; it is whatever falls out. One block
# earlier it is different: what stands there at "red" has been read by the last block, and it was trained to be worth
# reading. A video network that wants to know *which* thing is red reads there. It is called the **penultimate layer**,
# and it is why `TextEncoder` has one block less.
#
# `text_encoder` cuts the tower, and what is left gives exactly the vectors behind block 2, after the final norm:

# %% tags=["nbval-check-output"]
cut_tower = model.text_encoder()
with torch.no_grad():
    context = cut_tower(tokenizer(texts))
    same = torch.allclose(context, model.text.ln_final(kept[1]), atol=1e-5)
print(tuple(context.shape), len(cut_tower.transformer.resblocks), "blocks; the vectors behind block 2:", same)

# %% [markdown]
# `minit2v train --stage text` does all this at the size of the mini model: four blocks, width 128, latents of 16
# frames, 36,000 clips with all grounds, 400 steps. Its tower is the one you met in the first cell.

# %% [markdown]
# ## 5 · What the original does
#
# **The same thing, larger.** ModelScope takes the text half of OpenCLIP's ViT-H/14, which learnt from two billion
# pictures from the web with English captions. open_clip carries its measures, and they are those of our
# configuration:

# %% tags=["nbval-check-output"]
import open_clip

released = modelscope_1_7b().text
theirs = open_clip.get_model_config("ViT-H-14")["text_cfg"]
print(theirs)
assert all(getattr(released, name) == value for name, value in theirs.items())

# %% [markdown]
# How large is that? PyTorch can build it on the device `meta`, where tensors have a shape and no memory. First the
# whole text tower, then what is used of it:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    whole = TextTransformer(released.context_length, released.vocab_size, released.width, released.heads,
                            released.layers, output_dim=released.width)
    used = TextEncoder(released)
sizes = [sum(p.numel() for p in network.parameters()) for network in (whole, used)]
print(f"{sizes[0]:,} parameters, used {sizes[1]:,}; the table of tokens alone {49408 * 1024:,}")
assert sizes[1] == 340_387_840

# %% [markdown]
# **The penultimate layer** is a line of the original, too. Its class `FrozenOpenCLIPEmbedder` (in the folder
# `models/multi_modal/video_synthesis` of modelscope) is made with `layer="penultimate"`, and its loop over the
# blocks ends one block early (`layer_idx = 1`). Then comes `ln_final`, and no projection. Stable Diffusion 2 does the
# same; the class comes from there.
#
# ### Its tokenizer
#
# The original's vocabulary has 49,408 tokens, learnt from English text. It ships with open_clip, so we can ask it:

# %% tags=["nbval-check-output"]
clip_tokenizer = Tokenizer(released)
for sentence in ("a small red circle moves quickly to the right", "a red elephant dances", "supercalifragilistic"):
    print(spell(clip_tokenizer, clip_tokenizer.encode(sentence)))

# %% [markdown]
# Good English pieces. And what does it make of Chinese?

# %% tags=["nbval-check-output"]
def bytes_of(tokenizer, i):
    """The bytes of token i, joined by +."""
    letters = tokenizer.bpe.decoder[i].replace("</w>", "")
    return "+".join(str(tokenizer.bpe.byte_decoder[letter]) for letter in letters)


for sentence in ("红", "圆", "一个红色的小圆快速向右移动"):
    ids = clip_tokenizer.encode(sentence)
    print(f"{len(sentence):2} characters, {len(ids):2} tokens:", *(bytes_of(clip_tokenizer, i) for i in ids))
assert len(ids) == 33

# %% [markdown]
# You know the first three numbers: they are the bytes of 红 from section 1, each a token of its own. The vocabulary
# has seen hardly any Chinese, so almost nothing was ever joined; 圆 is lucky to have two of its bytes in one token.
# The sentence of 13 characters needs 33 tokens, and none of them is a character. Ours took 9, and each is a word.
# Here are 200 captions in each language, cut by either tokenizer and sorted by their length (three of the four curves
# lie on one another):

# %%
rng = random.Random(7)
scenes = [sample_scene(rng) for _ in range(200)]
counts = {f"{name}, {language}": sorted(len(t.encode(caption(scene, rng, language))) for scene in scenes)
          for name, t in (("ours", tokenizer), ("released", clip_tokenizer)) for language in ("en", "zh")}
figures.plot(counts, xlabel="200 captions, sorted", ylabel="tokens",
             alt="Tokens a caption: both English curves and our Chinese one lie together near 10, the released "
                 "tokenizer's Chinese far above them, from 15 to 60.")

# %% [markdown]
# And there is a limit. A row has 77 places, two of them for start and end. What does not fit is cut off. For plain
# English words that is room enough. In Chinese, it ends in the middle of a third short sentence:

# %% tags=["nbval-check-output"]
import warnings

prompt = "一个红色的小圆快速向右移动，一个蓝色的大方块慢慢向左移动，镜头拉近"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    row = clip_tokenizer(prompt)[0]
print(len(prompt), "characters,", len(clip_tokenizer.encode(prompt)), "tokens; kept:", clip_tokenizer.decode(row))
print(caught[0].message)
assert row[-1] == clip_tokenizer.eot

# %% [markdown]
# So the released model can *spell* Chinese, byte by byte, but its text network learnt from English captions, and no
# meaning stands behind the bytes. Its card says it plainly: only English input is supported. Our model reads both
# languages because its captions were in both. It is a matter of data, not of the network.
#
# ### Padding with exclamation marks
#
# Token 0, which fills the rows, is not a special token. It is the first byte in the vocabulary, and that is an
# exclamation mark. The package can cut in two ways: `Tokenizer` as open_clip does, and so the original, and
# `HubTokenizer` as the files do that lie beside the weights on the Hugging Face Hub. Look at the fifth token:

# %% tags=["nbval-check-output"]
from minit2v.text import HubTokenizer

print("three zeros:", clip_tokenizer.bpe.decode([0, 0, 0]))
for kind in (Tokenizer, HubTokenizer):
    print(f"{kind.__name__:13}", kind(released)("a red circle! moves right")[0, :10].tolist())

# %% [markdown]
# In the original, the "!" of a prompt is token 256, an exclamation mark at the end of a word, and different from the
# padding. The files on the Hub contradict themselves: one names END as the padding token, another names
# "!", and the second wins. So padding is 0 there as well, but *every* exclamation mark of a prompt becomes padding.
#
# Does the filling matter? The mask protects the words from what follows. But it does not change the padding's own
# vectors, and those go to the video network, all 77, since nothing else is masked. A small network of the same kind,
# with random weights, shows it:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
small = TextEncoder(replace(released, width=64, heads=4, layers=3)).eval()
zeros = clip_tokenizer("a red circle moves right")
ends = torch.where(zeros == 0, clip_tokenizer.eot, zeros)
with torch.no_grad():
    apart = (small(zeros) - small(ends)).abs().amax(dim=-1)[0]                   # (77,)
print("padding with 0 or with END: words differ", bool((apart[:7] > 1e-5).any()), "- padding differs",
      bool((apart[7:] > 0.1).all()))

# %% [markdown]
# A video network that was trained with one filling and is used with the other finds 70 of its 77 vectors changed.
# This is the kind of error that no shape check will ever find.

# %% [markdown]
# ## 6 · What can go wrong
#
# ### No mask
#
# Leave the mask away, and nothing fails. But now the words read the padding, and a vector depends on how much of it
# there is. The same five words, in a row of 8 places and in a row of 40:

# %%
@torch.no_grad()
def encode_without_mask(tokens):
    network = pipe.text_encoder
    x = network.token_embedding(tokens) + network.positional_embedding[:tokens.shape[1]]
    return network.ln_final(network.transformer(x))          # wrong: attn_mask is missing


@torch.no_grad()
def moved_by_padding(encode):
    tokens = pipe.tokenizer("a red circle moves right")
    return (encode(tokens[:, :8])[0, :7] - encode(tokens)[0, :7]).abs().max().item()

# %% tags=["nbval-check-output"]
print("with the mask:   ", f"{moved_by_padding(pipe.text_encoder):.3f}")
print("without the mask: more than 0.1:", moved_by_padding(encode_without_mask) > 0.1)

# %% [markdown]
# ### One vector instead of the sequence
#
# CLIP has such a nice vector for the whole sentence. Why not give that to the video network? In a picture, each place
# asks the text its own question by attention, as the words did above: *what colour am I to be?* With one vector there
# is one answer. The softmax over a single score is 1, whatever was asked:

# %% tags=["nbval-check-output"]
pixels = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))        # 8 x 8 places of a picture
tokens = pipe.tokenizer("a red circle moves right")
with torch.no_grad():
    sequence = pipe.text_encoder(tokens)[0]                                      # (L, D)
for name, context in {"pooled": sequence[6:7], "sequence": sequence}.items():
    answers = F.scaled_dot_product_attention(pixels[None], context[None], context[None])[0]              # (64, D)
    print(f"{name:8} {tuple(context.shape)}, answers differ:", answers.std(dim=0).max().item() > 0.01)

# %% [markdown]
# With the pooled vector every pixel is told the same. Nothing fails here either: a context may have any length.
#
# ### The temperature
#
# $\tau$ looks like a detail. Suppose the networks were *perfect*: 1 for what belongs together and 0 for the rest. What
# is the loss then? Once with $\tau = 1/0.07$, once without it, and once on the wrong side, divided where it should be
# multiplied:

# %% tags=["nbval-check-output"]
perfect = torch.eye(64)
for name, tau in {"as it should be": 1 / 0.07, "fixed at 1": 1.0, "wrong side": 0.07}.items():
    print(f"{name:16} {contrastive_loss(perfect, perfect, tau):.2f}")
print(f"{'guessing':16} {math.log(64):.2f}")

# %% [markdown]
# On the wrong side perfection is hardly better than guessing, and there is next to no gradient to learn from. Cosines
# live between -1 and 1, and a softmax needs larger differences. How large is best depends on the batch and on the stage
# of training; so $\tau$ is learnt.

# %% [markdown]
# ### No end
#
# The tower reads the sentence at its highest token, which is END. What if a row has none, because someone cut it with
# `tokens[:, :5]`, or joined texts by hand? The next highest number is START:

# %% tags=["nbval-check-output"]
headless = tokenizer([caption(scene, random.Random(i)) for i, scene in enumerate(fresh)])
headless[headless == tokenizer.eot] = 0                      # wrong: the end is missing
with torch.no_grad():
    u = model.embed_text(headless)
print(f"64 different captions, largest difference: {(u - u[0]).abs().max():.4f}")

# %% [markdown]
# START stands first and, by the mask, sees nothing but itself. All captions in the world become one vector. That is why
# our tokenizer, like the original's, cuts a long text *before* its end mark.
#
# A fifth error you have run already, in section 3: batches so easy that the shapes are never asked for.

# %% [markdown]
# ## Recap
#
# 1. Byte-pair encoding joins the most frequent neighbours again and again; nothing is unknown, rare words are spelled.
# 2. A token gets a vector for what it is and one for its place; in attention it looks back at what stands before it.
# 3. Contrastive training asks which caption belongs to which clip; what the batch does not ask for is not learnt.
# 4. The video network reads all vectors one block before the end, where each word still speaks for itself.
# 5. The released tokenizer spells Chinese in bytes, and the released network understands English only.
#
# What you now own: the context, (B, L, D), and a network that makes it from two languages. Chapter 04 turns to the
# other input of the video network: noise.

# %% [markdown]
# ## Exercises
#
# Their notebook, with checks and hints, is [exercises/03_text](../exercises/03_text.ipynb).
#
# 1. **One merge** (build). Count, choose, join: one step of byte-pair encoding. A hundred of them make the package's
#    merges.
# 2. **A mask for two** (build). Attention weights that look neither ahead nor at the padding.
# 3. **Which belongs to which** (build). CLIP's loss, both ways, from vectors of any length.
# 4. **One block too many** (repair). A text encoder of the right shapes, from which the video network draws something
#    else.
# 5. **What colours are worth** (explore). Predict the loss of a network that knows colours and nothing else.

# %% [markdown]
# ## References
#
# - A. Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, 2021, arXiv:2103.00020.
#   CLIP; figure 3 is our loss in pseudocode.
# - R. Sennrich, B. Haddow and A. Birch, *Neural Machine Translation of Rare Words with Subword Units*, 2016,
#   arXiv:1508.07909. Byte-pair encoding; the algorithm is on its third page.
# - A. Vaswani et al., *Attention Is All You Need*, 2017, arXiv:1706.03762.
# - G. Ilharco et al., *OpenCLIP*, github.com/mlfoundations/open_clip. The tower, the tokenizer and the loss that run
#   here.
# - J. Wang et al., *ModelScope Text-to-Video Technical Report*, 2023, arXiv:2308.06571. The original.
# - J. Robinson et al., *Contrastive Learning with Hard Negative Samples*, 2021, arXiv:2010.04592. On batches that are
#   too easy.
