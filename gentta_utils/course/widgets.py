"""`explore`, the one door to widgets: sliders in a live notebook, small multiples anywhere else.

A kernel cannot know whether anybody looks at it, so the environment says so: GENTTA_INTERACTIVE=1 (set by `make lab`).
"""

import os
from collections.abc import Callable, Sequence

from ..common.types import Number
from .plots import figure, show

Control = tuple[Number, Number, Number] | Sequence[str]  # (low, high, initial), or the options, first one initial


def is_live() -> bool:
    """Whether sliders make sense here."""
    return os.environ.get("GENTTA_INTERACTIVE") == "1"


def settings_shown(controls: dict[str, Control]) -> list[dict]:
    """What the static twin shows: the initial values, then every control at its ends (or at its other options)."""
    first = {name: c[2] if _is_range(c) else c[0] for name, c in controls.items()}
    ends = [(name, end) for name, c in controls.items() for end in (c[:2] if _is_range(c) else c[1:])]
    return [first] + [{**first, name: end} for name, end in ends if end != first[name]]


def _is_range(control: Control) -> bool:
    return not isinstance(control[0], str)


def explore(draw: Callable[..., None], alt: str, columns: int = 3, **controls: Control) -> None:
    """Let the reader play with `draw(ax, **values)`, a pure function that fills one matplotlib axes.

    Args:
        alt: what there is to see: the caption, and the alternative text for those who cannot.
        controls: name=(low, high, initial) for a slider (of integers if all three are), or a list of options.

    Raises whatever `draw` raises, in both forms; plain widgets would swallow it."""
    if not is_live():
        shown = settings_shown(controls)
        fig, axes = figure(-(-len(shown) // columns), columns, squeeze=False)
        for ax, values in zip(axes.flat, shown, strict=False):
            draw(ax, **values)
        for ax in axes.flat[len(shown) :]:
            ax.axis("off")
        show(fig, alt)
        return
    import ipywidgets
    from IPython.display import display

    sliders = {name: _slider(name, control) for name, control in controls.items()}
    output = ipywidgets.Output()

    def picture():
        fig, ax = figure(width=5.0, height=3.0)
        draw(ax, **{name: slider.value for name, slider in sliders.items()})
        return fig

    def redraw(_) -> None:
        output.clear_output(wait=True)
        with output:  # what is raised in here appears in the place of the picture; the kernel would only log it
            show(picture(), alt)

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    first = picture()  # outside of the output, so that the cell fails if it does
    with output:
        show(first, alt)
    display(ipywidgets.VBox([*sliders.values(), output]))


def _slider(name: str, control: Control):
    import ipywidgets

    if not _is_range(control):
        return ipywidgets.Dropdown(options=list(control), description=name)
    low, high, value = control
    integers = all(isinstance(v, int) for v in control)
    kind = ipywidgets.IntSlider if integers else ipywidgets.FloatSlider
    step = 1 if integers else (high - low) / 40
    return kind(value=value, min=low, max=high, step=step, description=name, continuous_update=False)
