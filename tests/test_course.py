"""The tool-chain of the course: text becomes notebooks and exercises; pictures carry their description."""

import base64
import html
import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from minit2v.course import build, figures, syllabus, versions

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

CHAPTER = '''\
# %% [markdown]
# # 01 · Tiny

# %%
# from minit2v.world import _unit

# %% tags=["nbval-check-output"]
import sys

print("seen", end=" ")
print("noise", file=sys.stderr)
print("by all")
'''
SOLUTION = '''\
# %% [markdown]
# # 01 · Exercises

# %%
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    both = x + x
    return both
    ### END SOLUTION


double(4)
'''


@pytest.fixture
def root(tmp_path) -> Path:
    for folder, text in (("notebooks", CHAPTER), ("solutions", SOLUTION), ("exercises", None)):
        (tmp_path / folder).mkdir()
        if text:
            (tmp_path / folder / "01_tiny.py").write_text(text, encoding="utf-8")
    return tmp_path


def read(path: Path):
    return nbformat.read(path, as_version=4)


def nbval(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env",
               "--rootdir", str(path.parent), "-c", str(path.parent / "none.ini"), str(path)]
    (path.parent / "none.ini").write_text("[pytest]\n")
    environment = os.environ | {"PYTHONPATH": str(syllabus.PACKAGE.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


# ---------------------------------------------------------------- the build

def test_chapter_is_filled_in_and_set_up(root):
    (path, notebook), = build.build(root / "notebooks" / "01_tiny.py", root).items()
    assert path == root / "notebooks" / "01_tiny.ipynb"
    title, setup, quoted, checked = notebook.cells
    assert title.cell_type == "markdown" and setup.source.startswith("# Set-up") and "versions()" in setup.source
    assert quoted.source.startswith("# from minit2v.world import _unit\n\ndef _unit(v")
    assert checked.metadata["tags"] == ["nbval-check-output"]


def test_quote_takes_classes_methods_and_decorators():
    assert build.quote("minit2v.world", "Thing").startswith("@dataclass(frozen=True)\nclass Thing:\n")
    assert build.quote("minit2v.diffusion", "Process.alpha").startswith("def alpha(self, t: Time)")
    with pytest.raises(ValueError, match="no function or class Nothing"):
        build.quote("minit2v.world", "Nothing")


def test_build_execute_check_and_age(root, capsys):
    """All at once, since each kernel takes its time: what is built, when it is out of date, what nbval finds."""
    pytest.importorskip("nbclient")
    assert build.main(["--root", str(root), "--no-execute"]) == 1
    assert build.main(["--root", str(root)]) == 0
    assert build.main(["--root", str(root), "--no-execute"]) == 0
    assert not [path for path in root.rglob("*.part")]

    chapter, solved, stub = (read(root / folder / "01_tiny.ipynb")
                             for folder in ("notebooks", "solutions", "exercises"))
    output, = chapter.cells[-1].outputs                               # one, in one piece, and nothing from stderr
    assert output.text == "seen by all\n" and chapter.cells[-1].execution_count
    assert solved.cells[-1].outputs[0].data["text/plain"] == "8"
    assert "both = x + x" in solved.cells[-1].source
    assert stub.cells[-1].source == ('def double(x):\n    """Twice x."""\n'
                                     '    raise NotImplementedError("double: your turn")\n\n\ndouble(4)')
    assert stub.cells[-1].metadata.tags == build.STUB_TAGS
    assert stub.cells[-1].outputs[0].traceback == ["NotImplementedError: double: your turn"]
    again = (root / "exercises" / "01_tiny.ipynb").read_bytes()

    exercise = root / "exercises" / "01_tiny.ipynb"
    passed = nbval(exercise)
    assert passed.returncode == 0, passed.stdout
    leaked = again.decode().replace('raise NotImplementedError(\\"double: your turn\\")', "return x + x")
    exercise.write_text(leaked, encoding="utf-8")
    assert nbval(exercise).returncode == 1                            # a solution has leaked in
    assert build.outdated(root) == ["exercises/01_tiny.ipynb"]

    (root / "notebooks" / "01_tiny.py").write_text(CHAPTER + "\n# %%\n1 + 1\n", encoding="utf-8")
    (root / "notebooks" / "02_gone.ipynb").write_bytes(again)
    assert build.main(["--root", str(root), "--no-execute"]) == 1
    told = capsys.readouterr().out
    assert "out of date: notebooks/01_tiny.ipynb" in told and "out of date: notebooks/02_gone.ipynb" in told
    with pytest.raises(SystemExit, match="no chapter begins with 07"):
        build.main(["--root", str(root), "07"])


@pytest.mark.parametrize("wrong, message", [
    (SOLUTION.replace("    ### END SOLUTION\n", ""), "without ### END"),
    (SOLUTION.replace("    ### BEGIN SOLUTION\n", ""), "in turn"),
    (SOLUTION.replace("    both = x + x\n", "    ### BEGIN SOLUTION\n"), "in turn"),
    (SOLUTION.replace("# %% [markdown]\n# # 01 · Exercises\n\n", ""), "must open with a markdown cell"),
])
def test_a_wrong_source_is_refused(root, wrong, message):
    source = root / "solutions" / "01_tiny.py"
    source.write_text(wrong, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        build.build(source, root)


def test_a_stub_that_nobody_runs_into_is_refused(root):
    pytest.importorskip("nbclient")
    source = root / "solutions" / "01_tiny.py"
    source.write_text(SOLUTION.replace("\n\ndouble(4)\n", ""), encoding="utf-8")
    exercise = build.build(source, root)[root / "exercises" / "01_tiny.ipynb"]
    with pytest.raises(ValueError, match="must run into it"):
        build.execute(exercise, root)


# ---------------------------------------------------------------- the set-up cell

def run_setup(root, monkeypatch, missing: bool) -> list[list[str]]:
    """Runs the set-up cell with a pip that only listens; returns its commands, each with the constraints at the end."""
    calls = []

    def listen(command, check):
        kept = Path(command[command.index("--constraint") + 1])
        calls.append([*command, kept.read_text(encoding="utf-8")])

    monkeypatch.setattr(subprocess, "run", listen)                    # before all else: no test may install anything
    if missing:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "minit2v" else find_spec(name))
    exec(build.SETUP.format(address=build.address(root)), {})
    return calls


def test_setup_does_nothing_where_the_package_is(root, monkeypatch, capsys):
    assert run_setup(root, monkeypatch, missing=False) == []
    assert capsys.readouterr().out == versions() + "\n"
    assert versions().startswith("minit2v ") and f"torch {torch.__version__.partition('+')[0]}" in versions()


def test_setup_changes_nobodys_environment_but_colabs(root, monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="pip install -e"):
        run_setup(root, monkeypatch, missing=True)


def test_setup_on_colab_installs_and_keeps_torch_and_numpy(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    (root / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/minit2v"\n')
    (command,) = run_setup(root, monkeypatch, missing=True)
    assert command[-2] == "git+https://example.org/minit2v"
    assert [line.partition("==")[0] for line in command[-1].splitlines()] == ["torch", "numpy"]
    (root / "pyproject.toml").unlink()
    assert build.address(root) == ".."


# ---------------------------------------------------------------- figures

CLIP = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
CLIP[1:, 2:4] = 255
ALT = "a clip made for this test"


def opened(picture: figures.Picture) -> Image.Image:
    alt, width, data = re.fullmatch(r'<img alt="(.+?)"( width="\d+")? src="data:image/png;base64,(.+?)">',
                                    picture._repr_html_()).groups()
    assert html.unescape(alt) == picture.alt and picture.alt in repr(picture)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_strip_shows_all_clips_with_titles():
    plain = opened(figures.strip(CLIP, ALT, scale=3))
    assert plain.width == 4 * 24 + 3 * figures.GAP
    assert plain.getpixel((24, 10)) == (figures.GREY,) * 3 and plain.getpixel((26, 4 + 6)) == (255, 255, 255)
    assert opened(figures.strip([CLIP, CLIP], ALT, titles=["one", "two"], frames=2)).height > 2 * 8 + 2 * figures.TITLE
    with pytest.raises(ValueError, match="1 titles for 2 clips"):
        figures.strip([CLIP, CLIP], ALT, titles=["one"])
    with pytest.raises(ValueError, match="no letters for '圆'"):
        figures.strip(CLIP, ALT, titles=["圆"])


def test_play_is_an_animated_png():
    clip = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 8, 8, 3) * 60
    image = opened(figures.play([clip, clip], ALT, fps=8, scale=2))
    assert image.format == "PNG" and image.n_frames == 4 and image.size == (2 * 16 + figures.GAP, 16)
    for index in range(4):
        image.seek(index)
        assert image.convert("RGB").getpixel((0, 0)) == (60 * index,) * 3 and image.info["duration"] == 125


def test_play_shares_256_colours():
    clip = torch.randn(16, 8, 8, 3, generator=torch.Generator().manual_seed(0)).cumsum(0).mul(20).add(128).clamp(0, 255)
    image = opened(figures.play(clip.to(torch.uint8), ALT, scale=1))
    frames = []
    for index in range(16):
        image.seek(index)
        frames.append(torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(8, 8, 3))
    away = (torch.stack(frames) - clip).abs()
    assert image.mode == "P" and away.mean() < 12                     # the worst there is: colours all over the cube


def test_plots_are_small_and_the_same_each_time():
    grid = torch.linspace(-1, 2, 64).view(8, 8)
    first = figures.heat([grid, grid.abs()], ALT, titles=["a", "b"], values=True, contour=0.0)
    again = figures.heat([grid, grid.abs()], ALT, titles=["a", "b"], values=True, contour=0.0)
    assert first.png == again.png and len(first.png) < 100_000
    assert opened(first).width == pytest.approx(first.width * figures.DPI / 100, abs=2)
    opened(figures.plot({"up": grid[0], "down": -grid[0]}, ALT, x=torch.arange(8), colours=["red", "blue"]))


def test_stations_stand_below_one_another():
    grid, frame = torch.linspace(-1, 1, 32).view(4, 8), torch.full((8, 16, 3), 230, dtype=torch.uint8)
    stops = [("prompt", "", "a red circle"), ("noise", "(4, 8)", grid), ("frames", "(8, 16, 3)", frame)]
    image = opened(figures.stations(stops, ["seed", "decoder"], ALT)).convert("RGB")
    assert image.height > image.width * (4 / 8 + 8 / 16) * 5 / 7.2        # both pictures at their width, and more
    middle = [image.getpixel((round(image.width * 0.6), y)) for y in range(image.height)]
    assert middle.count((230, 230, 230)) == pytest.approx(5 * 8 / 16 * figures.DPI, rel=0.05)
    with pytest.raises(ValueError, match="1 ways between 3 stops"):
        figures.stations(stops, ["seed"], ALT)


def test_tinted_maps_are_pictures_for_a_strip():
    pictures = figures.tint(torch.tensor([[[-9.0, -2.5, 0.0, 2.5]]]), scale=4)
    assert pictures.shape == (1, 4, 16, 3) and pictures.dtype == torch.uint8
    far, full, zero, above = pictures[0, 0, ::4].int()
    assert torch.equal(far, full) and zero.min() > 240                    # nothing beyond the limit; zero is white
    assert full[2] > full[1] and above[0] > above[2]                      # purple below, orange above
    opened(figures.strip(pictures, ALT))


def test_a_picture_without_a_description_is_refused():
    with pytest.raises(ValueError, match="say in a sentence"):
        figures.Picture(b"", "picture")


def test_alt_text_reaches_the_page():
    """Asks a real renderer; where it finds no alt text it writes "No description has been provided" into the page."""
    nbconvert = pytest.importorskip("nbconvert")
    picture = figures.strip(CLIP, 'two "white" lines & a gap')
    output = nbformat.v4.new_output("execute_result", {"text/html": picture._repr_html_(), "text/plain": repr(picture)},
                                    execution_count=1)
    cell = nbformat.v4.new_code_cell("picture", outputs=[output], execution_count=1)
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    shown, = re.findall(r"<img[^>]*>", page.partition("<body")[2])
    assert html.unescape(re.search(r"""alt=(["'])(.*?)\1""", shown).group(2)) == picture.alt


def test_the_page_of_chapters_is_complete():
    text = syllabus.readme(set())
    assert all(chapter.name in text for chapter in syllabus.CHAPTERS) and "](0" not in text
