"""Renders one self-contained HTML file: text, tables, charts and the library that draws them (page.html.jinja).

Jinja escapes all text, including data: a page may show text of a policy or a judge, which must not become HTML. Control
characters are shown as on a terminal (``console.visible``). The page's security policy names its scripts by their
hashes, so that a browser runs no other script.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import jinja2
import vl_convert

from verl_gsd.charts.parts import Section
from verl_gsd.charts.theme import PAGE_COLOURS, styled
from verl_gsd.console import visible
from verl_gsd.writing import atomic_write


def render_page(title: str, sections: Sequence[Section], *, refresh: int | None = None) -> str:
    """Return the HTML of a page.

    Args:
        refresh: seconds after which the browser reloads the page; None for never.

    Raises:
        ValueError: two sections or panels share a name.
    """
    names = [name for section in sections for name in (section.name, *(panel.name for panel in section.panels))]
    if len(set(names)) < len(names):
        raise ValueError(f"sections {names}: two have the same name. Give each section and panel its own name")
    return _template().render(title=title, sections=sections, refresh=refresh)


def write_page(path: Path, title: str, sections: Sequence[Section], *, refresh: int | None = None) -> None:
    """Write the rendered page to ``path``, atomically.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    content = render_page(title, sections, refresh=refresh)
    with atomic_write(path) as building:
        building.write_text(content, encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # What is not plain text is markup of ours, or a number.
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["to_vega"] = _to_vega
    environment.filters["sha256"] = _sha256
    environment.globals["chart_colours"] = PAGE_COLOURS
    environment.globals["style"] = _read("page.css")
    environment.globals["scripts"] = {"scheme": _read("scheme.js"), "vega": _library(), "page": _read("page.js")}
    return environment.get_template("page.html.jinja")


def _to_vega(chart: alt.TopLevelMixin) -> tuple[dict, int | None]:
    """Return the Vega specification of ``chart``, and its height in pixels if it has a fixed one.

    Compiled here, because a browser draws Vega in 75% of the time that it needs for Vega-Lite.
    """
    specification = styled(chart)
    height = specification.get("height")
    vega = vl_convert.vegalite_to_vega(json.dumps(specification, allow_nan=False))
    return vega, height if isinstance(height, int) else None


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    """The hash of a script as a security policy has it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _library() -> str:
    """Return Vega, Vega-Lite and vega-embed as the text of a script element."""
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    return bundle.replace("</script", "<\\/script")
