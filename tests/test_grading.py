"""Grading: any hand-in gets its row, whatever it does to itself."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minit2v
from minit2v.course import exercise as judging
from minit2v.course import grading
from minit2v.course.learner import seed_of, task

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parent.parent
FIRST = "01_video_as_tensors.ipynb"
POINTS = sum(e.points for e in judging.exercises().values() if e.chapter == 1)
RING = "def ring(x, y, radius, thickness):\n    return ((x * x + y * y) ** 0.5 - radius).abs() - thickness / 2"
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits need a POSIX system")


def hand_in(folder: Path, *cells: str, name: str = FIRST) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    (folder / name).write_text(nbformat.writes(made), encoding="utf-8")


def graded(folder: Path, out: Path, **options) -> dict[str, dict[str, dict]]:
    grading.grade(folder, out, chapters=[1], progress=False, **options)
    found: dict[str, dict[str, dict]] = {}
    with out.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert list(row) == list(grading.COLUMNS)
            found.setdefault(row["submission"], {})[row["exercise"]] = row
    return found


def test_solution_empty_and_everything_between(tmp_path):
    folder = tmp_path / "hand-ins"
    for name, source in (("ada", "solutions"), ("bob", "exercises")):
        (folder / name).mkdir(parents=True)
        (folder / name / FIRST).write_bytes((ROOT / source / FIRST).read_bytes())
    stub = "def ring(x, y, radius, thickness):\n    raise NotImplementedError"
    hand_in(folder / "copied", "import torch", RING, stub,
            "this is not Python", "def pendulum(t, middle, reach, period):\n    return middle -")
    (folder / "nothing").mkdir()
    (folder / "torn").mkdir()
    (folder / "torn" / FIRST).write_text('{"cells": [', encoding="utf-8")
    hand_in(folder / "renamed" / "deep", RING, name="my homework.ipynb")
    hand_in(folder / "borrowed", "from minit2v.world import shape_distance as ring")
    found = graded(folder, tmp_path / "grades.csv")

    def points(name):
        return sum(int(row["points"]) for row in found[name].values())

    assert points("ada") == POINTS == sum(int(row["max_points"]) for row in found["ada"].values())
    assert points("bob") == points("nothing") == points("torn") == points("borrowed") == 0
    assert {row["outcome"] for row in found["bob"].values()} == {"not attempted"}
    assert points("copied") == points("renamed") == judging.find("01.ring").points
    assert "not valid Python" in found["copied"]["01.pendulum"]["message"]
    assert "no notebook 01_*" in found["nothing"]["01.ring"]["message"]
    assert "not a notebook that can be read" in found["torn"]["01.ring"]["message"]
    assert "not yours" in found["borrowed"]["01.ring"]["message"]
    page = (tmp_path / "grades_reports" / "copied.html").read_text(encoding="utf-8")
    assert f"2 of {POINTS} points" in page and "not valid Python" in page


HOSTILE = {
    "loop": ("while True:\n        pass", "no result after"),
    "exit": ("import sys; sys.exit(0)", "exit()"),
    "hard_exit": ("import os; os._exit(3)", "ended its process"),
    "memory": ("return [bytes(2 ** 20) for _ in range(10 ** 6)]", "MemoryError"),
    "prints": ("for _ in range(100):\n        print('x' * 2 ** 20)\n    return x", "File too large"),
    "fork": ("import os\n    while os.fork() == 0:\n        import time; time.sleep(60)\n    return x",
             "the first wrong one"),
    "writes": ("open('here.txt', 'w').write('x'); return x", "the first wrong one"),
}


@posix
def test_what_a_hand_in_does_to_itself_costs_one_exercise(tmp_path):
    folder = tmp_path / "hand-ins"
    for name, (body, _) in HOSTILE.items():
        hand_in(folder / name, f"def ring(x, y, radius, thickness):\n    {body}",
                "import math, torch\ndef pendulum(t, middle, reach, period):\n"
                "    return middle - reach * torch.cos(2 * math.pi * t / period)")
    found = graded(folder, tmp_path / "grades.csv", seconds=20, memory=1.0, jobs=2)
    for name, (_, says) in HOSTILE.items():
        assert found[name]["01.ring"]["points"] == "0" and says in found[name]["01.ring"]["message"], name
        assert found[name]["01.pendulum"]["outcome"] == "right", name
    assert not list(folder.rglob("here.txt")) and not Path("here.txt").exists()


def test_it_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    folder = tmp_path / "hand-ins"
    hand_in(folder / "ada", RING)
    first = graded(folder, tmp_path / "grades.csv")
    monkeypatch.setattr(grading, "_Run", None)                              # nothing is judged a second time
    assert graded(folder, tmp_path / "grades.csv") == first
    monkeypatch.undo()
    hand_in(folder / "ada", RING.replace(" / 2", ""))                       # but what has changed is
    assert "twice as thick" in graded(folder, tmp_path / "grades.csv")["ada"]["01.ring"]["message"]


def test_another_version_of_what_judges_judges_anew(tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(grading.PACKAGE / "course", package, ignore=shutil.ignore_patterns("__pycache__"))
    before = grading.fingerprint(package)
    assert before == grading.fingerprint(package) != grading.fingerprint()
    for name in ("exercises/c01.py", "exercise.py", "handin.py"):
        (package / name).write_text((package / name).read_text(encoding="utf-8") + "# and more\n", encoding="utf-8")
        after = grading.fingerprint(package)
        assert after != before
        before = after

    class Counted(grading._Run):
        begun = 0

        def __init__(self, *arguments):
            Counted.begun += 1
            super().__init__(*arguments)

    monkeypatch.setattr(grading, "_Run", Counted)
    hand_in(tmp_path / "hand-ins" / "ada", RING)
    first = graded(tmp_path / "hand-ins", tmp_path / "grades.csv")
    assert graded(tmp_path / "hand-ins", tmp_path / "grades.csv") == first and Counted.begun == 5
    monkeypatch.setattr(minit2v, "__version__", "9.9.9")
    assert graded(tmp_path / "hand-ins", tmp_path / "grades.csv") == first and Counted.begun == 10


@posix
def test_each_process_begins_with_everything_imported(tmp_path):
    """In the process that a hand-in gets, before it has done anything: torch, and the exercises of all chapters."""
    hand_in(tmp_path / "hand-ins" / "ada", RING)
    script = tmp_path / "begin.py"
    script.write_text("""
