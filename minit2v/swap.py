"""The model on other code: a class of yours in the place of one of ours, wherever it stands.

    pipe.swap(TemporalConv=MyTemporalConv)

A network is three things: a configuration, code and weights. To swap code, the network is built anew from the same
configuration. Wherever our class stands, yours is called with the arguments that ours was called with; then the same
weights are loaded, and strictly: every parameter must be there, by the same name and in the same shape. Whether your
class computes the same is for you to see: if it does, so does the model, bit for bit. (The same sums in another order
round otherwise: then some colours of a clip differ by 1 of 255.)

All is built and checked first and put into the pipeline last, so a swap that fails changes nothing. To swap back, swap
our own class in. Nothing is copied: the new network holds the tensors of the old one.

What has a name here: every class that the UNet or the autoencoder is made of (and these themselves, and TextEncoder);
the samplers ddim, ddpm and dpm_solver_pp; guided_denoiser; and Process.
"""

import difflib
import inspect
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import nn

from minit2v import attention, autoencoder, few, levels, samplers, text, unet, winograd
from minit2v.diffusion import Process, guided_denoiser


def _modules_of(*files) -> dict[str, type]:
    return {name: value for file in files for name, value in vars(file).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == file.__name__}


# For each network: the names of its classes. Where two networks share a name, the first one is meant.
CLASSES = {"unet": _modules_of(unet, levels, attention, winograd, few),
           "autoencoder": _modules_of(autoencoder, winograd),
           "text_encoder": {"TextEncoder": text.TextEncoder}}
WHOLE = {"unet": unet.UNet, "autoencoder": autoencoder.Autoencoder, "text_encoder": text.TextEncoder}
FUNCTIONS = {"ddim": samplers.ddim, "ddpm": samplers.ddpm, "dpm_solver_pp": samplers.dpm_solver_pp,
             "guided_denoiser": guided_denoiser}
PROCESS = ("timesteps", "times", "alpha", "sigma", "split", "network_times")     # what a clip needs of a process
SHOWN = 10                                               # differences that an error lists


def swap(pipe, part: str | None, replacements: dict) -> None:
    """Puts each of the `replacements`, {name: class or function}, in the place of ours; `TextToVideo.swap` tells more.

    Raises ValueError for a name that is not known, and for what does not fit: other arguments, or other parameters.
    """
    swapped = dict(pipe.swapped)
    touched = set()
    for name, theirs in replacements.items():
        place, ours = find(name, part)
        key = f"{place}.{name}" if place in CLASSES else name
        if theirs is ours:
            swapped.pop(key, None)
        else:
            _check_kind(name, ours, theirs)
            swapped[key] = theirs
        touched.add(place)

    new = {}                                             # attributes of the pipeline
    for place in touched & CLASSES.keys():
        classes = {name: swapped[f"{place}.{name}"] for name in CLASSES[place] if f"{place}.{name}" in swapped}
        config = pipe.config.text if place == "text_encoder" else getattr(pipe.config, place)
        new[place] = rebuild(getattr(pipe, place), place, config, classes)
    if "process" in touched:
        new["process"] = _construct(swapped.get("Process", Process), Process, (pipe.config.diffusion,), {})
        if lacking := [name for name in PROCESS if not hasattr(new["process"], name)]:
            raise ValueError(f"{swapped['Process'].__name__} has no {', '.join(lacking)}; a Process needs "
                             f"{', '.join(PROCESS)}")
    for name, value in new.items():
        setattr(pipe, name, value)
    pipe.swapped = swapped


def find(name: str, part: str | None = None) -> tuple[str, object]:
    """Where a name of ours belongs ("unet", "autoencoder", "text_encoder", "function" or "process"), and what it is."""
    places = {**CLASSES, "process": {"Process": Process}, "function": FUNCTIONS}
    if part is not None:
        if part not in CLASSES:
            raise ValueError(f"there is no network {part!r}; choose one of {', '.join(CLASSES)}")
        places = {part: CLASSES[part]}
    for place, names in places.items():
        if name in names:
            return place, names[name]
    known = list(dict.fromkeys(name for names in places.values() for name in names))
    close = difflib.get_close_matches(name, known, n=1)
    raise ValueError(f"nothing here is called {name}{f'; did you mean {close[0]}?' if close else '.'} "
                     f"What can be swapped: {', '.join(known)}")


