"""The project's own papers: each thing is said in one place, and what is said is so."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minit2v

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "minit2v").rglob("*.py"))
IMPORTED_AS = {"open_clip": "open_clip_torch", "PIL": "pillow", "IPython": "ipywidgets", "ipykernel": "ipywidgets"}


@pytest.fixture(scope="module")
def pyproject():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def listed(environment: str) -> list[str]:
    return re.findall(r"^\s+- (?!pip:)(.+?)\s*$", environment.partition("dependencies:")[2], flags=re.MULTILINE)


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower().replace("_", "-")


def test_environment_lists_nothing_twice(pyproject):
    assert listed((ROOT / "environment.yml").read_text(encoding="utf-8")) == [
        "python" + pyproject["project"]["requires-python"], "pip", "-e .[course]"]
    assert "course" in pyproject["project"]["optional-dependencies"]


def test_dependencies_are_listed_once_with_a_lower_bound_and_a_reason(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    requirements = [r for group in (pyproject["project"]["dependencies"], *extras.values()) for r in group]
    names = [name_of(r) for r in requirements]
    assert len(set(names)) == len(names)
    assert {"diffusers"} <= {name_of(r) for r in extras["test"]} and "transformers" in names     # peers
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in requirements:
        if requirement != "minit2v[course,translate]":
            assert re.fullmatch(r"[A-Za-z0-9_-]+>=[0-9.]+", requirement), f"{requirement}: a lower bound and no pin"
            assert re.search(rf'"{re.escape(requirement)}", +# .{{10,}}', text), f"{requirement} needs a reason"


def test_what_is_imported_is_declared(pyproject):
    declared = {name_of(r) for r in pyproject["project"]["dependencies"]}
    extras = pyproject["project"]["optional-dependencies"]
    course = declared | {name_of(r) for extra in ("course", "translate") for r in extras[extra]}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else [])
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"minit2v"}:
                allowed = declared if node in tree.body else course   # inside a function: not all need it
                assert name_of(IMPORTED_AS.get(name, name)) in allowed, f"{path.name} imports {name}"


def test_torch_comes_by_plain_pip():
    """No index address, no pin: pip decides what fits the machine. No path of anybody's machine either."""
    files = [ROOT / name for name in ("pyproject.toml", "environment.yml", "Makefile", ".ci/run")] + MODULES
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|download\.pytorch|find-links|/home/|/work/|/Users/", text), path.name


def test_version_stands_in_one_place(pyproject):
    assert pyproject["project"]["dynamic"] == ["version"] and "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "minit2v.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", minit2v.__version__)


def test_public_names_are_there():
    for name in minit2v.__all__:
        assert getattr(minit2v, name) is not None and name in dir(minit2v)
    with pytest.raises(AttributeError, match="'lode'.*load"):
        minit2v.lode


def test_weights_are_package_data_and_small(pyproject):
    assert pyproject["tool"]["setuptools"]["package-data"] == {
        "minit2v": ["README.md", "weights/*", "released.json", "course/solutions.json", "course/ablations.json"]}
    size = sum(path.stat().st_size for path in (ROOT / "minit2v" / "weights").rglob("*") if path.is_file())
    assert size <= 16 * 2 ** 20, f"the weights that ship take {size:,} bytes"


def test_license_is_the_whole_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert all(f"   {i}. " in text for i in range(1, 10)) and len(text.split()) > 1500


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target, extra, last", [
    ("demo", "", '{bin}/minit2v generate "a red circle moves right" -o clip.mp4 -o clip.gif -o clip.png'),
    ("test", "[test]", "{bin}/python -m pytest -q"),
    ("lab", "[course]", "{bin}/jupyter lab --LabApp.default_url=/lab/tree/notebooks"),
    ("notebooks", "[course]", "{bin}/python -m minit2v.course.build"),
])
def test_make_installs_and_runs(target, extra, last, tmp_path):
    venv = tmp_path / "venv"                                          # a fresh one, which --dry-run does not make
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "--dry-run", target, f"VENV={venv}"], cwd=ROOT, env=outside, capture_output=True,
                          text=True)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stderr
    assert f"-m venv {venv}" in lines[0]
    assert lines[1].endswith(f'--editable ".{extra}"')
    assert lines[-1] == last.format(bin=venv / "bin")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_leaves_nothing_of_an_old_python(tmp_path):
    """An environment of an old Python would stay, and the next `make` would take it."""
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\ncase $1 in -c) echo \"$2\" | sed 's/(3, 10)/(99,)/' | exec " + sys.executable + " -;; "
                   "*) touch " + str(tmp_path / "made") + ";; esac\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode != 0 and "3.10 or newer is needed" in done.stderr and not (tmp_path / "made").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_mends_an_environment_without_pip(tmp_path):
    """Debian without python3-venv leaves one; later `make` would only say "No module named pip"."""
    pytest.importorskip("ensurepip")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}        # so it goes no further
    subprocess.run(["make", "demo", f"VENV={venv}", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True,
                   env={**os.environ, **nothing})
    done = subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_ci_runs_the_readmes_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "make test" in script.read_text(encoding="utf-8")


def test_one_style():
    """ruff, with the settings in pyproject.toml; also finds syntax that the oldest Python we promise does not know."""
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
