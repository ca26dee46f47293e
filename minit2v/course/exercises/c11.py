"""Chapter 11, real clips: guidance away from a negative prompt, a text that is read once, seeds, the cost of size."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minit2v.config import DiffusionConfig
from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.compare import difference
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors
from minit2v.diffusion import Process

# 11.guided

def _guided_cases(seed):
    x, context, negative = random_tensors(seed, (2, 4, 3, 2, 2), (2, 5, 3), (1, 5, 3))
    more, texts = random_tensors(seed + 1, (3, 4, 1, 2, 3), (3, 5, 3))
    return [(x, 700, context, negative, 4.0), (more, 31, texts, texts.flip(0), 9.0), (x, 500, context, None, 1.0),
            (x, 500, context, negative, 1.0), (x, 250, context, negative, 0.5)]


class _Network:
    """A network of formulas: each clip hears its own time and its own text. It counts the clips that it is asked."""

    def __init__(self):
        self.clips = 0

    def __call__(self, x, timesteps, context):
        if len(x) != len(context) or len(x) != len(timesteps):
            raise ValueError(f"{len(x)} clips, {len(timesteps)} times and {len(context)} texts; there must be as many "
                             "of each")
        self.clips += len(x)
        said = (context[:, :, 0] * context[:, :, 1]).sum(1) + timesteps.to(context) / 300
        return 0.4 * x.roll(1, 1) + x.flip(-1) * torch.sin(said).view(-1, 1, 1, 1, 1).to(x)

    def prepare(self, context):
        return context


def _call_guided(hand_in, x, t, context, negative, scale):
    network = _Network()
    denoise = hand_in(network, Process(DiffusionConfig()), context, negative, scale)
    network.clips = 0
    x0, eps = denoise(x, torch.tensor(t))
    return {"x0": x0, "eps": eps, "clips through the network in a step": network.clips}


def _guided_oracle(x, t, context, negative, scale):
    bar, network = Process(DiffusionConfig()).alphas_cumprod[t].item(), _Network()
    answers = []
    for b in range(len(x)):
        def ask(text):
            return network(x[b:b + 1], torch.tensor([t - 1]), text)
        answer = ask(context[b:b + 1])
        if scale != 1:
            answer = torch.lerp(ask(negative[b:b + 1] if len(negative) > 1 else negative), answer, scale)
        answers.append(answer)
    eps = torch.cat(answers)
    return {"x0": (x - (1 - bar) ** 0.5 * eps) / bar ** 0.5, "eps": eps,
            "clips through the network in a step": network.clips}


def _guided(unet, process, context, uncond, guidance_scale, mix=lambda u, c, g: u + g * (c - u), halves=True,
            shift=True, expand=True, guided=lambda u, g: g != 1):
    both = guided(uncond, guidance_scale)

    def denoise(x, t):
        times = process.network_times(t, x) if shift else torch.as_tensor(t).expand(len(x))
        if not both:
            return process.split(unet(x, times, context), x, t)
        negative = context if uncond is None else uncond.expand_as(context) if expand else uncond
        if halves:
            without, within = unet(x.repeat(2, 1, 1, 1, 1), times.repeat(2), torch.cat([negative, context])).chunk(2)
        else:
            without, within = unet(x.repeat_interleave(2, 0), times.repeat(2), torch.cat([negative, context])).chunk(2)
        return process.split(mix(without, within, guidance_scale), x, t)

    return denoise


def _guided_turned(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, mix=lambda u, c, g: c + g * (u - c))


def _guided_away(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, mix=lambda u, c, g: g * c - u)


def _guided_more(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, mix=lambda u, c, g: c + g * (c - u))


def _guided_dealt(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, halves=False)


def _guided_count(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, shift=False)


def _guided_lonely(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, expand=False)


def _guided_always(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, guided=lambda u, g: True)


def _guided_given(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, guided=lambda u, g: u is not None)


def _guided_above(unet, process, context, uncond, guidance_scale):
    return _guided(unet, process, context, uncond, guidance_scale, guided=lambda u, g: g > 1)


def _draw_guided():
    figure = figures.Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    places = {"negative prompt": (0.0, 0.0), "prompt": (1.0, 0.4), "scale 2": (2.0, 0.8), "scale 4": (4.0, 1.6)}
    axes.plot([0, 4], [0, 1.6], color="#999999", linewidth=1)
    for (name, place), colour in zip(places.items(), ("red", "green", "sky", "blue")):
        axes.plot(*place, "o", color=figures.PALETTE[colour])
        axes.annotate(name, place, xytext=(6, -10), textcoords="offset points")
    axes.set(xticks=[], yticks=[], xlim=(-0.3, 5), ylim=(-0.5, 2))
    return figures.picture(figure, "A straight line from the answer to the negative prompt through the answer to the "
                                   "prompt. At scale 1 one is at the prompt; 2 and 4 lie beyond it.")


GUIDED = Exercise(
    name="11.guided", target="guided_denoiser", kind="build", title="Away from the negative", minutes=20, level=2,
    points=3, cases=_guided_cases, call=_call_guided, oracle=_guided_oracle, gradients=True, forbidden=("lerp",),
    mistakes=(
        Mistake("towards the negative", _guided_turned, "The negative prompt and the prompt have changed places: the "
                "larger the scale, the more there is of what should not be there."),
        Mistake("subtracted", _guided_away, "You subtract the negative answer. But guidance is a *walk*: it begins at "
                "the negative answer and goes `guidance_scale` times the way to the prompt's."),
        Mistake("one too much", _guided_more, "You begin the walk at the prompt's answer; so scale 4 acts like 5."),
        Mistake("dealt like cards", _guided_dealt, "In your batch each clip stands next to its twin, but the texts "
                "come in two halves, first all negatives: most clips hear somebody else's."),
        Mistake("counted from one", _guided_count, "The network hears our t, and it counts from 0. The process knows "
                "how to say it."),
        Mistake("a lonely negative", _guided_lonely, "One negative prompt for all clips, (1, L, D), is not enough for "
                "the batch: each clip needs a copy, or a view, of it."),
        Mistake("always twice", _guided_always, "At scale 1 the negative plays no part, and you ask for it "
                "nevertheless: twice the time for the same clip."),
        Mistake("whenever there is one", _guided_given, "Where a negative is given you ask for it, even at scale 1, "
                "where it plays no part: twice the time for the same clip."),
        Mistake("from one upwards", _guided_above, "Below scale 1 you do not guide. But at scale 0.5 the answer lies "
                "half way between the two."),
    ),
    hints=(_draw_guided, "What you return is a function that is defined inside of yours. What does not change from "
           "step to step, the texts, can be laid together once, outside.",
           "In a batch of two halves, the clips, their times and the texts all have to come in the same order, and the "
           "answer is cut into the same halves.",
           "`expand_as` makes of one negative as many as there are prompts, and costs nothing."),
)


# 11.attention

_ATTENTION_INIT = (8, 2, 8)                              # width, heads, context_width


def _attention_cases(seed):
    return [tuple(random_tensors(seed, (6, 5, 8), (2, 3, 8))), tuple(random_tensors(seed + 1, (4, 2, 8), (4, 6, 8)))]


class _Largest(TorchDispatchMode):
    """Inside `with _Largest() as made`: made.numbers is how many the largest tensor has that was made, no view."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def _copies_the_text(kind):
    """Whether 16 frames of one token that read 12 words make more numbers than queries and scores would.

    Two clips, two heads of 16 numbers: 1,024 in the queries, 768 scores, 768 keys. Of keys or values that are copied
    for each frame there are 12,288, and even of those of a single head in a single clip 3,072.
    """
    layer = kind(32, 2, 32)
    with torch.no_grad():
        text = tuple(layer.keys_values(torch.ones(2, 12, 32)))
        with _Largest() as made:
            layer(torch.ones(32, 1, 32), text)
    return made.numbers > 2048


