"""What an exercise is, and how a hand-in is judged.

A hand-in is a function, a class or an answer. `judge` puts it through stages and stops at the first that fails:

    it exists · it is the learner's own · its signature · it runs · type and shape · values · precision · gradients

What is right is said by an *oracle* that owes nothing to the solution: another route through torch, a formula in
einsum, frozen numbers; in float64. Each exercise also knows *named mistakes*, wrong versions written out. When the
values are wrong and a named mistake gives the very same ones, the learner is told which mistake it was.
"""

import copy
import difflib
import importlib
import inspect
import pkgutil
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from minit2v.course.compare import describe, difference, kind, tensors

RIGHT, WRONG, ERROR, OPEN = "right", "wrong", "error in your code", "not attempted"


@dataclass(frozen=True)
class Mistake:
    """A wrong version: a function or class that behaves like it, or, in an explore exercise, the wrong answer."""

    name: str
    wrong: Any
    message: str                                    # which mistake it is, and where to read; never the missing line


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is asked for, what is right, and what goes wrong.

    name: "07.frame_conv". target: the name in the notebook that is handed in. kind: build, repair or explore.
    cases: seed -> the arguments to call it with, a list of tuples; tensors in float64.
    oracle: what is right for such arguments. Of a class: oracle(state, *arguments), with the state of `parameters`.
    init, parameters: of a class that is a torch module, the arguments of its constructor, or a function that makes
        them, and {name: shape}.
    call: how a hand-in is run, if not plainly: call(hand_in, *arguments). May return tuples and dicts of results.
    options: explore only: rng -> what the question depends on; `oracle` is called with these and gives the answer.
    """

    name: str
    target: str
    kind: str
    title: str
    minutes: int
    oracle: Callable
    mistakes: tuple[Mistake, ...]
    hints: tuple[Any, ...]                          # text, or a function that makes a picture
    cases: Callable[[int], list[tuple]] | None = None
    points: int = 2
    level: int = 1                                  # difficulty, 1 to 3
    init: tuple | Callable[[], tuple] | None = None
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    call: Callable | None = None
    options: Callable[[random.Random], dict] | None = None
    tolerance: float = 1e-6                         # relative to the largest right value
    gradients: bool = False                         # compare those of the inputs, too
    forbidden: tuple[str, ...] = ()                 # names that would do the whole work
    celebrate: Callable | None = None               # hand_in -> a picture of what now works

    @property
    def chapter(self) -> int:
        return int(self.name[:2])


@dataclass
class Result:
    """What came of a check. True when it is right."""

    exercise: Exercise
    outcome: str
    message: str
    mistake: str | None = None
    picture: Any = None

    def __bool__(self) -> bool:
        return self.outcome == RIGHT

    @property
    def points(self) -> int:
        return self.exercise.points if self else 0


@cache
def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by name, in order: those of minit2v/course/exercises/cNN.py."""
    from minit2v.course import exercises as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    found = [e for name in names for e in importlib.import_module(f"{package.__name__}.{name}").EXERCISES]
    return {e.name: e for e in found}


