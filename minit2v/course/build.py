"""Builds the notebooks: `python -m minit2v.course.build`, or `make notebooks`.

What people edit is text, `notebooks/NN_slug.py` and `solutions/NN_slug.py`, in jupytext's percent format: `# %%`
opens a cell of code, `# %% [markdown]` one of prose. Out of it come

    notebooks/NN_slug.ipynb   the chapter, executed
    solutions/NN_slug.ipynb   the exercises solved, executed
    exercises/NN_slug.ipynb   the same with the solutions cut out
    notebooks/README.md       the map, the notation and the glossary (from syllabus.py)
    minit2v/course/solutions.json   what `solution(name)` shows

On the way, a cell that holds nothing but `# from minit2v.unet import TemporalConv` receives the package's own
source; the second cell becomes the set-up; everything that would differ from one build to the next is taken out.
A part of a solution between `### BEGIN SOLUTION` and `### END SOLUTION` becomes, in the exercise, a line that
raises NotImplementedError; that error is stored and checked, so a solution that leaks in is found.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import re
import sys
import tempfile
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

from minit2v.course import syllabus
from minit2v.files import write_whole

CHECKED = "nbval-check-output"                      # nbval compares the output of cells with this tag
STUB_TAGS = ["raises-exception", CHECKED]
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
QUOTE = re.compile(r"# from (minit2v[\w.]*) import ([\w.]+)")
SOLVED = Path("minit2v") / "course" / "solutions.json"
SECONDS_A_CELL = 240

SETUP = '''\
# Set-up, made by the build. Where minit2v is installed it only prints versions. On Colab it installs it, and keeps the
# torch and numpy that are there. It never installs anything elsewhere.
import importlib.metadata as packages
import importlib.util
import subprocess
import sys
import tempfile

if importlib.util.find_spec("minit2v") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError("minit2v is not installed here; in the repository, run: pip install -e .[course]")
    kept = [f"{{name}}=={{packages.version(name)}}" for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{{folder}}/kept.txt", "w") as file:
            file.write("\\n".join(kept))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--constraint", file.name,
                        "{address}"], check=True)
    importlib.invalidate_caches()

from minit2v.course import versions

print(versions())'''


def sources(root: Path) -> list[Path]:
    """The text files that notebooks are built from, in order."""
    return [path for folder in ("notebooks", "solutions") for path in sorted((root / folder).glob("[0-9][0-9]_*.py"))]


def build(source: Path, root: Path) -> dict:
    """What one source becomes, before it is executed: {path of the notebook: notebook}."""
    import jupytext

    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        raise ValueError(f"{source.name} must open with a markdown cell, its title")
    for cell in notebook.cells:
        cell.metadata = {"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {}
        if quoted := QUOTE.fullmatch(cell.source.strip()):
            cell.source = f"{cell.source.strip()}\n\n{quote(*quoted.groups())}"
    setup = jupytext.reads("# %%\n" + SETUP.format(address=address(root)), fmt="py:percent").cells
    notebook.cells[1:1] = setup
    result = {source.with_suffix(".ipynb"): tidy(notebook)}
    if source.parent.name == "solutions":
        result[root / "exercises" / f"{source.stem}.ipynb"] = tidy(cut(notebook))
    return result


def address(root: Path) -> str:
    """What pip installs the package from: the repository that pyproject.toml names, or the copy around the notebook."""
    project = root / "pyproject.toml"
    named = re.search(r'^Repository = "(.+)"', project.read_text(encoding="utf-8"), re.M) if project.exists() else None
    return f"git+{named.group(1)}" if named else ".."


def quote(module: str, name: str) -> str:
    """The source of a function, a class, or (dotted) a method, as it stands in the package today, dedented."""
    path = Path(find_spec(module).origin)
    text = path.read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        found = [n for n in node.body if getattr(n, "name", None) == part]
        if not found:
            raise ValueError(f"{module} has no function or class {name}; a quoted cell names one")
        node = found[0]
    first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1:node.end_lineno]))


def cut(notebook):
    """The exercise: a copy in which each solution is a stub, and prose tagged "solution" is left out.

    Each cell with a stub must itself run into it.
    """
    exercise = copy.deepcopy(notebook)
    exercise.cells = [cell for cell in exercise.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in exercise.cells:
        if cell.cell_type == "code" and (BEGIN in cell.source or END in cell.source):
            cell.source = stub(cell.source)
            cell.metadata = {"tags": STUB_TAGS}
    return exercise


def stub(source: str) -> str:
    kept, inside, names = [], False, []
    for line in source.splitlines():
        mark, indent = line.strip(), len(line) - len(line.lstrip())
        if mark == BEGIN and not inside:
            owner = ["this cell", *(name for name, depth in names if depth < indent)][-1]
            kept.append(f'{" " * indent}raise NotImplementedError("{owner}: your turn")')
            inside = True
        elif mark == END and inside:
            inside = False
        elif BEGIN in line or END in line:
            raise ValueError(f"{BEGIN} and {END} stand alone on their lines, in turn; see {line!r}")
        elif not inside:
            if opened := re.match(r"\s*(?:def|class) (\w+)", line):
                names = [(name, depth) for name, depth in names if depth < indent] + [(opened.group(1), indent)]
            kept.append(line)
    if inside:
        raise ValueError(f"{BEGIN} without {END} in the cell that starts {source.splitlines()[0]!r}")
    return "\n".join(kept)


def solved(root: Path) -> str:
    """What `solution(name)` shows, as JSON: of each exercise the code between the marks, and the prose after it.

    A solution belongs to the next exercise that is checked; its prose is the cell tagged "solution" after that.
    """
    import jupytext

    found, code, name = {}, "", None
    for source in (path for path in sources(root) if path.parent.name == "solutions"):
        for cell in jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells:
            if BEGIN in cell.source:
                code = "\n".join(line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END))
            if checked := re.search(r'^check\("([\w.]+)"', cell.source, re.M):
                name, code = checked.group(1), re.sub(r"^check\(.*\n?", "", code, flags=re.M).strip()
                found[name] = {"code": code, "why": ""}
            if name and "solution" in cell.metadata.get("tags", []):
                found[name]["why"] = cell.source
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def tidy(notebook):
    """Takes out what differs from build to build: metadata, paths in tracebacks, what goes to stderr, cell names."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = set()
    for cell in notebook.cells:
        name, n = hashlib.sha256((cell.cell_type + cell.source).encode()).hexdigest()[:8], 1
        while f"{name}-{n}" in seen:
            n += 1
        cell.id = f"{name}-{n}"
        seen.add(cell.id)
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = _tidy_outputs(cell.outputs)
    return notebook


