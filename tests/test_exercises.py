"""Every exercise: its stub is open, its solution right, and each named mistake is told by its own message."""

import copy
import inspect
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minit2v.course import exercise as judging
from minit2v.course import learner
from minit2v.course.exercise import ERROR, OPEN, RIGHT, WRONG, Exercise, Mistake, judge
from minit2v.course.handin import take
from minit2v.course.syllabus import CHAPTERS

pytest.importorskip("jupytext")
from minit2v.course import build  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NAMES = {chapter.number: chapter.name for chapter in CHAPTERS}
EXERCISES = list(judging.exercises().values())
each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test writes into the home of whoever runs it."""
    monkeypatch.setenv("MINIT2V_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MINIT2V_STUDENT", raising=False)


def notebook(kind: str, exercise: Exercise) -> Path:
    return ROOT / kind / f"{NAMES[exercise.chapter]}.ipynb"


def wrong_value(exercise: Exercise, mistake: Mistake):
    options = learner.task(exercise.name)
    return mistake.wrong(**options) if exercise.kind == "explore" and callable(mistake.wrong) else mistake.wrong


@each
def test_the_solution_is_right_and_the_stub_is_open(exercise):
    solved = judge(exercise, take([notebook("solutions", exercise)], exercise.target))
    assert solved.outcome == RIGHT, solved.message
    assert solved.points == exercise.points
    stub = judge(exercise, take([notebook("exercises", exercise)], exercise.target))
    assert stub.outcome == OPEN and stub.points == 0
    if exercise.celebrate:
        assert exercise.celebrate(take([notebook("solutions", exercise)], exercise.target)).png


@each
def test_each_named_mistake_is_told(exercise):
    assert len(exercise.mistakes) >= (1 if exercise.kind == "explore" else 3)
    messages = [mistake.message for mistake in exercise.mistakes]
    assert len(set(messages)) == len(messages) and all(len(message.split()) >= 5 for message in messages)
    for mistake in exercise.mistakes:
        result = judge(exercise, wrong_value(exercise, mistake))
        assert (result.outcome, result.mistake, result.message) == (WRONG, mistake.name, mistake.message)


@each
def test_messages_and_hints_do_not_give_the_line_away(exercise):
    code = build_solutions()[exercise.name]["code"]
    lines = [line.strip() for line in code.splitlines() if len(line.strip()) > 12
             and not line.strip().startswith(("def ", "class ", '"""', "#", "return x", "super()", "import", "from"))]
    said = " ".join([mistake.message for mistake in exercise.mistakes]
                    + [hint for hint in exercise.hints if isinstance(hint, str)])
    given_away = [line for line in lines if line.removeprefix("return ") in said]
    assert lines and given_away == []
    assert build_solutions()[exercise.name]["why"], "explain the solution in a cell tagged `solution`"


@each
def test_hints_begin_with_a_picture_and_go_on_in_words(exercise):
    first, *others = exercise.hints
    assert others and all(isinstance(hint, str) and len(hint.split()) >= 5 for hint in others)
    assert first().png.startswith(b"\x89PNG")                                      # a Picture has an alt text, too


@cache
def build_solutions():
    return json.loads(build.solved(ROOT))


def test_there_are_enough_and_they_are_announced(capsys):
    chapters = {e.chapter for e in EXERCISES}
    mistakes = sum(len(e.mistakes) for e in EXERCISES)
    with capsys.disabled():
        print(f"\nexercises: {len(EXERCISES)} in {len(chapters)} chapters, {mistakes} named mistakes, "
              f"{sum(e.points for e in EXERCISES)} points")
    assert chapters == set(range(1, 13)) and len(EXERCISES) >= 45 and mistakes >= 120
    plan = (ROOT / "exercises" / "TEACHING.md").read_text(encoding="utf-8")
    for what, count in (("exercises", len), ("minutes", lambda some: sum(e.minutes for e in some)),
                        ("points", lambda some: sum(e.points for e in some))):
        cells = [count([e for e in EXERCISES if e.chapter == number]) for number in sorted(chapters)]
        assert f"| {what} | {' | '.join(map(str, [*cells, count(EXERCISES)]))} |" in plan
    for number in chapters:
        mine = [e for e in EXERCISES if e.chapter == number]
        assert 3 <= len(mine) <= 5
        assert {"build", "repair", "explore"} <= {e.kind for e in mine}
        text = (ROOT / "exercises" / f"{NAMES[number]}.ipynb").read_text(encoding="utf-8")
        assert all(f"## {e.name} · {e.title}" in text and f"{e.minutes} minutes" in text for e in mine)
        assert len({e.target for e in mine}) == len(mine)
    assert all(e.kind in ("build", "repair", "explore") and e.level in (1, 2, 3) and e.hints for e in EXERCISES)


