"""`pipe.swap`: the model on other people's code; true copies of ours give the same clip, what does not fit is named."""

import inspect
import warnings
from types import FunctionType

import pytest
import torch
from test_pipeline import STEPS, make_pipe
from torch import nn

from minit2v import autoencoder, diffusion, samplers, swap, text, unet
from minit2v.pipeline import load

# Of Autoencoder it is `decode` and `posterior` that are called; the UNet goes through a Level's blocks by itself.
NOT_CALLED = {("autoencoder", "Autoencoder"), ("unet", "Level")}
BLOCKS = [(part, name) for part, names in swap.CLASSES.items() for name in names]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make_pipe(tmp_path_factory.mktemp("model")).save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def pipe(saved):
    return load(saved)


@pytest.fixture(scope="module")
def clip(saved):
    """What the model draws on our own code."""
    return draw(load(saved))


def draw(pipe, **options):
    return pipe("red circle moves right", **{**STEPS, "guidance_scale": 3.0, **options})


def latents_of(pipe):
    """What the encoder makes of two frames, since no clip needs it."""
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        return torch.stack(pipe.autoencoder.posterior(frames))


def copied(thing):
    """The same source compiled once more, as if typed into a notebook: another class, or another function."""
    notebook = {**vars(inspect.getmodule(thing)), "__name__": "__main__"}
    source = inspect.getsource(thing)
    exec(compile("from __future__ import annotations\n" + source, "<cell>", "exec"), notebook)
    again = notebook[thing.__name__]
    assert again is not thing and (isinstance(again, FunctionType) or not issubclass(again, thing))
    return again


def counted(cls):
    """A class that counts how often it computes."""
    class Counted(cls):
        calls = 0

        def forward(self, *args, **kwargs):
            Counted.calls += 1
            return super().forward(*args, **kwargs)
    return Counted


def state_of(pipe):
    """Every part of a pipeline, by identity and by value, to see whether anything has changed."""
    networks = {name: getattr(pipe, name) for name in ("unet", "autoencoder", "text_encoder")}
    modules = {name: dict(network.named_modules()) for name, network in networks.items()}
    weights = {name: {key: (t.data_ptr(), t.sum().item()) for key, t in network.state_dict().items()}
               for name, network in networks.items()}
    return networks, modules, weights, pipe.process, dict(pipe.swapped)


# --- copies of ours ---

def test_every_block_class_is_there():
    """The list is not kept by hand: every module class of the files that a network is built of."""
    for part in ("unet", "autoencoder"):
        found = {type(m).__name__ for m in make_network(part).modules() if type(m).__module__.startswith("minit2v")}
        assert found == set(swap.CLASSES[part])


def make_network(part):
    from minit2v.config import modelscope_1_7b
    with torch.device("meta"):
        return swap.WHOLE[part](getattr(modelscope_1_7b(), part))


@pytest.mark.parametrize("part, name", BLOCKS)
def test_a_copy_of_a_class_draws_the_same_clip(pipe, clip, part, name):
    ours = swap.CLASSES[part][name]
    theirs = counted(copied(ours))
    places = sum(type(m) is ours for m in getattr(pipe, part).modules())
    addresses = {t.data_ptr() for t in getattr(pipe, part).state_dict().values()}
    expected = latents_of(pipe)
    assert pipe.swap(part, **{name: theirs}) is pipe
    network = getattr(pipe, part)
    assert pipe.swapped == {f"{part}.{name}": theirs}
    assert places == sum(type(m) is theirs for m in network.modules()) > 0
    assert not any(type(m) is ours for m in network.modules()) and not network.training
    assert {t.data_ptr() for t in network.state_dict().values()} == addresses         # the weights were not copied
    assert torch.equal(draw(pipe), clip) and torch.equal(latents_of(pipe), expected)
    assert (theirs.calls > 0) == ((part, name) not in NOT_CALLED)     # it was this code that drew the clip


