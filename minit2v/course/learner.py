"""What a learner calls in a notebook: `task`, `check`, `hint`, `solution`, `progress`.

Nothing leaves this machine. What was solved, and how many hints were taken, stands in one file in the learner's home
folder (or where MINIT2V_HOME says). A notebook is never written to.
"""

import html
import json
import os
import random
import zlib
from pathlib import Path
from typing import Any

from minit2v.course import exercise as judging
from minit2v.course.exercise import ERROR, OPEN, RIGHT, Result, find
from minit2v.course.syllabus import CHAPTERS
from minit2v.files import write_whole

SIGNS = {RIGHT: "✓", OPEN: "·", ERROR: "!"}
COLOURS = {RIGHT: "#009E73", OPEN: "#777777", ERROR: "#E69F00"}                 # wrong: vermilion
SOLUTIONS = Path(__file__).with_name("solutions.json")


class Shown:
    """A message for a notebook and for a terminal, with an optional picture."""

    def __init__(self, text: str, title: str = "", sign: str = "", colour: str = "#0072B2", picture: Any = None,
                 code: str = ""):
        self.text, self.title, self.sign, self.colour = text, title, sign, colour
        self.picture, self.code = picture, code

    def __repr__(self) -> str:
        head = " ".join(part for part in (self.sign, self.title) if part)
        parts = [f"{head}: {self.text}" if head else self.text, self.code, repr(self.picture) if self.picture else ""]
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        code = f"<pre>{html.escape(self.code)}</pre>" if self.code else ""
        return (f'<div style="border-left: 4px solid {self.colour}; padding: 2px 12px; max-width: 60em">'
                f"<b>{html.escape(' '.join((self.sign, self.title)).strip())}</b><br>"
                f'<span style="white-space: pre-wrap">{html.escape(self.text)}</span>{code}'
                f"{self.picture._repr_html_() if self.picture else ''}</div>")


class Verdict(Shown):
    """The result of a check, as it is shown. True when it is right."""

    def __init__(self, result: Result):
        super().__init__(result.message, f"{result.exercise.name} {result.outcome}", SIGNS.get(result.outcome, "✗"),
                         COLOURS.get(result.outcome, "#D55E00"), result.picture)
        self.result = result

    def __bool__(self) -> bool:
        return bool(self.result)


def seed_of(student: str) -> int:
    """The number that varies the questions from learner to learner; 0 without a name."""
    return zlib.crc32(student.encode()) if student else 0


def learner_seed() -> int:
    """The seed of whoever MINIT2V_STUDENT names; where a course varies its questions, each student sets it."""
    return seed_of(os.environ.get("MINIT2V_STUDENT", ""))


def task(name: str) -> dict[str, Any]:
    """What the question of an explore exercise depends on, for this learner. Raises KeyError for an unknown name."""
    exercise = find(name)
    return exercise.options(random.Random(f"{name} {learner_seed()}")) if exercise.options else {}


def check(name: str, handed_in: Any) -> Verdict:
    """Judges a function, a class or an answer, and says which mistake was made. See exercise.judge for the stages.

    Raises KeyError for an unknown exercise. Whatever the hand-in does wrong is in the message.
    """
    exercise = find(name)
    result = judging.judge(exercise, handed_in, learner_seed())
    if result and exercise.celebrate:
        result.picture = exercise.celebrate(handed_in)
    if result:
        result.message += f" {exercise.points} point{'s' * (exercise.points > 1)}."
    note(name, outcome=result.outcome)
    return Verdict(result)


def hint(name: str) -> Shown:
    """The next hint of an exercise: first a picture, then words, each saying more."""
    exercise = find(name)
    taken = min(_read().get(name, {}).get("hints", 0), len(exercise.hints) - 1)
    note(name, hints=taken + 1)
    found = exercise.hints[taken]
    title = f"{name}, hint {taken + 1} of {len(exercise.hints)}"
    if callable(found):
        return Shown("First, a picture.", title, picture=found())
    return Shown(found, title)


def solution(name: str, now: bool = False) -> Shown:
    """The solution, with the reason; after the hints, unless `now`."""
    exercise = find(name)
    taken = _read().get(name, {}).get("hints", 0)
    if taken < len(exercise.hints) and not now and _read().get(name, {}).get("outcome") != RIGHT:
        return Shown(f"There are {len(exercise.hints) - taken} hints left: hint({name!r}). "
                     f"If you have thought enough: solution({name!r}, now=True).", name)
    known = json.loads(SOLUTIONS.read_text(encoding="utf-8")) if SOLUTIONS.exists() else {}
    if name not in known:
        return Shown(f"The solution of {name} is not in this copy of the package.", name)
    return Shown(known[name]["why"], f"{name}, solution", code=known[name]["code"])


def progress() -> Shown:
    """What is solved so far, chapter by chapter."""
    done, lines, points, total = _read(), [], 0, 0
    for chapter in CHAPTERS:
        mine = [e for e in judging.exercises().values() if e.chapter == chapter.number]
        signs = "".join(SIGNS.get(done.get(e.name, {}).get("outcome", OPEN), "✗") for e in mine)
        points += sum(e.points for e in mine if done.get(e.name, {}).get("outcome") == RIGHT)
        total += sum(e.points for e in mine)
        if mine:
            lines.append(f"{chapter.name:24} {signs}")
    return Shown("\n" + "\n".join(lines) + f"\n{points} of {total} points", "Progress")


def _file() -> Path:
    return Path(os.environ.get("MINIT2V_HOME") or Path.home() / ".minit2v") / "progress.json"


def _read() -> dict[str, dict]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):                        # none yet, or not ours to read: begin anew
        return {}
    return found if isinstance(found, dict) else {}


def note(name: str, **what) -> None:
    """Writes down an outcome or a hint. A solved exercise stays solved. A home that cannot be written to is let be."""
    found = _read()
    if found.get(name, {}).get("outcome") == RIGHT:
        what.pop("outcome", None)
    found[name] = {**found.get(name, {}), **what}
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with write_whole(_file()) as part:
            part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except OSError:
        pass
