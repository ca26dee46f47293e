"""`minit2v grade FOLDER -o grades.csv`: a hundred hand-ins, each exercise in a process of its own.

FOLDER holds one folder for each hand-in, with notebooks named as in exercises/ (01_video_as_tensors.ipynb). Each
exercise runs in a fresh process with limits on time, memory and output, and a temporary folder to write in. What a
process does to itself (an endless loop, exit(), 100 MB of prints, a fork) costs that one exercise.

What this does NOT protect from: code that means harm. A hand-in runs with your rights: it can read your files and use
your network. Grade what you do not trust in a container without network (exercises/TEACHING.md says how).
"""

import contextlib
import csv
import hashlib
import html
import io
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

import minit2v
from minit2v.course import exercise as judging
from minit2v.course import exercises as modules
from minit2v.course.exercise import ERROR, OPEN, RIGHT, Exercise
from minit2v.course.handin import HandInError, take
from minit2v.course.learner import learner_seed
from minit2v.files import write_whole

COLUMNS = ("submission", "exercise", "points", "max_points", "outcome", "message")
PACKAGE = Path(minit2v.__file__).parent
# What every exercise's process finds imported already: this module with torch, and the exercises of all chapters.
PRELOAD = [__name__, *(f"{modules.__name__}.{found.name}" for found in pkgutil.iter_modules(modules.__path__))]
OUTPUT = 10 * 2 ** 20                            # bytes that one exercise may write into any one file, its prints too