# --- the stages, on an exercise made here ---

def double(x, times):
    return x * times


def halved(x, times):
    return x / times


class Line(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x * self.weight


class LineTurned(Line):
    def forward(self, x):
        return -x * self.weight


FUNCTION = Exercise("01.double", "double", "build", "Double", 5, double, (Mistake("half", halved, "You divide."),),
                    ("Think.",), cases=lambda seed: [(torch.arange(6.0, dtype=torch.float64).view(2, 3) + 1, 2.0)],
                    gradients=True, forbidden=("mul",))
MODULE = Exercise("01.line", "Line", "build", "Line", 5, lambda state, x: torch.einsum("ni,i->ni", x, state["weight"]),
                  (Mistake("turned", LineTurned, "The sign."),), ("Think.",), init=(3,), parameters={"weight": (3,)},
                  cases=lambda seed: [(torch.ones(2, 3, dtype=torch.float64),)], gradients=True)


def spoil(x, times):
    x *= times
    return x


def late(x, times):
    out = x * times
    out[1, 1] = 0
    return out


def raises(x, times):
    return x @ torch.zeros(7, 7)


def helped(x, times):
    return torch.mul(x, times) if times else helped(x, 1)


def stub(x, times):
    raise NotImplementedError


@pytest.mark.parametrize("handed_in, outcome, says", [
    (lambda x, times: x * times, RIGHT, "Right"),
    (halved, WRONG, "You divide."),
    (None, OPEN, "your turn"),
    (stub, OPEN, "your turn"),
    (3, WRONG, "should be a function; this is of type int"),
    (lambda x: x, WRONG, "should take (x, times); yours takes (x)"),
    (lambda x, times: torch.mul(x, times), WRONG, "`mul` does the whole work"),
    (lambda x, times: helped(x, times), WRONG, "`mul` does the whole work"),
    (raises, ERROR, "in the line `return x @ torch.zeros(7, 7)`"),
    (lambda x, times: (x * times)[:1], WRONG, "the shape (2, 3); yours has (1, 3)"),
    (lambda x, times: (x * times).tolist(), WRONG, "a tensor of shape (2, 3); yours is of type list"),
    (lambda x, times: (x * times).long(), WRONG, "torch.float64; yours is torch.int64"),
    (late, WRONG, "83 % of its values are right; the first wrong one is at (1, 1): 0"),
    (lambda x, times: x * times / 0, WRONG, "100 % are not even numbers"),
    (spoil, WRONG, "has changed its input"),
    (lambda x, times: x.double() * times, WRONG, "Of float32 your `double` makes torch.float64"),
    (lambda x, times: x.detach() * times, WRONG, "no gradient comes through"),
    (lambda x, times: x.detach() * times + x - x.detach(), WRONG, "not the gradients"),
])
def test_stages_of_a_function(handed_in, outcome, says):
    result = judge(FUNCTION, handed_in)
    assert result.outcome == outcome and says in result.message
    assert bool(result) == (outcome == RIGHT) and result.points == (2 if outcome == RIGHT else 0)


class Renamed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x * self.w


class Plain:
    def __init__(self, width):
        pass


@pytest.mark.parametrize("handed_in, outcome, says", [
    (Line, RIGHT, "Right"),
    (LineTurned, WRONG, "The sign."),
    (Renamed, WRONG, "no parameter `weight`, (3,). It has `w`"),
    (type("Wide", (Line,), {"__init__": lambda self, width: Line.__init__(self, width + 1)}), WRONG,
     "`weight` should have the shape (3,); yours has (4,)"),
    (Plain, WRONG, "should be a torch.nn.Module"),
    (Line(3), WRONG, "Hand in the class itself"),
])
def test_stages_of_a_module(handed_in, outcome, says):
    result = judge(MODULE, handed_in)
    assert (result.outcome, says in result.message) == (outcome, True), result.message


# --- wrong answers that once passed, as a learner would write them; and their neighbours that are right ---

class Reading:
    """What the ways of reading a text below have in common: the solution of 11.attention, but for one line."""

    def forward(self, x, text=None):
        k, v = self.keys_values(x) if text is None else text
        q = rearrange(self.to_q(x), "(b f) l (h d) -> b f h l d", b=len(k), h=self.heads)
        out = self.read(q, k, v) if text else self.row(q, k, v)
        return self.to_out(rearrange(out, "b f h l d -> (b f) l (h d)"))

    def row(self, q, k, v):
        long = F.scaled_dot_product_attention(rearrange(q, "b f h l d -> b h (f l) d"), k, v)
        return rearrange(long, "b h (f l) d -> b f h l d", f=q.shape[1])


class ByEinsum(Reading):
    def read(self, q, k, v):
        weights = (torch.einsum("bfhld,bhkd->bfhlk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bfhlk,bhkd->bfhld", weights, v)


class FrameByFrame(Reading):
    def read(self, q, k, v):
        return torch.stack([self.row(q[:, f:f + 1], k, v)[:, 0] for f in range(q.shape[1])], dim=1)


class CopiedWhole(Reading):
    def read(self, q, k, v):
        k, v = (part.repeat_interleave(q.shape[1], 0) for part in (k, v))
        return F.scaled_dot_product_attention(q.flatten(0, 1), k, v).reshape(q.shape)


class CopiedByNumber(Reading):
    def read(self, q, k, v):
        whose = torch.arange(len(k)).repeat_interleave(q.shape[1])
        return F.scaled_dot_product_attention(q.flatten(0, 1), k[whose], v[whose]).reshape(q.shape)


class CopiedHeadByHead(Reading):
    def read(self, q, k, v):
        heads = [F.scaled_dot_product_attention(
            q[:, :, h].flatten(0, 1), *(part[:, h].repeat_interleave(q.shape[1], 0) for part in (k, v)))
            for h in range(self.heads)]
        return torch.stack(heads, dim=1).unflatten(0, q.shape[:2])


class CopiedInside(Reading):
    def read(self, q, k, v):
        return (q @ k[:, None].mT * q.shape[-1] ** -0.5).softmax(-1) @ v[:, None]


@pytest.mark.parametrize("way, mistake", [(ByEinsum, None), (FrameByFrame, None)] + [
    (way, "copied for each frame") for way in (CopiedWhole, CopiedByNumber, CopiedHeadByHead, CopiedInside)])
def test_a_text_that_is_copied_for_each_frame_is_found_out(way, mistake):
    exercise = judging.find("11.attention")
    solved = take([notebook("solutions", exercise)], exercise.target)
    result = judge(exercise, type("Attention", (way, solved), {}))
    assert (result.outcome, result.mistake) == (WRONG if mistake else RIGHT, mistake), result.message


@pytest.mark.parametrize("keep, mistake", [
    (lambda linear: copy.deepcopy(linear), "beside a copy"),
    (lambda linear: _twin(linear, lambda p: nn.Parameter(p.detach().clone())), "beside a copy"),
    (lambda linear: _twin(linear, lambda p: p), None),                             # another layer, the same numbers
])
def test_an_adapter_stands_beside_the_layer_itself(keep, mistake):
    class LoRA(nn.Module):
        def __init__(self, linear, rank, alpha):
            super().__init__()
            self.linear, self.scale = keep(linear).requires_grad_(False), alpha / rank
            self.down = nn.Parameter(torch.randn(rank, linear.in_features))
            self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

        def forward(self, x):
            return self.linear(x) + self.scale * (x @ self.down.T @ self.up.T)

    result = judge(judging.find("12.lora"), LoRA)
    assert (result.outcome, result.mistake) == (WRONG if mistake else RIGHT, mistake), result.message


def _twin(linear, made):
    twin = nn.Linear(linear.in_features, linear.out_features)
    twin.weight, twin.bias = made(linear.weight), made(linear.bias)
    return twin


@pytest.mark.parametrize("begin, mistake", [(torch.zeros, "zero for ever"), (torch.ones, None), (torch.randn, None)])
def test_a_new_convolution_over_frames_may_not_be_all_zero(begin, mistake):
    exercise = judging.find("07.frame_conv")
    solved = take([notebook("solutions", exercise)], exercise.target)

    class FrameConv(solved):
        def __init__(self, channels):
            super().__init__(channels)
            self.weight = nn.Parameter(begin(channels, channels, 3, 1, 1))

    result = judge(exercise, FrameConv)
    assert (result.outcome, result.mistake) == (WRONG if mistake else RIGHT, mistake), result.message


@pytest.mark.parametrize("pairs, words, says", [
    (tuple, tuple, "Right"), (tuple, list, "your words come back as lists"),
    (list, tuple, "type of the pair, is 'list'"), (tuple, iter, "should be 4 things in a list")])
def test_a_merge_returns_tuples(pairs, words, says):
    exercise = judging.find("03.merge")
    solved = take([notebook("solutions", exercise)], exercise.target)

    def merge_step(tokens, counts):
        pair, joined = solved(tokens, counts)
        return pairs(pair), words(joined) if words is iter else [words(word) for word in joined]

    merge_step.__signature__ = inspect.signature(solved)
    result = judge(exercise, merge_step)
    assert says in result.message and bool(result) == (says == "Right")


@pytest.mark.parametrize("exercise", [e for e in EXERCISES if e.kind == "explore"], ids=lambda e: e.name)
def test_an_answer_may_be_a_tensor_but_not_per_cent(exercise):
    right = exercise.oracle(**learner.task(exercise.name))
    assert judge(exercise, torch.tensor(right, dtype=torch.float64))
    assert "should be of type" in judge(exercise, f"{right:g}").message
    many = judge(exercise, 100 * right)
    assert not many and (many.mistake == "per cent") == isinstance(right, float)
    assert ("in per cent" in many.message) == isinstance(right, float)
    other = judge(exercise, 12345 * right).message                                 # nothing that anybody has foreseen
    assert f"task('{exercise.name}')" in other and f"hint('{exercise.name}')" in other


def test_the_packages_own_object_is_refused():
    from minit2v.unet import TemporalConv
    from minit2v.world import state

    assert "not yours" in judge(FUNCTION, state).message
    assert "not yours" in judge(MODULE, TemporalConv).message
    assert "not yours" in judge(MODULE, type("Mine", (TemporalConv,), {})).message


def test_a_named_mistake_may_be_infinite_or_no_number_and_matches_nothing_else():
    def reciprocal(x, times):
        return times / (x - 1)                                                      # inf where x is 1

    def root(x, times):
        return (x - 2).sqrt() * times                                               # nan where x is below 2

    wild = Exercise("01.wild", "wild", "build", "Wild", 5, double, (Mistake("inf", reciprocal, "You divide by zero."),
                    Mistake("nan", root, "You take the root of something negative.")), ("Think.",), FUNCTION.cases)
    assert judge(wild, lambda x, times: reciprocal(x, times)).mistake == "inf"
    assert judge(wild, lambda x, times: root(x, times)).mistake == "nan"
    assert judge(wild, lambda x, times: x + times).mistake is None


def test_a_hand_in_takes_along_what_it_needs_and_nothing_else(tmp_path):
    """A cell that loads a model into a name that is only an argument of the function is not run."""
    path = tmp_path / "hand_in.ipynb"
    sources = ["model = 1 / 0\nx = 1 / 0", "import math as m\nscale = 2", "def half(v):\n    return v / scale",
               "def step(model, v: m):\n    x = [half(v) for v in model]\n    return lambda: (x, m.pi, scale)"]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [source]} for source in sources]}),
                    encoding="utf-8")
    x, pi, scale = take([path], "step")([4, 6], None)()
    assert (x, scale) == ([2.0, 3.0], 2) and 3.14 < pi < 3.15


