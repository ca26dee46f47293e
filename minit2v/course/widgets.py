"""Widgets for the chapters: a slider over pictures, and a panel that makes a new picture at the press of a button.

Both are alive only while a kernel runs. So the output of such a cell holds two things: the widget for JupyterLab, Colab
and the like, and beside it a plain picture, which is what a saved notebook shows on a code host or on paper
(the build keeps that one and drops the widget, see `build.tidy`).
"""

import html
import warnings

from minit2v.course.figures import Picture

WIDGET = "application/vnd.jupyter.widget-view+json"
STILL = "Run this notebook to use the {kind}."


class Live:
    """A widget with a picture in its place where no kernel runs. The last line of a cell shows it."""

    def __init__(self, box, picture: Picture, text: str, kind: str):
        self.box, self.picture, self.text, self.kind = box, picture, text, kind
        box.add_class(f"minit2v-{kind}")                              # to be found in a page

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        below = f"{self.text}. {STILL.format(kind=self.kind)}"
        return {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id},
                "text/html": f"{self.picture._repr_html_()}<p>{html.escape(below)}</p>",
                "text/plain": repr(self.picture)}


def slider(pictures: list[Picture], labels: list[str], name: str = "", start: int = 0) -> Live:
    """Shows one of several pictures; a slider goes through them. labels: a short text for each, shown at the slider.

    name: stands before the slider. start: index of the picture that is shown first, and in the saved notebook; as in
    a list, -1 is the last. Raises ValueError for fewer than two pictures, or another number of labels.
    """
    import ipywidgets

    if len(pictures) < 2 or len(pictures) != len(labels):
        raise ValueError(f"{len(pictures)} pictures and {len(labels)} labels; give two pictures or more, and a label "
                         "for each")
    start = range(len(pictures))[start]
    control = ipywidgets.SelectionSlider(options=[(label, i) for i, label in enumerate(labels)], value=start,
                                         description=name, style={"description_width": "initial"},
                                         layout={"width": "32em"})
    view = ipywidgets.HTML(pictures[start]._repr_html_())

    def show(change):
        view.value = pictures[change["new"]]._repr_html_()

    control.observe(show, "value")
    return Live(ipywidgets.VBox([control, view]), pictures[start], f"{name} {labels[start]}".strip(), "slider")


def panel(function, **controls) -> Live:
    """Controls with a button; a press calls function(**values) and shows the `Picture` that it returns.

    controls: what the function is called with, by name. The start value decides the kind of control:
        "text"                         a line of text
        7                              a whole number of 0 or more, typed: for a seed
        (20, 1, 50), (4.0, 1.0, 9.0)   a slider: start, least, most; a fourth number is its step
        ["ddim", "ddpm"]               a choice, the first to start with
    The function runs once when the panel is made, with the start values: that picture is shown first, and in the saved
    notebook. Later, what it warns of stands below the picture, and an error in the picture's place.
    """
    import ipywidgets

    asked = {name: _control(name, given) for name, given in controls.items()}
    button = ipywidgets.Button(description="Run", button_style="primary")
    view, told = ipywidgets.HTML(), ipywidgets.HTML()

    def values() -> dict:
        return {name: control.value for name, control in asked.items()}

    def run(_):
        button.disabled, button.description = True, "Running ..."
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                view.value = function(**values())._repr_html_()
            told.value = html.escape("; ".join(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
        except Exception as error:                                   # would be lost: a button's press has no cell
            view.value, told.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>", ""
        finally:
            button.disabled, button.description = False, "Run"

    first = function(**values())
    view.value = first._repr_html_()
    button.on_click(run)
    text = ", ".join(f"{name}: {value}" for name, value in values().items())
    return Live(ipywidgets.VBox([*asked.values(), button, view, told]), first, text, "panel")


def _control(name: str, given):
    import ipywidgets

    look = {"description": name, "style": {"description_width": "12em"}, "layout": {"width": "40em"}}
    if isinstance(given, str):
        return ipywidgets.Text(given, **look)
    if isinstance(given, int) and given >= 0:
        return ipywidgets.BoundedIntText(given, min=0, max=2 ** 31 - 1, **look)
    if isinstance(given, list) and given:
        return ipywidgets.Dropdown(options=given, value=given[0], **look)
    if isinstance(given, tuple) and len(given) in (3, 4) and given[1] <= given[0] <= given[2]:
        whole = all(isinstance(number, int) for number in given)
        kind, step = (ipywidgets.IntSlider, 1) if whole else (ipywidgets.FloatSlider, 0.5)
        return kind(given[0], min=given[1], max=given[2], step=given[3] if len(given) == 4 else step, **look)
    raise ValueError(f"{name} is {given!r}; a control is made from a string, a whole number of 0 or more, a list of "
                     "choices, or (start, least, most) with or without a step, where the start lies between")
