"""The chapters as they stand here: built from their sources, in step with the package, readable and checked.

That they run is not tested here: pytest runs every notebook with nbval, see pyproject.toml.
"""

import ast
import re
from pathlib import Path
from statistics import median

import pytest

from minit2v.course import syllabus

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
from minit2v.course import build  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*.ipynb"))
BUILT = [*CHAPTERS, *EXERCISES, *sorted((ROOT / "solutions").glob("*.ipynb"))]
FIRST_VERSION = re.compile(r"# first version: (.{20,})")
GREEK = re.compile(r"\\(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi"
                   r"|chi|psi|omega)(?![a-z])")
PARTS = ["What you will build", "What the original does", "What can go wrong", "Recap", "Exercises", "References"]

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize("path", BUILT, ids=lambda path: f"{path.parent.name}/{path.stem}")


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def is_quoted(source: str) -> bool:
    return build.QUOTE.fullmatch(source.partition("\n")[0]) is not None


def definitions(tree: ast.Module) -> list:
    return [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def meaning(node: ast.AST) -> str:
    """The syntax tree as text, without docstrings (comments are not in it anyway)."""
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part) is not None:
            part.body = part.body[1:]
    return ast.dump(node)


def test_nothing_is_out_of_date():
    assert CHAPTERS, "there is no chapter"
    assert build.outdated(ROOT) == [], "run `make notebooks`"


def test_code_does_not_drift_from_the_package(capsys):
    package: dict[str, set[str]] = {}
    for module in (ROOT / "minit2v").glob("*.py"):
        for node in definitions(ast.parse(module.read_text(encoding="utf-8"))):
            package.setdefault(node.name, set()).add(meaning(node))
    same, declared, drifted = 0, [], []
    for path in CHAPTERS:
        for cell in cells(path):
            quoted = build.QUOTE.fullmatch(cell.source.partition("\n")[0])
            for node in definitions(ast.parse(cell.source)):
                known = package.get(node.name, set())
                if quoted and "." in quoted.group(2):                 # a method, shown without its class
                    known = {meaning(ast.parse(build.quote(*quoted.groups())).body[0])}
                if not known:
                    continue
                if meaning(node) in known:
                    same += 1
                elif reason := FIRST_VERSION.match(cell.source):
                    declared.append(f"{path.stem}: {node.name}: {reason.group(1)}")
                else:
                    drifted.append(f"{path.stem}: {node.name}")
    with capsys.disabled():
        print(f"\nchapters: {same} definitions as in the package, {len(declared)} first versions, "
              f"{len(drifted)} drifted")
    assert drifted == []


@each_chapter
def test_checked_cells(path):
    """nbval compares nothing where no output, or no execution count, is stored."""
    checked = [cell for cell in cells(path) if build.CHECKED in cell.metadata.get("tags", [])]
    assert len(checked) >= 5
    for cell in checked:
        assert cell.outputs and cell.execution_count, cell.source
        assert all(output.output_type == "stream" for output in cell.outputs), f"checks compare text:\n{cell.source}"