@pytest.mark.parametrize("name, sampler", [("ddim", "ddim"), ("ddpm", "ddpm"), ("dpm_solver_pp", "dpm++"),
                                           ("guided_denoiser", "ddim")])
def test_a_copy_of_a_function_draws_the_same_clip(pipe, name, sampler):
    expected, calls = draw(pipe, sampler=sampler), []
    theirs = copied(swap.FUNCTIONS[name])

    def mine(*args, **kwargs):
        calls.append(name)
        return theirs(*args, **kwargs)
    pipe.swap(**{name: mine})
    assert torch.equal(draw(pipe, sampler=sampler), expected) and calls == [name]
    pipe.swap(**{name: swap.FUNCTIONS[name]})
    assert torch.equal(draw(pipe, sampler=sampler), expected) and calls == [name] and pipe.swapped == {}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_a_copy_of_the_process_draws_the_same_clip(pipe, sampler):
    expected = draw(pipe, sampler=sampler)
    theirs = copied(diffusion.Process)
    pipe.swap(Process=theirs)
    assert type(pipe.process) is theirs and torch.equal(draw(pipe, sampler=sampler), expected)
    assert type(pipe.swap(Process=diffusion.Process).process) is diffusion.Process


def test_everything_at_once_and_back(pipe, clip):
    """At the end of the course the whole model runs on the learner's code."""
    swaps = {part: {name: copied(cls) for name, cls in swap.CLASSES[part].items()} for part in ("unet", "autoencoder")}
    for part, classes in swaps.items():
        pipe.swap(part, **classes)
    pipe.swap(ddim=copied(samplers.ddim), Process=copied(diffusion.Process),
              guided_denoiser=copied(diffusion.guided_denoiser))
    for part, classes in swaps.items():
        assert not any(type(m) in swap.CLASSES[part].values() for m in getattr(pipe, part).modules())
        assert {type(m) for m in getattr(pipe, part).modules()} >= set(classes.values())
    assert torch.equal(draw(pipe), clip)
    for part, classes in swap.CLASSES.items():
        pipe.swap(part, **classes)
    pipe.swap(**swap.FUNCTIONS, Process=diffusion.Process)
    assert pipe.swapped == {}
    assert not any(type(m).__module__ == "__main__" for part in swaps for m in getattr(pipe, part).modules())
    assert torch.equal(draw(pipe), clip)


def test_order_does_not_matter_and_one_swap_does_not_undo_another(pipe, saved):
    block, conv = copied(unet.Block), copied(unet.TemporalConv)       # this Block builds our TemporalConv in itself
    one = pipe.swap(Block=block).swap(TemporalConv=conv)
    other = load(saved).swap(TemporalConv=conv).swap(Block=block)
    both = load(saved).swap(Block=block, TemporalConv=conv)
    kinds = [[type(m) for m in p.unet.modules()] for p in (one, other, both)]
    assert kinds[0] == kinds[1] == kinds[2] and conv in kinds[0] and unet.TemporalConv not in kinds[0]
    assert unet.TemporalConv in {type(m) for m in one.swap(TemporalConv=unet.TemporalConv).unet.modules()}
    assert block in {type(m) for m in one.unet.modules()}


def test_a_name_of_both_networks_means_the_unets(pipe):
    pipe.swap(ResBlock=copied(unet.ResBlock))
    assert list(pipe.swapped) == ["unet.ResBlock"]
    pipe.swap(PixelAttention=copied(autoencoder.PixelAttention))      # a name of one only needs no more
    assert list(pipe.swapped) == ["unet.ResBlock", "autoencoder.PixelAttention"]


def test_other_code_is_really_run(pipe, clip):
    class Still(unet.TemporalConv):
        def forward(self, x):
            return x
    assert not torch.equal(draw(pipe.swap(TemporalConv=Still)), clip)
    assert torch.equal(draw(pipe.swap(TemporalConv=unet.TemporalConv)), clip)