def find(name: str) -> Exercise:
    """The exercise of that name. Raises KeyError, naming the nearest one."""
    if name not in exercises():
        near = difflib.get_close_matches(name, exercises(), n=1, cutoff=0.0)
        raise KeyError(f"there is no exercise {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return exercises()[name]


def judge(exercise: Exercise, handed_in: Any, seed: int = 0) -> Result:
    """Puts a hand-in through the stages. Never raises for what the hand-in does, unless it ends the process."""
    def wrong(message: str, mistake: str | None = None) -> Result:
        return Result(exercise, WRONG, message, mistake)

    def named_or(otherwise: Result) -> Result:
        named = _named_mistake(exercise, handed_in, cases)
        return wrong(named.message, named.name) if named else otherwise

    if handed_in is None or handed_in is ...:
        return Result(exercise, OPEN, f"Nothing here yet: `{exercise.target}` is your turn.")
    if exercise.kind == "explore":
        return _judge_answer(exercise, handed_in, seed)
    if refusal := _refuse(exercise, handed_in):
        return wrong(refusal)
    cases = exercise.cases(seed)
    for number, case in enumerate(cases):
        right = _run(exercise, None, case)
        kept = copy.deepcopy(case)
        try:
            got = _run(exercise, handed_in, case)
        except NotImplementedError:
            return Result(exercise, OPEN, f"`{exercise.target}` still raises NotImplementedError: your turn.")
        except _Parameters as error:
            return named_or(wrong(str(error)))
        except Exception as error:
            return named_or(Result(exercise, ERROR, _where(error, case)))
        if found := difference(got, right, exercise.tolerance):
            return named_or(wrong(f"{found} (Case {number + 1}: {describe(case)}.)"))
        if difference(case, kept, 0):
            return wrong(f"The result is right, but `{exercise.target}` has changed its input on the way. Whoever "
                         f"called it may still need that. Look for `+=`, `*=`, names ending in `_`, and `x[...] =`.")
    try:
        found = _precision(exercise, handed_in, cases[0]) or _slopes(exercise, handed_in, cases[0])
    except Exception as error:
        return Result(exercise, ERROR, _where(error, cases[0]))
    return wrong(found) if found else Result(exercise, RIGHT, "Right.")


def _judge_answer(exercise: Exercise, answer: Any, seed: int) -> Result:
    options = exercise.options(random.Random(f"{exercise.name} {seed}")) if exercise.options else {}
    right = exercise.oracle(**options)
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(right, int) and isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if not isinstance(answer, type(right)) and not (isinstance(right, float) and isinstance(answer, int)):
        return Result(exercise, WRONG, f"The answer should be {kind(right)}; yours is {kind(answer)}.")
    if not difference(answer, right, exercise.tolerance):
        return Result(exercise, RIGHT, "Right.")
    for mistake in exercise.mistakes:
        value = mistake.wrong(**options) if callable(mistake.wrong) else mistake.wrong
        if not difference(answer, value, exercise.tolerance) and difference(right, value, exercise.tolerance):
            return Result(exercise, WRONG, mistake.message, mistake.name)
    if isinstance(right, float) and not difference(answer / 100, right, exercise.tolerance):
        return Result(exercise, WRONG, "That is the right number in per cent. Asked for is the number itself, of "
                      "which a half is 0.5 and not 50.", "per cent")
    return Result(exercise, WRONG, f"{answer!r} is not it. Have you taken the numbers that "
                  f"`task({exercise.name!r})` gives you? `hint({exercise.name!r})` helps.")


def _refuse(exercise: Exercise, handed_in: Any) -> str | None:
    """Why this cannot be judged at all: not callable, the package's own, a short cut, the wrong signature."""
    a_class = exercise.init is not None
    if inspect.isclass(handed_in) != a_class or not callable(handed_in):
        return (f"`{exercise.target}` should be a {'class' if a_class else 'function'}; this is {kind(handed_in)}."
                + (" Hand in the class itself, without brackets." if a_class and isinstance(handed_in, nn.Module)
                   else ""))
    own = [kind for kind in (inspect.getmro(handed_in) if a_class else (inspect.unwrap(handed_in),))
           if (kind.__module__ or "").startswith("minit2v.")
           and not kind.__module__.startswith("minit2v.course.exercises.")]
    if own:
        return f"This is `{own[0].__name__}` of the package itself. It is right, but it is not yours."
    used = _names(handed_in) & set(exercise.forbidden)
    if used:
        return f"`{sorted(used)[0]}` does the whole work of this exercise. Write out what it does."
    expected = list(inspect.signature(exercise.mistakes[0].wrong).parameters)      # of which each has the right one
    try:
        given = list(inspect.signature(handed_in).parameters)
    except (TypeError, ValueError):
        return None
    if given[:len(expected)] != expected:
        return f"`{exercise.target}` should take ({', '.join(expected)}); yours takes ({', '.join(given)})."
    return None


def _names(handed_in: Any) -> set[str]:
    """Every global name and attribute used by a function, or a class's methods, and by the learner's own helpers."""
    todo = [part for part in (vars(handed_in).values() if inspect.isclass(handed_in) else (handed_in,))
            if inspect.isfunction(part)]
    found, seen = set(), set()
    while todo:
        part = todo.pop()
        names, seen = _names_in(part.__code__), seen | {part}
        found |= names
        todo += [helper for helper in map(part.__globals__.get, names)
                 if inspect.isfunction(helper) and helper.__globals__ is part.__globals__ and helper not in seen]
    return found


def _names_in(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


class _Parameters(Exception):
    """A module's parameters have other names or shapes than those asked for."""


def _run(exercise: Exercise, handed_in: Any, case: tuple, dtype: torch.dtype = torch.float64) -> Any:
    """What the hand-in makes of a case; without one, what the oracle does."""
    if exercise.init is None:
        if handed_in is None:
            return exercise.oracle(*case)
        return exercise.call(handed_in, *case) if exercise.call else handed_in(*case)
    state = _state(exercise, dtype)
    if handed_in is None:
        return exercise.oracle(state, *case)
    init = exercise.init() if callable(exercise.init) else exercise.init
    module = _fill(exercise, handed_in(*init), state)
    return exercise.call(module, *case) if exercise.call else module(*case)


def _state(exercise: Exercise, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(exercise.name))
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).div(max(1, shape[-1]) ** 0.5).to(dtype)
            for name, shape in exercise.parameters.items()}