@each_notebook
def test_small_and_run_as_a_whole(path):
    """At most 1 MB, and executed once from top to bottom, with no error but the stubs' own."""
    assert path.stat().st_size <= 2 ** 20, f"{path.name} has {path.stat().st_size:,} bytes"
    assert [cell.execution_count for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    for cell in cells(path):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert not failed or "raises-exception" in cell.metadata.get("tags", []), cell.source


@each_chapter
def test_small_cells(path):
    sources = [cell.source for cell in cells(path)][1:]               # the set-up is not the author's
    lines = {source: len(source.splitlines()) for source in sources}
    assert median(lines.values()) <= 8
    for source, count in lines.items():
        assert count <= (60 if is_quoted(source) else 40), f"{count} lines:\n{source}"   # our own code may be longer


@each_chapter
def test_anatomy(path):
    assert path.stem in {chapter.name for chapter in syllabus.CHAPTERS}
    prose = [cell.source for cell in cells(path, "markdown")]
    text = "\n".join(prose)
    assert re.match(rf"# {path.stem[:2]} · \w", prose[0])
    places = [re.search(rf"^## .*{part}", text, flags=re.M) for part in PARTS]
    assert all(places) and [p.start() for p in places] == sorted(p.start() for p in places), PARTS
    recap = text[places[3].start():places[4].start()]
    assert len(re.findall(r"^\d\. ", recap, flags=re.M)) == 5
    assert 3 <= len(re.findall(r"^\d\. ", text[places[4].start():places[5].start()], flags=re.M)) <= 5
    assert {name for name in re.findall(r"exercises/(\w+)", text)} <= {path.stem}


@each_chapter
def test_minutes_are_those_of_the_syllabus(path):
    (chapter,) = [chapter for chapter in syllabus.CHAPTERS if chapter.name == path.stem]
    told = [re.search(r"\*\*It takes\*\* about\s+(\d+) minutes", cell.source) for cell in cells(path, "markdown")]
    assert [int(found.group(1)) for found in told if found] == [chapter.minutes]


@each_chapter
def test_words_and_symbols_are_those_of_the_tables(path):
    """The glossary's terms are spoken of where it says that they are explained; Greek letters stand in the notation."""
    text = " ".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for term, chapter, _ in syllabus.GLOSSARY:
        if chapter == int(path.stem[:2]):
            missing = [word for word in re.findall(r"\w+", term) if word.lower().rstrip("s") not in text.lower()]
            assert not missing, f"{term} is to be explained here, says the glossary in syllabus.py, but not {missing}"
    known = set(GREEK.findall(" ".join(symbol for symbol, *_ in syllabus.NOTATION)))
    for cell in cells(path, "markdown"):
        used = {letter for formula in re.findall(r"\$(.+?)\$", cell.source.replace("$$", "$"), flags=re.DOTALL)
                for letter in GREEK.findall(formula)}
        assert used <= known, f"not in NOTATION of syllabus.py: {used - known}, in\n{cell.source}"


@each_chapter
def test_nothing_is_used_before_its_chapter(path):
    number = int(path.stem[:2])
    for source in (cell.source for cell in cells(path)):
        quoted = build.QUOTE.fullmatch(source.partition("\n")[0])
        names = [f"{quoted.group(1)}.{quoted.group(2)}"] if quoted else []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "minit2v":
                assert syllabus.introduced(name) <= number, f"{name} comes in chapter {syllabus.introduced(name):02d}"


@each_notebook
def test_outputs_are_the_same_everywhere(path):
    """No path of anybody's machine, no address in memory, no timing, nothing from stderr, no dead widget."""
    for cell in cells(path):
        assert set(cell.metadata) <= {"tags"}
        for output in cell.outputs:
            data = output.get("data", {})
            text = "\n".join([output.get("text", ""), *output.get("traceback", []), *map(str, data.values())])
            text = re.sub(r'base64,[^"]+', "", text)                  # a picture's bytes can spell anything
            noise = re.search(r"(^|[\s'\"(])(/\w+/\w|[A-Z]:\\)|site-packages|0x[0-9a-f]{6}|\b\d+(\.\d+)? ?(ms|µs)\b"
                              r"|[\d.]+ ?(it/s|s/it)|Wall time|CPU times", text)
            assert noise is None, f"{noise.group()!r} in the output of\n{cell.source}"
            assert output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in data


@each_notebook
def test_pictures_have_alt_text(path):
    for cell in cells(path):
        for output in cell.outputs:
            for kind, text in output.get("data", {}).items():
                told = f"no alt text; show a figures.Picture instead:\n{cell.source}"
                assert not kind.startswith("image/"), told            # viewers show these without alt text
                described = re.findall(r'<img[^>]*? alt="[^"]{15,}"', text)
                assert kind != "text/html" or text.count("<img") == len(described), told
    for cell in cells(path, "markdown"):
        for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", cell.source):
            assert len(alt) >= 15 and target.startswith(("https://", "attachment:")), "a notebook travels alone"


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_stubs_are_stored_unsolved(path):
    stubs = [cell for cell in cells(path) if "NotImplementedError" in cell.source]
    assert stubs and not any(build.BEGIN in cell.source or build.END in cell.source for cell in cells(path))
    for cell in stubs:
        assert cell.metadata.tags == build.STUB_TAGS and cell.outputs[-1].ename == "NotImplementedError"


def test_syllabus():
    text = syllabus.readme({"01_video_as_tensors"})
    assert "[01_video_as_tensors](01_video_as_tensors.ipynb)" in text and "| 12_fine_tuning |" in text
    assert [chapter.number for chapter in syllabus.CHAPTERS] == list(range(13))
    terms = [term for term, _, _ in syllabus.GLOSSARY]
    assert len(set(terms)) == len(terms) and terms == sorted(terms, key=str.lower)
    for table in (part for part in text.split("\n\n") if part.startswith("|")):
        assert len({row.count("|") for row in table.strip().splitlines()}) == 1
    assert syllabus.introduced("minit2v.load") == 0 and syllabus.introduced("minit2v.unet.TemporalConv.forward") == 7
    with pytest.raises(KeyError, match="no chapter"):
        syllabus.introduced("minit2v.cli.main")