def test_the_same_sums_in_another_order_draw_the_same_but_for_rounding(pipe, clip):
    """A learner's class written from the formula, not copied: nothing of ours is in it."""
    class MyUpsample(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(width, width, (3, 3), padding="same")

        def forward(self, x):
            return torch.stack([self.conv(f.repeat_interleave(2, -1).repeat_interleave(2, -2)) for f in x.unbind(2)], 2)

    class MyFeedForward(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.proj, self.out = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            a, b = self.proj(x).split(self.out.in_features, -1)
            return self.out(a * b * 0.5 * (1 + torch.erf(b / 2 ** 0.5)))
    difference = draw(pipe.swap(Upsample=MyUpsample, FeedForward=MyFeedForward)).float() - clip.float()
    assert difference.abs().max() <= 1


def test_number_type_modes_and_flags_stay(saved):
    pipe = load(saved, dtype="bfloat16")
    expected = draw(pipe)
    pipe.unet.train()
    pipe.unet.gradient_checkpointing = True
    pipe.unet.conv_in.weight.requires_grad_(False)

    class WithTable(unet.TemporalConv):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("table", torch.full((), 0.5), persistent=False)
            self.number = torch.ones(())                              # a tensor that is neither parameter nor buffer

        def forward(self, x):
            return super().forward(x) * 2 * self.table * self.number.to(x)
    pipe.swap(TemporalConv=WithTable)
    assert pipe.unet.training and pipe.unet.gradient_checkpointing and pipe.dtype == torch.bfloat16
    frozen = [name for name, p in pipe.unet.named_parameters() if not p.requires_grad]
    assert frozen == ["conv_in.weight"]
    pipe.unet.eval()
    assert torch.equal(draw(pipe), expected)


def test_a_swapped_model_saves_and_loads(pipe, clip, tmp_path):
    pipe.swap(Block=copied(unet.Block)).swap("autoencoder", ResBlock=copied(autoencoder.ResBlock))
    assert torch.equal(draw(load(pipe.save(tmp_path))), clip)


# --- what does not fit ---

class Renamed(nn.Module):
    def __init__(self, channels, groups, dropout):
        super().__init__()
        conv = copied(unet.TemporalConv)(channels, groups, dropout)
        self.conv1, self.conv2, self.conv3, self.conv_4 = conv.conv1, conv.conv2, conv.conv3, conv.conv4


class Kernel5(unet.TemporalConv):
    def __init__(self, channels, groups, dropout):
        super().__init__(channels, groups, dropout)
        self.conv1[2] = nn.Conv3d(channels, channels, (5, 1, 1), padding=(2, 0, 0))


class NoBias(unet.TemporalConv):
    def __init__(self, channels, groups, dropout):
        super().__init__(channels, groups, dropout)
        self.conv4[3] = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)


class Buffered(unet.TemporalConv):
    def __init__(self, channels, groups, dropout):
        super().__init__(channels, groups, dropout)
        self.register_buffer("zzz", torch.zeros(1))


class OneArgument(nn.Module):
    def __init__(self, channels):
        super().__init__()


class Stub(nn.Module):
    def __init__(self, channels, groups, dropout):
        raise NotImplementedError("your turn")


class NoModule:
    pass


class HalfProcess:
    def __init__(self, config):
        self.timesteps = 1000


def few(denoise, process, x, times):
    return x


@pytest.mark.parametrize("wrong, messages", [
    ({"TemporalConv": Renamed}, [
        "Renamed cannot hold the weights of TemporalConv, for example of unet.down.0.blocks.0.temporal_conv",
        "built as Renamed(16, 4, 0.0)", "missing: conv4.0.bias (16,)", "missing: conv4.3.weight (16, 16, 3, 1, 1)",
        "unexpected: conv_4.3.weight (16, 16, 3, 1, 1) (the nearest that is expected: conv4.3.weight)"]),
    ({"TemporalConv": Kernel5}, ["wrong shape: conv1.2.weight is (16, 16, 5, 1, 1), expected (16, 16, 3, 1, 1)"]),
    ({"TemporalConv": NoBias}, ["missing: conv4.3.bias (16,)"]),
    ({"TemporalConv": Buffered}, ["unexpected: zzz (1,)", "persistent=False"]),
    ({"TemporalConv": OneArgument}, ["called as OneArgument(16, 4, 0.0)", "TemporalConv(channels: int, groups: int",
                                     "OneArgument(channels)", "too many positional"]),
    ({"TemporalConv": Stub}, ["Stub(16, 4, 0.0) raised NotImplementedError: your turn"]),
    ({"UNet": Stub}, ["missing a required argument: 'groups'"]),
    ({"UNet": text.TextEncoder}, ["TextEncoder(UNetConfig) raised AttributeError"]),
    ({"Level": unet.Downsample}, ["Downsample([Block], Downsample)", "too many positional"]),
    ({"TemporalConv": NoModule}, ["derives from torch.nn.Module", "the class NoModule"]),
    ({"TemporalConv": nn.Identity()}, ["an object, Identity()", "TemporalConv=MyClass"]),
    ({"TemporalConvs": Renamed}, ["nothing here is called TemporalConvs; did you mean TemporalConv?",
                                 "PixelAttention"]),
    ({"ddim": few}, ["ddim(denoise, process, x=..., times=..., eta=..., generator=..., on_step=...)",
                     "(denoise, process, x, times)"]),
    ({"ddpm": 7}, ["ddpm must be a function, not 7"]),
    ({"Process": HalfProcess}, ["HalfProcess has no times, alpha, sigma, split, network_times"]),
    ({"Process": diffusion.Process(diffusion.DiffusionConfig())}, ["Process must be a class"]),
])
def test_what_does_not_fit_is_named_and_changes_nothing(pipe, clip, wrong, messages):
    before = state_of(pipe)
    with pytest.raises(ValueError) as error:
        pipe.swap(**{"ResBlock": copied(unet.ResBlock), "PixelAttention": copied(autoencoder.PixelAttention),
                     "dpm_solver_pp": copied(samplers.dpm_solver_pp), **wrong})       # the others are right
    for message in messages:
        assert message in str(error.value)
    assert state_of(pipe) == before
    assert torch.equal(draw(pipe), clip)


def test_only_some_differences_are_listed(pipe):
    with pytest.raises(ValueError, match=r"\.\.\. and \d+ more$"):
        pipe.swap("autoencoder", Decoder=autoencoder.Encoder)


def test_wrong_part_and_absent_class(pipe):
    with pytest.raises(ValueError, match="no network 'vae'; choose one of unet, autoencoder"):
        pipe.swap("vae", ResBlock=autoencoder.ResBlock)
    with pytest.raises(ValueError, match="nothing here is called TemporalConv"):
        pipe.swap("autoencoder", TemporalConv=unet.TemporalConv)


def test_weights_with_additions_are_refused(pipe):
    pipe.unet.conv_in.register_parameter("lora", nn.Parameter(torch.zeros(2)))
    before = state_of(pipe)
    with pytest.raises(ValueError, match="not those of its configuration any more(.|\n)*unexpected: conv_in.lora"):
        pipe.swap(TemporalConv=copied(unet.TemporalConv))
    assert state_of(pipe) == before


def test_classes_are_left_as_they_were(pipe):
    """Constructors are noted during a swap only."""
    before = {name: cls.__init__ for name, cls in swap.CLASSES["unet"].items()}
    pipe.swap(TemporalConv=copied(unet.TemporalConv))
    with pytest.raises(ValueError):
        pipe.swap(TemporalConv=Stub)
    assert {name: cls.__init__ for name, cls in swap.CLASSES["unet"].items()} == before
    assert "__init__" not in vars(unet.GroupNorm)                     # it has none of its own, before and after


def test_no_warnings(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.swap(TemporalConv=copied(unet.TemporalConv))
