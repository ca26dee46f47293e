"""What a learner on Colab has: the built wheel, and a notebook in an empty folder. No repository, no network."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parent.parent
SPENT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part")


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def printed(outputs: list) -> str:
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy (a build leaves files behind) by the setuptools that is here."""
    if find_spec("pip") is None:
        pytest.skip("pip is not installed here")
    if find_spec("setuptools") is None or int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip('setuptools 77 is missing: pip install -e ".[test]"')
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(ROOT / "minit2v", folder / "source" / "minit2v", ignore=SPENT)
    run("pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder),
        str(folder / "source"))
    (built,) = folder.glob("minit2v-*.whl")
    return built


def test_wheel_holds_the_whole_package(wheel):
    """Every module, and every file that a module reads; nothing else but its own papers."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        papers = {name.partition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minit2v").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".part"}
    assert names == here
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= papers


def test_a_chapter_runs_with_nothing_but_the_wheel(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run("pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    notebook = nbformat.read(ROOT / "notebooks" / "00_first_clip.ipynb", as_version=4)
    end = [cell.source.startswith("### In Chinese") for cell in notebook.cells].index(True)       # what follows is
    notebook.cells[end:] = [nbformat.v4.new_code_cell(                                            # more of the same
        "import minit2v, os\nprint([*minit2v.__path__, *os.listdir()])")]
    checked = [cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    before = [cell.outputs for cell in checked]
    # Where the package is installed in editable mode too, what PYTHONPATH names comes first; the last cell proves it.
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=240,
                                     resources={"metadata": {"path": str(empty)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(site)})
    assert notebook.cells[-1].outputs[0].text == f"{[str(site / 'minit2v')]}\n"
    assert before and [printed(cell.outputs) for cell in checked] == [printed(outputs) for outputs in before]