import multiprocessing
from pathlib import Path

if __name__ == "__main__":
    from minit2v.course import grading

    grading.grade(Path("hand-ins"), Path("grades.csv"), chapters=[1], progress=False)
    again = multiprocessing.get_context("forkserver").Process(             # out of the same server as the hand-in's
        target=exec, args=("import sys; open('found', 'w').write(' '.join(sys.modules))",))
    again.start()
    again.join()
""", encoding="utf-8")
    subprocess.run([sys.executable, script], check=True, timeout=120, cwd=tmp_path,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})
    found = (tmp_path / "found").read_text(encoding="utf-8").split()
    assert {"torch", *(f"minit2v.course.exercises.c{number:02d}" for number in range(1, 13))} <= set(found)


def test_questions_vary_with_the_name_of_the_folder(tmp_path, monkeypatch):
    for name in ("ada", "bob"):
        monkeypatch.setenv("MINIT2V_STUDENT", name)
        answer = judging.find("01.bytes").oracle(**task("01.bytes"))
        hand_in(tmp_path / "hand-ins" / name, f"answer_bytes = {answer}")
        hand_in(tmp_path / "hand-ins" / f"{name}_asks", "import math\nfrom minit2v.course import task",
                "answer_bytes = math.prod(task('01.bytes').values()) * 12")
    monkeypatch.delenv("MINIT2V_STUDENT")
    assert seed_of("ada") != seed_of("bob") and seed_of("") == 0
    found = graded(tmp_path / "hand-ins", tmp_path / "grades.csv", vary=True)
    assert {name: rows["01.bytes"]["outcome"] for name, rows in found.items()} == dict.fromkeys(found, "right")


@pytest.mark.parametrize("make, says", [(lambda folder: None, "is not a folder"), (Path.mkdir, "holds no folders")])
def test_nothing_to_grade(tmp_path, make, says):
    make(tmp_path / "hand-ins")
    with pytest.raises((NotADirectoryError, ValueError), match=says):
        grading.grade(tmp_path / "hand-ins", tmp_path / "grades.csv")


def test_the_same_on_the_command_line(tmp_path, capsys, monkeypatch):
    from minit2v.cli import main

    monkeypatch.setenv("MINIT2V_HOME", str(tmp_path / "home"))
    hand_in(tmp_path / "hand-ins" / "ada", RING)
    assert main(["grade", str(tmp_path / "hand-ins"), "-o", str(tmp_path / "g.csv"), "--chapters", "1"]) == 0
    assert f"ada: 2 of {POINTS} points" in capsys.readouterr().out
    notebook = str(tmp_path / "hand-ins" / "ada" / FIRST)
    assert main(["check", "1", notebook, "--json"]) == 1
    assert [row["outcome"] for row in json.loads(capsys.readouterr().out)][:2] == ["right", "not attempted"]
    assert main(["check", "1", str(ROOT / "solutions" / FIRST)]) == 0
    assert main(["progress"]) == 0 and "✓✓✓✓✓" in capsys.readouterr().out
    assert main(["hint", "01.ring"]) == 0 and main(["solution", "01.ring"]) == 0
    assert "abs()" in capsys.readouterr().out
    assert main(["check", "99"]) == 1 and main(["check", "1", str(tmp_path / "none.ipynb")]) == 1
    assert main(["hint", "01.rong"]) == 1
    assert "did you mean" in capsys.readouterr().err
