"""How charts look: colours that the colour-blind tell apart, sizes that a phone can show."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import vl_convert

from verl_gsd.writing import atomic_write

#: Okabe and Ito's eight, in the order series take them; yellow last, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
#: What became of a group's outcomes has one colour everywhere.
KINDS = {"mixed": "#009E73", "all_right": "#56B4E9", "all_wrong": "#D55E00"}

_CONFIG = {
    "background": "white",
    "aria": False,  # a page labels a chart as a whole; a label of every mark costs time to draw and is read by nobody
    "font": "system-ui, sans-serif",
    "range": {"category": list(COLOURS)},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e5e5e5"},
    "legend": {
        "orient": "top",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "columns": 3,
        "layout": {"top": {"direction": "vertical", "anchor": "start"}},
    },
    "view": {"stroke": None},
    "line": {"strokeWidth": 2},
}
#: Dots a length unit in a PNG.
_SCALE = 2.0
_PNG_WIDTH, _HEIGHT = 640, 260


def styled(chart: alt.TopLevelMixin) -> dict:
    """The Vega-Lite specification of ``chart`` as all of ours look; as wide as its place and ``_HEIGHT`` high unless it
    says otherwise."""
    # Rows of data are ours and small; Altair's own limit is for charts in notebooks.
    with alt.data_transformers.enable("default", max_rows=None):
        specification = chart.to_dict()
    specification["config"] = _CONFIG
    if "layer" in specification or "mark" in specification:
        specification = {"width": "container", "height": _HEIGHT} | specification
    return specification


def write_png(chart: alt.TopLevelMixin, path: Path) -> None:
    """Draw ``chart`` into a PNG, whole or not at all; needs no browser.

    Raises:
        OSError: there is no room, or no right to write.
    """
    specification = styled(chart)
    if specification.get("width") == "container":
        specification["width"] = _PNG_WIDTH
    picture = vl_convert.vegalite_to_png(specification, scale=_SCALE)
    with atomic_write(path) as building:
        building.write_bytes(picture)
