"""The widgets of the chapters, without a browser: what they do when they are moved, and what a saved notebook keeps.

That they work in a real JupyterLab is shown in test_browser.py.
"""

import io
import warnings

import pytest
from PIL import Image

from minit2v.course import build, figures, widgets

ipywidgets = pytest.importorskip("ipywidgets")
nbformat = pytest.importorskip("nbformat")


def picture(grey: int) -> figures.Picture:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, format="PNG")
    return figures.Picture(buffer.getvalue(), f"a square, all of grey {grey}")


def parts(live: widgets.Live, kind) -> list:
    return [child for child in live.box.children if isinstance(child, kind)]


def test_slider_shows_the_picture_it_stands_at():
    pictures = [picture(grey) for grey in (0, 100, 200)]
    live = widgets.slider(pictures, ["one", "two", "three"], name="grey", start=-1)
    control, view = live.box.children
    assert view.value == pictures[2]._repr_html_() and control.label == "three"
    for index in (0, 2, 1):
        control.value = index
        assert view.value == pictures[index]._repr_html_() and control.label == ("one", "two", "three")[index]


@pytest.mark.parametrize("count, labels", [(3, ["one", "two"]), (1, ["one"]), (0, [])])
def test_slider_refuses_what_does_not_fit(count, labels):
    with pytest.raises(ValueError, match=f"{count} pictures and {len(labels)} labels"):
        widgets.slider([picture(0)] * count, labels)


def test_panel_calls_with_what_is_set():
    calls = []

    def make(**values):
        calls.append(values)
        return picture(values["seed"])

    live = widgets.panel(make, prompt="red", sampler=["ddim", "ddpm"], steps=(20, 1, 50), guidance=(4.0, 1.0, 9.0),
                         eta=(0.0, 0.0, 1.0, 0.25), seed=7)
    start = {"prompt": "red", "sampler": "ddim", "steps": 20, "guidance": 4.0, "eta": 0.0, "seed": 7}
    assert calls == [start]
    view, told = parts(live, ipywidgets.HTML)
    assert view.value == picture(7)._repr_html_()
    prompt, sampler, steps, guidance, eta, seed = live.box.children[:6]
    assert (steps.step, guidance.step, eta.step) == (1, 0.5, 0.25) and (steps.min, steps.max) == (1, 50)
    prompt.value, sampler.value, steps.value, guidance.value, eta.value, seed.value = "blue", "ddpm", 3, 2.5, 0.75, 9
    assert view.value == picture(7)._repr_html_()                     # nothing happens before the press
    (button,) = parts(live, ipywidgets.Button)
    button.click()
    assert calls[1:] == [{"prompt": "blue", "sampler": "ddpm", "steps": 3, "guidance": 2.5, "eta": 0.75, "seed": 9}]
    assert view.value == picture(9)._repr_html_() and told.value == ""


def test_panel_says_what_went_wrong_and_goes_on():
    def make(seed):
        if seed == 1:
            raise ValueError("not <one>")
        if seed == 2:
            warnings.warn("two is large")
            warnings.warn("the library's own affair", DeprecationWarning)
        return picture(seed)

    live = widgets.panel(make, seed=0)
    seed, button, view, told = live.box.children
    for value, shown, below in [(1, "<pre>ValueError: not &lt;one&gt;</pre>", ""),
                                (2, picture(2)._repr_html_(), "two is large"), (3, picture(3)._repr_html_(), "")]:
        seed.value = value
        button.click()
        assert (view.value, told.value) == (shown, below) and not button.disabled and button.description == "Run"


def test_panel_fails_at_once_where_the_first_picture_fails():
    with pytest.raises(ZeroDivisionError):
        widgets.panel(lambda seed: 1 // seed, seed=0)


@pytest.mark.parametrize("given", [-1, 1.5, (5, 6, 7), (1, 2), [], None])
def test_panel_refuses_what_is_no_control(given):
    with pytest.raises(ValueError, match="strength is .*; a control is made from"):
        widgets.panel(lambda strength: picture(0), strength=given)


@pytest.mark.parametrize("live", [
    lambda: widgets.slider([picture(1), picture(2)], ["one", "two"], name="grey", start=1),
    lambda: widgets.panel(lambda grey: picture(grey), grey=2),
], ids=["slider", "panel"])
def test_a_saved_notebook_keeps_a_picture(live):
    data = live()._repr_mimebundle_()
    assert data[widgets.WIDGET]["model_id"]
    assert data["text/html"].startswith(picture(2)._repr_html_() + "<p>grey")
    assert "2. Run this notebook" in data["text/html"].replace("two", "2") and data["text/plain"] == repr(picture(2))
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
    cell = nbformat.v4.new_code_cell("widget", outputs=[output], execution_count=1)
    (kept,) = build.tidy(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert set(kept.data) == {"text/html", "text/plain"}