def _call_attention(module, x, context):
    """Among its own tokens; on a text; the keys and values themselves; the widths of new ones; copies of the text."""
    new = {name: tuple(type(module)(*sizes).to_k.weight.shape)
           for name, sizes in {"of its own": (8, 2), "of a text": (8, 2, 6)}.items()}
    text = module.keys_values(context)
    found = {"among themselves": module(x), "on a text": module(x, text), "keys and values": tuple(text),
             "to_k, without a text": new["of its own"], "to_k, for texts 6 wide": new["of a text"]}
    right = _attention_oracle(module.state_dict(), x, context)            # of what is wrong anyway, it is not asked
    return found | {"copies of the text": not difference(found["on a text"], right["on a text"], 1e-4)
                    and _copies_the_text(type(module))}


def _attention_oracle(state, x, context):
    def heads(h):
        return torch.stack([h[..., :4], h[..., 4:]], dim=-3)                        # (..., 2, L, 4)

    def mixed(tokens, k, v):
        found = F.scaled_dot_product_attention(heads(F.linear(tokens, state["to_q.weight"])), k, v)
        return F.linear(torch.cat(list(found), dim=-1), state["to_out.weight"], state["to_out.bias"])

    def read(text):
        return tuple(heads(F.linear(text, state[f"to_{name}.weight"])) for name in "kv")

    frames, (keys, values) = len(x) // len(context), read(context)
    return {"among themselves": torch.stack([mixed(row, *read(row)) for row in x]),
            "on a text": torch.stack([mixed(row, keys[i // frames], values[i // frames]) for i, row in enumerate(x)]),
            "keys and values": (keys, values), "to_k, without a text": (8, 8), "to_k, for texts 6 wide": (8, 6),
            "copies of the text": False}


class _Attention(nn.Module):
    split, fold = "b l (h d) -> b h l d", "(b f) l (h d) -> b h (f l) d"
    turned, scaled, axis, narrow = False, True, -1, True

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear((context_width or width) if self.narrow else width, width, bias=False)
        self.to_v = nn.Linear((context_width or width) if self.narrow else width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def keys_values(self, context):
        found = tuple(rearrange(to(context), self.split, h=self.heads) for to in (self.to_k, self.to_v))
        return found[::-1] if self.turned else found

    def forward(self, x, text=None):
        k, v = self.keys_values(x) if text is None else text
        k, v = (v, k) if self.turned else (k, v)
        q = rearrange(self.to_q(x), self.fold, b=len(k), h=self.heads)
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if self.scaled else 1)
        back = "b h (f l) d -> (b f) l (h d)" if self.fold.startswith("(b f)") else "b h (f l) d -> (f b) l (h d)"
        back = back.replace("(h d)", "(d h)") if "(d h)" in self.fold else back
        return self.to_out(rearrange(scores.softmax(self.axis) @ v, back, l=x.shape[1]))


class _AttentionDealt(_Attention):
    fold = "(f b) l (h d) -> b h (f l) d"


class _AttentionWoven(_Attention):
    split, fold = "b l (d h) -> b h l d", "(b f) l (d h) -> b h (f l) d"


class _AttentionHot(_Attention):
    scaled = False


class _AttentionAsked(_Attention):
    axis = -2


class _AttentionSwapped(_Attention):
    turned = True


class _AttentionWide(_Attention):
    narrow = False


class _AttentionCopied(_Attention):
    def forward(self, x, text=None):
        frames = 1 if text is None else len(x) // len(text[0])
        return super().forward(x, text and tuple(part.repeat_interleave(frames, 0) for part in text))


class _AttentionDeaf(_Attention):
    def forward(self, x, text=None):
        return super().forward(x)


ATTENTION = Exercise(
    name="11.attention", target="Attention", kind="build", title="A prompt, read once", minutes=25, level=3, points=3,
    cases=_attention_cases, init=_ATTENTION_INIT, call=_call_attention, oracle=_attention_oracle, gradients=True,
    parameters={**{f"to_{name}.weight": (8, 8) for name in ("q", "k", "v", "out")}, "to_out.bias": (8,)},
    forbidden=("MultiheadAttention",),
    mistakes=(
        Mistake("prompts dealt out", _AttentionDealt, "Each frame reads a prompt, but not always its own clip's: the "
                "frames of a clip lie one behind the other, all of the first clip first."),
        Mistake("heads woven", _AttentionWoven, "A head should own neighbouring numbers, the first head the first "
                "block. Yours own every second one, and trained weights would not fit."),
        Mistake("too sure", _AttentionHot, "Your scores are too large for so many numbers a head: the softmax listens "
                "to one token only."),
        Mistake("the other axis", _AttentionAsked, "Your weights add up to 1 over those who ask. They should over "
                "those who are asked."),
        Mistake("values and keys", _AttentionSwapped, "`keys_values` gives the values first. Inside of your class that "
                "would do, but others call it, too: keys first."),
        Mistake("one width for all", _AttentionWide, "`to_k` and `to_v` read the text, so they are as wide as *it* "
                "(`context_width`), or as the tokens if there is none."),
        Mistake("copied for each frame", _AttentionCopied, "The values are right. But somewhere in your `forward` the "
                "keys or the values of a clip are copied, once for each of its frames. (A matrix product of two "
                "tensors that do not have the same axes does that, too, inside.) Not the text should grow with the "
                "frames, but the row of those who ask."),
        Mistake("deaf", _AttentionDeaf, "`text` plays no part: every frame looks only at itself, whatever the prompt."),
    ),
    hints=(sketches.text_attention,
           "Of 16 frames that read the same words, each would need the same keys and values. Rather than copy these, "
           "let the *queries* of all frames of a clip stand in one long row.",
           "(B*F, L, width) becomes (B, heads, F*L, d): one `rearrange`. The way back has the same brackets. How many "
           "clips there are, the keys tell.",
           "Without a text the tokens make their own keys and values: there are as many clips as rows, and F is 1."),
)


# 11.seeds

def _seeds_cases(seed):
    return [([3 + seed, 7], (4, 2, 4, 4)), ([5], (4, 3, 2, 4)), ([1, 2, 1], (2, 2, 4, 4))]


def _call_seeds(hand_in, seeds, shape):
    before = torch.get_rng_state()
    found = hand_in(list(seeds), shape)
    untouched = torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(before)
    return {"noise": found, "the dice of others untouched": untouched}


def _seeds_oracle(seeds, shape):
    noise = torch.empty(len(seeds), *shape)
    for clip, seed in zip(noise, seeds):
        clip.normal_(generator=torch.Generator().manual_seed(seed))
    return {"noise": noise, "the dice of others untouched": True}


def _one(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _seeds_broken(seeds, shape):
    return _one(seeds[0], len(seeds), *shape)


def _seeds_same(seeds, shape):
    return _one(seeds[0], 1, *shape).repeat(len(seeds), 1, 1, 1, 1)


def _seeds_sum(seeds, shape):
    return _one(sum(seeds), len(seeds), *shape)


def _seeds_place(seeds, shape):
    return torch.stack([_one(seed + place, *shape) for place, seed in enumerate(seeds)])


def _seeds_global(seeds, shape):
    clips = []
    for seed in seeds:
        torch.manual_seed(seed)
        clips.append(torch.randn(shape))
    return torch.stack(clips)


def _seeds_frames(seeds, shape):
    clips = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        clips.append(torch.stack([torch.randn(shape[0], *shape[2:], generator=generator) for _ in range(shape[1])], 1))
    return torch.stack(clips)


def _draw_seeds(function=lambda seeds, shape: _seeds_oracle(seeds, shape)["noise"]):
    alone, company = function([7], (4, 2, 8, 8))[0], function([3, 7], (4, 2, 8, 8))[1]
    return figures.heat([alone[0, 0], company[0, 0]], titles=["seed 7, alone", "seed 7, behind seed 3"],
                        limits=(-3, 3), alt="Two fields of noise, 8 x 8 cells, that are the same cell by cell.")


SEEDS = Exercise(
    name="11.seeds", target="start_noise", kind="repair", title="Another clip in company", minutes=10, level=1,
    points=2, cases=_seeds_cases, call=_call_seeds, oracle=_seeds_oracle, celebrate=_draw_seeds,
    mistakes=(
        Mistake("as it came", _seeds_broken, "Only the first seed is used, and all noise comes out of it in one go. "
                "The second clip depends on who stands before it."),
        Mistake("one for all", _seeds_same, "Every clip gets the noise of the first seed."),
        Mistake("added up", _seeds_sum, "You make one seed of all of them. A clip should depend on its own alone."),
        Mistake("the place counts", _seeds_place, "You add a clip's place in the list to its seed. Alone it would be "
                "another clip."),
        Mistake("everybody's dice", _seeds_global, "The noise is right, but you set torch's global dice: whoever "
                "throws them next, a dropout or a shuffle, gets your numbers."),
        Mistake("frame by frame", _seeds_frames, "Each clip has its own dice now, but you throw them frame by frame. "
                "The numbers then lie in another order, and known seeds make other clips."),
    ),
    hints=(_draw_seeds, "Call it with [3, 7] and with [7] alone, and compare the noise of seed 7.",
           "`torch.randn` takes a `generator`. How many generators does a list of N clips need, so that none of them "
           "hears of the others?"),
)


# 11.room

_SIZES = ({"frames": 24, "height": 320, "width": 576}, {"frames": 32, "height": 256, "width": 448},
          {"frames": 24, "height": 384, "width": 640})


def _room(frames, height, width):
    return frames * (height // 8 * (width // 8)) ** 2 / (16 * (256 // 8 * (256 // 8)) ** 2)


ROOM = Exercise(
    name="11.room", target="answer_room", kind="explore", title="What a larger clip costs", minutes=10, points=1,
    level=2, options=lambda rng: rng.choice(_SIZES), oracle=_room, tolerance=5e-3,
    mistakes=(
        Mistake("as many as pixels", lambda frames, height, width: frames * height * width / (16 * 256 * 256),
                "So many times as many *cells* there are. But each cell of a frame looks at every other one."),
        Mistake("frames look, too", lambda frames, height, width: (frames * height * width / (16 * 256 * 256)) ** 2,
                "That would be so if all cells of all frames looked at one another. In spatial attention, only those "
                "of one frame do."),
        Mistake("a single frame", lambda frames, height, width: (height * width / (256 * 256)) ** 2, "That is for a "
                "single frame. There are more of them, too."),
        Mistake("frames alone", lambda frames, height, width: frames / 16, "Only the frames have become more with you. "
                "And the cells of each?"),
    ),
    hints=(sketches.room,
           "A frame of H x W pixels has H/8 x W/8 cells. How many pairs of them are there, and how many frames?"),
)

EXERCISES = [GUIDED, ATTENTION, SEEDS, ROOM]
