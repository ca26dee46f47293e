"""Exports the exercises as an nbgrader course: `python -m minit2v.course.nbgrader OUT`, or `make nbgrader`.

    OUT/nbgrader_config.py
    OUT/source/NN_slug/NN_slug.ipynb            what `nbgrader generate_assignment NN_slug` starts from
    OUT/submitted/NAME/NN_slug/NN_slug.ipynb    the sample hand-ins of exercises/samples, to try it with

In the source a solution stands between nbgrader's own marks, which are also ours. A check becomes a graded, locked
cell that asserts it, worth the points of the exercise; so nbgrader gives the same points as `minit2v grade`.
"""

import argparse
import copy
import json
import re
import sys
from pathlib import Path

from minit2v.course import build
from minit2v.course.exercise import exercises
from minit2v.files import write_whole

CHECK = re.compile(r'^check\("([\w.]+)", (\w+)\)\n?', re.M)
CONFIG = '''\
c = get_config()
c.CourseDirectory.course_id = "minit2v"
c.ExecutePreprocessor.timeout = 120                     # seconds a cell
c.ExecutePreprocessor.kernel_name = "python3"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError(\\"your turn\\")"}
'''


def assignment(source: Path, root: Path):
    """One chapter's exercises with nbgrader's metadata, as a notebook with solutions."""
    import nbformat

    solved = build.build(source, root)[source.with_suffix(".ipynb")]
    cells = []
    for cell in solved.cells:
        if "solution" in cell.metadata.get("tags", []):                   # nbgrader would hand the explanation out
            continue
        cell = copy.deepcopy(cell)
        cell.metadata = {}
        checked = CHECK.search(cell.source) if cell.cell_type == "code" else None
        if checked:
            cell.source = CHECK.sub("", cell.source).strip()
        if cell.cell_type == "code" and build.BEGIN in cell.source:
            cell.metadata["nbgrader"] = _metadata(f"code-{len(cells)}", solution=True)
        if cell.source.strip():
            cells.append(cell)
        if checked:
            name, target = checked.groups()
            cells.append(nbformat.v4.new_code_cell(
                f'verdict = check("{name}", {target})\nassert verdict, verdict', id=_check_id(name),
                metadata={"nbgrader": _metadata(_check_id(name), grade=True, points=exercises()[name].points)}))
    solved.cells = cells
    return solved


def _check_id(name: str) -> str:
    return f"check-{name.replace('.', '-')}"                              # a point is not allowed in it


def _metadata(name: str, solution: bool = False, grade: bool = False, points: int | None = None) -> dict:
    found = {"schema_version": 3, "cell_type": "code", "task": False, "grade_id": name, "solution": solution,
             "grade": grade, "locked": grade}
    return found | ({"points": points} if grade else {})


def hand_in(notebook, answers: dict[str, str]):
    """An assignment as a student hands it in: the code of `answers` by exercise, "" for a stub left as it was."""
    made, by_id = copy.deepcopy(notebook), {_check_id(name): code for name, code in answers.items()}
    for cell, after in zip(made.cells, [*made.cells[1:], None]):
        if build.BEGIN in cell.source:                                     # its check comes next, if it has one
            check = after.metadata.get("nbgrader", {}).get("grade_id") if after else None
            cell.source = by_id.get(check) or build.stub(cell.source)
    return made


def samples(root: Path) -> dict[str, dict[str, str]]:
    """The sample hand-ins: {"good": {exercise: code}, ...}; code that is "solution" stands for the solution."""
    known = json.loads(build.solved(root))
    found = {}
    for path in sorted((root / "exercises" / "samples").glob("*.json")):
        answers = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = {name: known[name]["code"] if code == "solution" else code for name, code in answers.items()}
    return found


def export(root: Path, out: Path, names: list[str] | None = None) -> list[str]:
    """Writes the course into `out` and returns the names of its assignments."""
    import nbformat

    written = []
    for source in (path for path in build.sources(root) if path.parent.name == "solutions"):
        if names and not any(source.stem.startswith(name) for name in names):
            continue
        made = assignment(source, root)
        places = {out / "source" / source.stem: made}
        for student, answers in samples(root).items():
            if any(name.startswith(source.stem[:2]) for name in answers):
                places[out / "submitted" / student / source.stem] = hand_in(made, answers)
        for folder, notebook in places.items():
            folder.mkdir(parents=True, exist_ok=True)
            with write_whole(folder / f"{source.stem}.ipynb") as part:
                part.write_text(nbformat.writes(nbformat.from_dict(notebook)), encoding="utf-8")
        written.append(source.stem)
    with write_whole(out / "nbgrader_config.py") as part:
        part.write_text(CONFIG, encoding="utf-8")
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minit2v.course.nbgrader", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the course to make")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the repository")
    args = parser.parse_args(arguments)
    for name in export(args.root, args.out):
        print(f"{args.out / 'source' / name}: nbgrader generate_assignment {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
