"""The theme of all charts: colours that colour-blind readers can distinguish, and sizes that fit a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from verl_gsd.console import visible
from verl_gsd.writing import atomic_write

#: The eight colours of Okabe and Ito, in the order in which series use them. Yellow is last: it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
#: The colour of each kind of group outcome, the same in all charts.
KINDS = {"mixed": "#009E73", "all_right": "#56B4E9", "all_wrong": "#D55E00", "equal": "#E69F00"}

#: Colours of text, lines and the background in charts.
INK, RULE, PAPER = "#1a1a1a", "#e5e5e5", "#ffffff"
#: Colour in a chart -> what a page shows in its place (page.css), which depends on the reader's colour scheme. The
#: other colours can be seen on white and on the page's dark grey.
PAGE_COLOURS = {
    INK: "var(--ink)",
    "#000000": "var(--ink)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    "#0072B2": "light-dark(#0072B2, #2182C4)",
}

_TEXT = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK}
_CONFIG = {
    "background": PAPER,
    "aria": False,  # the page labels the whole chart; a label per mark would only slow down drawing
    "font": "system-ui, sans-serif",
    "range": {"category": list(COLOURS)},
    "axis": {**_TEXT, "gridColor": RULE},
    "legend": {
        **_TEXT,
        "orient": "top",
        "columns": 3,
        "layout": {"top": {"direction": "vertical", "anchor": "start"}},
    },
    "title": {"color": INK},
    "view": {"stroke": None},
    "line": {"strokeWidth": 2},
}
#: Dots per length unit in a PNG.
_SCALE = 2.0
_PNG_WIDTH, _HEIGHT = 640, 260
#: Names that every object of JavaScript has. Vega looks up drawn names in such objects, and would find these.
_NAMES_OF_OBJECTS = {
    *("constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString"),
    *("valueOf", "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__"),
}


def styled(chart: alt.TopLevelMixin) -> dict:
    """Return the Vega-Lite specification of ``chart`` with our theme.

    A chart without a size fills the width of its container and is ``_HEIGHT`` pixels high.
    """
    # Altair's limit on rows is meant for notebooks; our data are small.
    with alt.data_transformers.enable("default", max_rows=None):
        specification = chart.to_dict()
    specification = _drawable(specification)
    specification["config"] = _CONFIG
    if "layer" in specification or "mark" in specification:
        specification = {"width": "container", "height": _HEIGHT} | specification
    return specification


def _drawable(value: Any) -> Any:
    """The value with all texts in it as Vega can draw them. They are names of runs and data that others chose.

    Control characters end the process that draws a PNG. A space at the end of a name is not seen.
    """
    if isinstance(value, dict):
        return {key: _drawable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_drawable(entry) for entry in value]
    if isinstance(value, str):
        return f"{value} " if value in _NAMES_OF_OBJECTS else visible(value)
    return value


def write_png(chart: alt.TopLevelMixin, path: Path) -> None:
    """Draw ``chart`` to a PNG file, atomically and without a browser.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    specification = styled(chart)
    if specification.get("width") == "container":
        specification["width"] = _PNG_WIDTH
    picture = vl_convert.vegalite_to_png(specification, scale=_SCALE)
    with atomic_write(path) as building:
        building.write_bytes(picture)