def rebuild(old: nn.Module, part: str, config, classes: dict[str, type]) -> nn.Module:
    """The network `old` once more, same weights, with `classes` in the place of ours of that name.

    From the outside inwards: first your Block, then, inside it, your TemporalConv. The paths are the same in any
    code, because the names of the parameters are.
    """
    with torch.device("meta"), recorded(CLASSES[part].values()) as calls:      # shapes without numbers
        network = WHOLE[part](config)
    blocks = list(network.named_modules())
    if absent := classes.keys() - {type(block).__name__ for _, block in blocks}:
        raise ValueError(f"the {part} of this model has no {', '.join(sorted(absent))}: there is nothing to swap")
    for path, ours in blocks:
        theirs = classes.get(type(ours).__name__)
        if theirs is None:
            continue
        block = _without_numbers(_construct(theirs, type(ours), *calls[ours]))
        if problems := differences(shapes(block), shapes(ours)):
            raise ValueError(f"{theirs.__name__} cannot hold the weights of {type(ours).__name__}, for example of "
                             f"{'.'.join(filter(None, [part, path]))}, built as "
                             f"{_written(theirs, *calls[ours])}:\n  " + "\n  ".join(problems))
        if path:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, block)
        else:
            network = block

    state = old.state_dict()
    if problems := differences(shapes(old), shapes(network)):
        raise ValueError(f"the weights of the {part} are not those of its configuration any more; take out what was "
                         "added (merge adapters, remove wrappers) before you swap:\n  " + "\n  ".join(problems))
    network.load_state_dict(state, strict=True, assign=True)
    learns = {name: p.requires_grad for name, p in old.named_parameters()}
    for name, p in network.named_parameters():
        p.requires_grad_(learns.get(name, True))
    if hasattr(old, "gradient_checkpointing"):
        network.gradient_checkpointing = old.gradient_checkpointing
    first = next(iter(state.values()))
    return network.to(first.device, first.dtype).train(old.training)           # moves tables of your own, if any


@contextmanager
def recorded(classes):
    """While this lasts, modules of these classes are noted when they are built: {module: (args, kwargs)}."""
    calls = {}

    def noting(init):
        def noted(self, *args, **kwargs):
            calls.setdefault(self, (args, kwargs))
            init(self, *args, **kwargs)
        return noted

    with ExitStack() as undo:
        for cls in classes:
            undo.enter_context(mock.patch.object(cls, "__init__", noting(cls.__init__)))
        yield calls


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def differences(found: dict[str, tuple], expected: dict[str, tuple]) -> list[str]:
    """What is missing, misshapen or too much in `found`, each named, the nearest expected name beside what is too much.

    Both are {name: shape}. Returns lines of text, none if all is equal.
    """
    missing = [name for name in expected if name not in found]
    lines = [f"missing: {name} {expected[name]}" for name in missing]
    lines += [f"wrong shape: {name} is {found[name]}, expected {expected[name]}" for name in expected
              if name in found and found[name] != expected[name]]
    for name in (name for name in found if name not in expected):
        close = difflib.get_close_matches(name, missing or list(expected), n=1)
        lines.append(f"unexpected: {name} {found[name]}" + (f" (the nearest that is expected: {close[0]})" if close
                     else " (tables that are not learnt: register_buffer(..., persistent=False))"))
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]


def _check_kind(name: str, ours, theirs) -> None:
    """Raises ValueError if a class is wanted and something else was given, or if a function takes other arguments."""
    if not inspect.isclass(ours):
        first, second, *rest = inspect.signature(ours).parameters
        if not callable(theirs):
            raise ValueError(f"{name} must be a function, not {theirs!r}")
        try:
            inspect.signature(theirs).bind(None, None, **dict.fromkeys(rest))
        except TypeError as error:
            raise ValueError(f"{name} is called as {name}({first}, {second}, "
                             f"{', '.join(f'{key}=...' for key in rest)}), but yours takes "
                             f"{inspect.signature(theirs)} ({error})") from error
    elif not inspect.isclass(theirs) or (issubclass(ours, nn.Module) and not issubclass(theirs, nn.Module)):
        kind = "a class that derives from torch.nn.Module" if issubclass(ours, nn.Module) else "a class"
        given = f"the class {theirs.__name__}" if inspect.isclass(theirs) else f"an object, {type(theirs).__name__}(),"
        raise ValueError(f"{name} must be {kind}, but {given} was given; give the class itself, {name}=MyClass")


def _construct(theirs: type, ours: type, args: tuple, kwargs: dict):
    """Calls a class as ours is called. Raises ValueError if it takes other arguments, or fails."""
    try:
        inspect.signature(theirs).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{theirs.__name__} is called as {_written(theirs, args, kwargs)}, as ours is, which is "
                         f"{ours.__name__}{inspect.signature(ours)}; but yours is {theirs.__name__}"
                         f"{inspect.signature(theirs)} ({error})") from error
    try:
        return theirs(*args, **kwargs)
    except Exception as error:                           # of somebody else's code anything can come
        raise ValueError(f"{_written(theirs, args, kwargs)} raised {type(error).__name__}: {error}") from error


def _without_numbers(module: nn.Module) -> nn.Module:
    """Drops the numbers of all parameters, which others are about to replace: never a second copy of a network."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.to("meta"), requires_grad=p.requires_grad)
    return module


def _written(theirs: type, args: tuple, kwargs: dict) -> str:
    def show(value):
        if isinstance(value, (int, float, str, type(None))):
            return repr(value)
        return f"[{', '.join(map(show, value))}]" if isinstance(value, list) else type(value).__name__
    return f"{theirs.__name__}({', '.join([*map(show, args), *(f'{k}={show(v)}' for k, v in kwargs.items())])})"