def _tidy_outputs(outputs: list) -> list:
    kept = []
    for output in outputs:
        dead = output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # without its kernel;
        if (dead and "text/html" not in output.data) or output.get("name") == "stderr":      # widgets.py adds a picture
            continue
        if output.output_type == "error":                                                    # paths, colours
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text                                                     # sent in two parts
            continue
        kept.append(output)
    return kept


def execute(notebook, folder: Path):
    """Runs a notebook from its folder in a fresh kernel, with this very package. Stubs must raise, nothing else may."""
    from nbclient import NotebookClient

    here = str(syllabus.PACKAGE.parent)                                  # first, whatever else is installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
    with tempfile.TemporaryDirectory() as home:                          # a build solves no exercise for its author
        NotebookClient(notebook, kernel_name="python3", timeout=SECONDS_A_CELL, record_timing=False, resources={
            "metadata": {"path": str(folder)}}).execute(env=environment | {"MINIT2V_HOME": home})
    for cell in notebook.cells:
        if cell.cell_type == "code" and "raises-exception" in cell.metadata.get("tags", []):
            if [output.get("ename") for output in cell.outputs[-1:]] != ["NotImplementedError"]:
                raise ValueError("a cell with a stub must run into it: let its last line call what it defines.\n"
                                 + cell.source)
    return tidy(notebook)


def write(notebook, path: Path) -> None:
    """As the notebook format wants it, under another name first: a build that is killed leaves the old one whole."""
    import nbformat

    with write_whole(path) as temporary:
        temporary.write_text(nbformat.writes(nbformat.from_dict(notebook)) + "\n", encoding="utf-8")


def outdated(root: Path, names: list[str] | None = None) -> list[str]:
    """The built files that are not what their source would become today, or that have no source."""
    expected = {path: nb for source in _chosen(root, names) for path, nb in build(source, root).items()}
    old = [path for path, notebook in expected.items() if _contents(path) != _cells(notebook)]
    if not names:
        there = {path for folder in ("notebooks", "solutions", "exercises")
                 for path in (root / folder).glob("*.ipynb")}
        old += there - set(expected)
        page = root / "notebooks" / "README.md"
        if not page.exists() or page.read_text(encoding="utf-8") != _readme(root):
            old.append(page)
        known = root / SOLVED
        if (known.read_text(encoding="utf-8") if known.exists() else "{}\n") != solved(root):
            old.append(known)
    return sorted(str(path.relative_to(root)) for path in old)


def _contents(path: Path) -> list | None:
    import nbformat

    return _cells(nbformat.read(path, as_version=4)) if path.exists() else None


def _cells(notebook) -> list:
    return [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def _readme(root: Path) -> str:
    return syllabus.readme({path.stem for path in sources(root) if path.parent.name == "notebooks"})


def _chosen(root: Path, names: list[str] | None) -> list[Path]:
    chosen = [path for path in sources(root) if not names or any(
        place.startswith(name) for name in names for place in (path.stem, f"{path.parent.name}/{path.stem}"))]
    if names and not chosen:
        raise SystemExit(f"no chapter begins with {' or '.join(names)} in {root}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minit2v.course.build", description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help='only these: "01" (its chapter and its solutions), "solutions/01", '
                        "or as much of the name as you like")
    parser.add_argument("--no-execute", action="store_true", help="only say what is out of date; exit 1 if so")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the repository")
    args = parser.parse_args(arguments)
    if not (args.root / "notebooks").is_dir():
        parser.error(f"there is no folder 'notebooks' in {args.root}; run this in a copy of the repository")
    if args.no_execute:
        old = outdated(args.root, args.chapters)
        print("\n".join(f"out of date: {path}" for path in old) or "all built notebooks are up to date")
        return 1 if old else 0
    for source in _chosen(args.root, args.chapters):
        for path, notebook in build(source, args.root).items():
            begin = time.perf_counter()
            write(execute(notebook, path.parent), path)
            print(f"{path.relative_to(args.root)}: {time.perf_counter() - begin:.0f} s, "
                  f"{path.stat().st_size / 2 ** 10:.0f} kB")
    with write_whole(args.root / "notebooks" / "README.md") as temporary:
        temporary.write_text(_readme(args.root), encoding="utf-8")
    (args.root / SOLVED).parent.mkdir(parents=True, exist_ok=True)
    with write_whole(args.root / SOLVED) as temporary:
        temporary.write_text(solved(args.root), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
