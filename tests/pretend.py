"""A device that is not there: tensors say that they are on it, and the processor computes.

On a graphics card the commonest mistake is a tensor that was left on the processor, and no test on a processor can
find it. On this device an operation that mixes the two raises an error, a generator of the processor draws no noise,
nothing is as precise as float64 (as on a Mac's MPS), and numbers go to and fro only by `.to` and `.cpu`. What it cannot
show is how a real card rounds, what it has no operation for, and how fast it is.

It goes by torch's name "meta", the one that every build of torch knows without such a device in the machine.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
MOVES = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to}
INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten._unsafe_index}   # by the processor's numbers


class There(Tensor):
    """A tensor on the device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here: Tensor):
        if here.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device has no {here.dtype}")
        there = Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), dtype=here.dtype, device=NAME,
                                              storage_offset=here.storage_offset())
        there.here = here
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of `with Device()`")


class Device(TorchDispatchMode):
    """`with Device() as device:` there is one; `device.calls` counts what it has computed."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __enter__(self):
        self.autocast, torch.autocast = torch.autocast, lambda device_type, *args, **options: self.autocast(
            "cpu" if device_type == NAME else device_type, *args, **options)
        self.overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)                   # for module.to(device)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwrites)
        torch.autocast = self.autocast

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch.inference_mode(False), torch.no_grad():           # our tensors are made of common ones in any case
            return self.compute(func, args, kwargs or {})

    def compute(self, func, args, kwargs):
        leaves = tree_leaves((args, kwargs))
        given, asked = [x for x in leaves if isinstance(x, Tensor)], [x for x in leaves if isinstance(x, torch.device)]
        there = [x for x in given if isinstance(x, There)]
        goes = asked[0].type == NAME if asked else isinstance(args[0], There) if func.overloadpacket in MOVES else there
        if there and func.overloadpacket not in MOVES | INDEXED:
            left = [tuple(x.shape) for x in given if x.ndim and not isinstance(x, There)]
            if left:
                raise RuntimeError(f"{func} wants all tensors on the device, but those of shapes {left} are not")
        if goes and any(isinstance(x, torch.Generator) for x in leaves):
            raise RuntimeError(f"{func} wants a generator of the device, but got one of the processor")
        self.calls += bool(goes)
        known = {id(x.here): x for x in there}                       # what works in place gives back what it got
        args, kwargs = tree_map(_here, (args, kwargs))
        out = func(*args, **kwargs)
        return tree_map(lambda x: _there(x, known), out) if goes else out


def _there(x, known):
    if not isinstance(x, Tensor):
        return x
    return known[id(x)] if id(x) in known else There(x)


def _here(x):
    return x.here if isinstance(x, There) else torch.device("cpu") if isinstance(x, torch.device) else x
