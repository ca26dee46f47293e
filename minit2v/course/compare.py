"""How two results differ, in words for a learner; and in which words a value is spoken of."""

import inspect
from typing import Any

from torch import Tensor


def difference(got: Any, right: Any, tolerance: float, what: str = "The result") -> str | None:
    """None if equal; otherwise, in words, how they differ."""
    if isinstance(right, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(right):
            return f"{what} should be {len(right)} things in a {type(right).__name__}; yours is {kind(got)}."
        parts = [(f"{what.rstrip(',')}, part {i + 1},", a, b) for i, (a, b) in enumerate(zip(got, right))]
    elif isinstance(right, dict):
        if not isinstance(got, dict) or list(got) != list(right):
            return f"{what} should be a dict of {', '.join(map(repr, right))}; yours is {kind(got)}."
        parts = [(f"{what}, {key}," if what == "The result" else f"{what} {key},", got[key], right[key])
                 for key in right]
    elif isinstance(right, Tensor):
        return _tensor_difference(got, right, tolerance, what)
    elif isinstance(right, float):
        if isinstance(got, Tensor) and got.numel() == 1:
            got = got.item()
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return f"{what} should be a number; yours is {kind(got)}."
        near = abs(got - right) <= tolerance * max(1e-12, abs(right))
        return None if near else f"{what} is {got:.6g}, and that is not right."
    else:
        return None if type(got) is type(right) and got == right else f"{what} is {got!r}, and that is not right."
    return next((found for name, a, b in parts if (found := difference(a, b, tolerance, name))), None)


def _tensor_difference(got: Any, right: Tensor, tolerance: float, what: str) -> str | None:
    if not isinstance(got, Tensor):
        return f"{what} should be a tensor of shape {tuple(right.shape)}; yours is {kind(got)}."
    if got.shape != right.shape:
        return f"{what} should have the shape {tuple(right.shape)}; yours has {tuple(got.shape)}."
    if got.is_floating_point() != right.is_floating_point():
        return f"{what} should be of type {right.dtype}; yours is {got.dtype}."
    if right.numel() == 0:
        return None
    a, b = got.detach().double(), right.detach().double()
    size = max(b[b.isfinite()].abs().tolist() + [1e-12])
    near = ((a - b).abs() <= tolerance * size) | (a == b) | (a.isnan() & b.isnan())
    if near.all():
        return None
    if right.ndim == 0:
        return f"{what} is {a.item():.5g}, and that is not right."
    place = tuple(i.item() for i in (~near).nonzero()[0])
    nan = f", and {100 * (~a.isfinite()).double().mean().item():.0f} % are not even numbers" * (not a.isfinite().all())
    share = 100 * near.double().mean().item()
    share = "nearly all" if share > 99.4 else f"{share:.0f} %"
    return (f"{what} has the right shape, and {share} of its values are right{nan}; "
            f"the first wrong one is at {place}: {a[place].item():.5g}.")


def tensors(output: Any) -> list[Tensor]:
    """Every floating-point tensor in a result, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def describe(case: tuple) -> str:
    """The arguments that a hand-in was called with, shortly."""
    return ", ".join(f"a tensor {tuple(a.shape)}" if isinstance(a, Tensor) else f"a {type(a).__name__}"
                     if callable(a) or isinstance(a, (dict, list, tuple)) else repr(a) for a in case) or "nothing"


def kind(value: Any) -> str:
    """What sort of thing a value is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isfunction(value):
        return f"the function {value.__name__}"
    return f"of type {type(value).__name__}"