def _fill(exercise: Exercise, module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Loads the state strictly, after saying in plain words what does not fit."""
    if not isinstance(module, nn.Module):
        raise _Parameters(f"`{exercise.target}` should be a torch.nn.Module: let the class inherit from it.")
    there = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    missing = [name for name in state if name not in there]
    extra = [name for name in there if name not in state]
    if missing:
        raise _Parameters(f"The module has no parameter `{missing[0]}`, {tuple(state[missing[0]].shape)}. It has "
                          f"{', '.join(f'`{name}`' for name in there) or 'none'}. Weights are loaded by these names.")
    if extra:
        raise _Parameters(f"The module has a parameter more than asked for: `{extra[0]}`, {there[extra[0]]}.")
    for name, value in state.items():
        if there[name] != tuple(value.shape):
            raise _Parameters(f"`{name}` should have the shape {tuple(value.shape)}; yours has {there[name]}.")
    module = module.to(next(iter(state.values())).dtype) if state else module.double()
    module.load_state_dict({name: value.clone() for name, value in state.items()})
    return module


def _named_mistake(exercise: Exercise, handed_in: Any, cases: list[tuple]) -> Mistake | None:
    """The named mistake that does on every case what the hand-in does, be it a value or the same error."""
    mine = [_attempt(exercise, handed_in, case) for case in cases]
    for mistake in exercise.mistakes:
        if all(_same(a, _attempt(exercise, mistake.wrong, case), exercise.tolerance)
               for a, case in zip(mine, cases, strict=True)):
            return mistake
    return None


def _attempt(exercise: Exercise, handed_in: Any, case: tuple) -> Any:
    try:
        return _run(exercise, handed_in, copy.deepcopy(case))
    except Exception as error:
        return error


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and str(a) == str(b)
    return not difference(a, b, tolerance)


def _precision(exercise: Exercise, handed_in: Any, case: tuple) -> str | None:
    """The same in float32: what comes out must have the precision of what went in."""
    if not any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in case):
        return None
    single = tuple(a.float() if isinstance(a, Tensor) and a.dtype == torch.float64 else a for a in case)
    got, right = (_run(exercise, which, single, torch.float32) for which in (handed_in, None))
    for a, b in zip(tensors(got), tensors(right)):
        if a.dtype != b.dtype:
            return (f"Of float32 your `{exercise.target}` makes {a.dtype}; it should be {b.dtype}. A tensor that you "
                    f"make inside takes its dtype (and its device) from the input.")
    return None


def _slopes(exercise: Exercise, handed_in: Any, case: tuple) -> str | None:
    """The gradients of the inputs, through the hand-in and through the oracle."""
    if not exercise.gradients:
        return None
    found = []
    for which in (handed_in, None):
        leaves = tuple(a.detach().clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
                       for a in case)
        output = _run(exercise, which, leaves)
        total = sum((part * torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).view_as(part)).sum()
                    for part in tensors(output))
        if not total.requires_grad:
            return ("The values are right, but no gradient comes through: nothing would learn. Look for `.detach()`, "
                    "`.item()`, `.data`, `torch.no_grad()`, or a new tensor made of numbers.")
        total.backward()
        found.append([torch.zeros_like(a) if a.grad is None else a.grad
                      for a in leaves if isinstance(a, Tensor) and a.is_floating_point()])
    different = difference(found[0], found[1], 100 * exercise.tolerance, "The gradient")
    return f"The values are right, but not the gradients. {different}" if different else None


def _where(error: Exception, case: tuple) -> str:
    """An error in the learner's code, with the line of theirs that it came from."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename).resolve() != Path(__file__).resolve() and "site-packages" not in frame.filename]
    line = f" in the line `{lines[-1].line}`" if lines and lines[-1].line else ""
    return f"{type(error).__name__}{line}: {error}\n(It was called with {describe(case)}.)"