# --- in the learner's hands ---

def test_check_hint_solution_progress(monkeypatch):
    exercise = EXERCISES[0]
    right = take([notebook("solutions", exercise)], exercise.target)
    verdict = learner.check(exercise.name, exercise.mistakes[0].wrong)
    assert not verdict and exercise.mistakes[0].message in repr(verdict) and "✗" in repr(verdict)
    assert "hints left" in repr(learner.solution(exercise.name))
    shown = [learner.hint(exercise.name) for _ in range(len(exercise.hints) + 1)]
    assert shown[0].picture and shown[-1].text == shown[-2].text == exercise.hints[-1]
    assert inspect.getsource(exercise.mistakes[0].wrong) not in repr(shown)
    assert build_solutions()[exercise.name]["code"] in repr(learner.solution(exercise.name))
    verdict = learner.check(exercise.name, right)
    assert verdict and f"Right. {exercise.points} points." in repr(verdict)
    assert "<b>✓" in verdict._repr_html_()
    learner.check(exercise.name, exercise.mistakes[0].wrong)                       # a solved exercise stays solved
    assert re.search(rf"{NAMES[exercise.chapter]} +✓·", repr(learner.progress()))
    assert f"{exercise.points} of " in repr(learner.progress())
    with pytest.raises(KeyError, match=re.escape(exercise.name)):
        learner.check(exercise.name + "x", None)


def test_a_broken_progress_file_or_home_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "progress.json").write_text("{broken", encoding="utf-8")
    assert not learner.check(EXERCISES[0].name, None)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MINIT2V_HOME", str(tmp_path / "file" / "below"))
    assert not learner.check(EXERCISES[0].name, None)


def test_questions_vary_from_learner_to_learner(monkeypatch):
    exploring = [e for e in EXERCISES if e.kind == "explore" and e.options]
    assert exploring
    for exercise in exploring:
        found = set()
        for student in ("", "ada", "emmy", "sofja", "grace", "lise"):
            monkeypatch.setenv("MINIT2V_STUDENT", student)
            options = learner.task(exercise.name)
            assert learner.check(exercise.name, exercise.oracle(**options))
            found.add(repr(options))
        assert len(found) > 1
