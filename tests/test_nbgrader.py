"""The exercises in nbgrader itself: assignment, automatic grades and feedback, and the points of `minit2v grade`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minit2v.course import grading

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbgrader", reason='nbgrader is not installed: pip install -e ".[test]"')
from minit2v.course import build, nbgrader  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [path.stem for path in build.sources(ROOT) if path.parent.name == "solutions"][:2]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    assert nbgrader.export(ROOT, folder, CHAPTERS) == CHAPTERS
    return folder


def run(course: Path, verb: str, chapter: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])            # it calls alembic
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MINIT2V_HOME": str(course / "home"),
                                "PATH": path}
    done = subprocess.run([sys.executable, "-m", "nbgrader", verb, chapter], cwd=course, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nbgrader_gives_the_points_of_minit2v_grade(course, tmp_path):
    from nbgrader.api import Gradebook

    for chapter in CHAPTERS:
        for verb in ("generate_assignment", "autograde", "generate_feedback"):
            run(course, verb, chapter)
        release = (course / "release" / chapter / f"{chapter}.ipynb").read_text(encoding="utf-8")
        assert "raise NotImplementedError" in release and build.BEGIN not in release
    ours = grading.grade(course / "submitted", tmp_path / "grades.csv", chapters=[int(c[:2]) for c in CHAPTERS],
                         progress=False)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        theirs = {(student.id, grade.name): (grade.auto_score, grade.max_score)
                  for student in book.students for chapter in CHAPTERS
                  for notebook in book.find_submission(chapter, student.id).notebooks for grade in notebook.grades}
    assert {student for student, _ in theirs} == {"good", "middling", "poor"}
    assert theirs == {(row["submission"], nbgrader._check_id(row["exercise"])): (row["points"], row["max_points"])
                      for row in ours}
    totals = {name: sum(row["points"] for row in ours if row["submission"] == name) for name in
              ("good", "middling", "poor")}
    assert totals["good"] > totals["middling"] > totals["poor"] == 0
    for student in totals:
        assert list((course / "feedback" / student / CHAPTERS[0]).glob("*.html"))


def test_no_solution_is_handed_out(course):
    made = nbformat.read(course / "submitted" / "poor" / CHAPTERS[0] / f"{CHAPTERS[0]}.ipynb", as_version=4)
    assert not any(build.BEGIN in cell.source for cell in made.cells)
    assert sum("raise NotImplementedError" in cell.source for cell in made.cells) == 2       # what "poor" left alone