def grade(folder: Path, out: Path, seconds: float = 30.0, memory: float = 4.0, jobs: int = 2, vary: bool = False,
          chapters: list[int] | None = None, progress: bool = True) -> list[dict]:
    """Grades every hand-in of `folder`, writes `out` (CSV) and out's "_reports" folder (HTML), and returns the rows.

    seconds, memory (GB): limits of one exercise. vary: questions vary with the name of the hand-in's folder.
    Killed, it goes on by the same call: what has not changed since is not judged again (see out's "_parts" folder),
    be it the hand-in or the package that judges it.
    Raises NotADirectoryError, and ValueError if there is nothing in the folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; it should hold one folder for each hand-in")
    submissions = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not submissions:
        raise ValueError(f"{folder} holds no folders; it should hold one for each hand-in, with its notebooks in it")
    asked, judged_by = [e for e in judging.exercises().values() if not chapters or e.chapter in chapters], fingerprint()
    parts, rows = out.with_name(out.stem + "_parts"), {}
    parts.mkdir(parents=True, exist_ok=True)
    todo = []
    for submission in submissions:
        student = submission.name if vary else ""
        books = {chapter: notebooks_of(submission, chapter) for chapter in {e.chapter for e in asked}}
        contents = {chapter: [path.read_bytes() for path in paths] for chapter, paths in books.items()}
        for exercise in asked:
            notebooks = books[exercise.chapter]
            key = hashlib.sha256(repr((judged_by, submission.name, exercise.name, student, seconds, memory,
                                       contents[exercise.chapter])).encode()).hexdigest()[:24]
            part = parts / f"{key}.json"
            if not notebooks:
                rows[submission.name, exercise.name] = {"submission": submission.name, **row(
                    exercise, OPEN, f"There is no notebook {exercise.chapter:02d}_*.ipynb in this hand-in.")}
            elif part.exists():
                rows[submission.name, exercise.name] = json.loads(part.read_text(encoding="utf-8"))
            else:
                todo.append((submission, exercise, notebooks, student, part))
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(PRELOAD)                           # imported once, not a thousand times
    with tqdm(total=len(todo), desc="grading", unit="exercise", disable=not (progress and todo)) as bar:
        running: list[_Run] = []
        while todo or running:
            while todo and len(running) < jobs:
                running.append(_Run(context, *todo.pop(0), seconds, memory))
            time.sleep(0.01)
            for run in [run for run in running if run.over()]:
                running.remove(run)
                found = {"submission": run.submission.name, **row(run.exercise, *run.result())}
                rows[run.submission.name, run.exercise.name] = found
                with write_whole(run.part) as file:
                    file.write_text(json.dumps(found), encoding="utf-8")
                bar.update()
    ordered = [rows[s.name, e.name] for s in submissions for e in asked]
    _write_csv(out, ordered)
    for submission in submissions:
        _write_report(out.with_name(out.stem + "_reports"), submission.name,
                      [row for row in ordered if row["submission"] == submission.name])
    return ordered


def fingerprint(package: Path = PACKAGE) -> str:
    """Of all that judges: the package's version and sources, and torch's version. Another one: judge anew."""
    found = hashlib.sha256(f"{minit2v.__version__} {torch.__version__}".encode())
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def notebooks_of(submission: Path, chapter: int) -> list[Path]:
    """The notebooks of a chapter in a hand-in, wherever in its folder; if none bears the number, those without any."""
    every = sorted(path for path in submission.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return ([path for path in every if path.name.startswith(f"{chapter:02d}_")]
            or [path for path in every if not path.name[:2].isdigit()])


def judge_notebooks(notebooks: list[Path], exercise: Exercise) -> tuple[str, str]:
    """(outcome, message) of one exercise in some notebooks, in this process, for whoever MINIT2V_STUDENT names."""
    try:
        result = judging.judge(exercise, take(notebooks, exercise.target), learner_seed())
    except HandInError as error:
        return ERROR, str(error)
    except SystemExit:
        return ERROR, "the hand-in called exit()"
    return result.outcome, result.message


class _Run:
    """One exercise of one hand-in in its own process."""

    def __init__(self, context, submission: Path, exercise: Exercise, notebooks: list[Path], student: str,
                 part: Path, seconds: float, memory: float):
        self.submission, self.exercise, self.part, self.seconds = submission, exercise, part, seconds
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, daemon=True, args=(
            theirs, self.folder.name, [path.resolve() for path in notebooks], exercise.name, student, memory))
        self.process.start()
        theirs.close()
        self.started, self.found = time.monotonic(), None

    def over(self) -> bool:
        """Whether there is an answer, the process has ended, or its time is up."""
        if self.answer.poll():
            try:
                self.found = tuple(self.answer.recv())
            except (EOFError, OSError):
                self.found = (ERROR, "the hand-in ended its process")
        elif not self.process.is_alive():
            self.found = (ERROR, f"the hand-in ended its process (exit status {self.process.exitcode})")
        elif time.monotonic() - self.started > self.seconds:
            self.found = (ERROR, f"no result after {self.seconds:g} s: an endless loop, or far too slow")
        return self.found is not None

    def result(self) -> tuple[str, str]:
        """Ends the process with everything it has started, and returns (outcome, message)."""
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.answer.close()
        self.folder.cleanup()
        return self.found


def _work(answer, folder: str, notebooks: list[Path], name: str, student: str, memory: float) -> None:
    """In the new process: limits first, then the exercise."""
    os.chdir(folder)
    os.environ["MINIT2V_STUDENT"] = student                               # decides what `task` asks, and what is right
    _limit(memory)
    printed = os.open("output.txt", os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    torch.set_num_threads(1)
    try:
        answer.send(judge_notebooks(notebooks, judging.find(name)))
    except MemoryError:
        answer.send((ERROR, f"the hand-in needed more than {memory:g} GB"))


def _limit(memory: float) -> None:
    """Own process group, no more than `memory` GB beyond what is used now, no file above OUTPUT. Not on Windows."""
    if not hasattr(os, "setsid"):
        return
    import resource

    os.setsid()
    with open("/proc/self/statm", encoding="ascii") if Path("/proc/self/statm").exists() else io.StringIO("0") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):                        # a system may refuse; then without
        resource.setrlimit(resource.RLIMIT_AS, (used + int(memory * 2 ** 30),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)                         # then writing raises OSError instead


def row(exercise: Exercise, outcome: str, message: str) -> dict:
    """What a table says of one exercise."""
    return {"exercise": exercise.name, "points": exercise.points if outcome == RIGHT else 0,
            "max_points": exercise.points, "outcome": outcome, "message": message}


def _write_csv(out: Path, rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with write_whole(out) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def _write_report(folder: Path, name: str, rows: list[dict]) -> None:
    """One page for one student: what was right, and what is said about the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    total, most = sum(row["points"] for row in rows), sum(row["max_points"] for row in rows)
    lines = [f"<tr><td>{row['exercise']}</td><td>{row['points']} / {row['max_points']}</td><td>{row['outcome']}</td>"
             f'<td style="white-space: pre-wrap">{html.escape(row["message"])}</td></tr>' for row in rows]
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
            "<style>body{font-family:sans-serif;max-width:70em;margin:2em auto} "
            "td,th{padding:.3em .8em;text-align:left;vertical-align:top;border-bottom:1px solid #ccc}</style>"
            f"<h1>{html.escape(name)}</h1><p>{total} of {most} points</p><table><tr><th>exercise</th><th>points</th>"
            f"<th>outcome</th><th>what the check says</th></tr>{''.join(lines)}</table></html>")
    with write_whole(folder / f"{name}.html") as part:
        part.write_text(page, encoding="utf-8")


def main_grade(args) -> int:
    """`minit2v grade`."""
    out = Path(args.output)
    rows = grade(Path(args.folder), out, args.seconds, args.memory, args.jobs, args.vary, args.chapters)
    names = sorted({row["submission"] for row in rows})
    for name in names:
        mine = [row for row in rows if row["submission"] == name]
        print(f"{name}: {sum(row['points'] for row in mine)} of {sum(row['max_points'] for row in mine)} points")
    print(f"{out}, and a page for each hand-in in {out.with_name(out.stem + '_reports')}")
    return 0
