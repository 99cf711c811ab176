"""What every page carries: its style, the library that draws charts, and the lines that call it."""

from __future__ import annotations

import functools

import vl_convert

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: white; margin: 0 auto; max-width: 1100px;
  padding: 0 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; } h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 75ch; }
nav { font-size: .9rem; line-height: 2; } nav a { margin-right: 1rem; }
a { color: #0060a0; }
.chart { width: 100%; min-height: 40px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2rem;
  margin-top: 1rem; }
.panels > * { min-width: 0; }
.notice { border-left: 4px solid #d55e00; background: #fdf5ef; padding: .6rem 1rem; margin: .75rem 0; }
.notice p { margin: .25rem 0; }
code { font: .9em/1.6 ui-monospace, monospace; background: #f1f1f1; padding: .1rem .35rem;
  margin: .15rem 0; display: inline-block; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e5e5e5; }
th { font-weight: 600; white-space: nowrap; }
caption { text-align: left; }
details > summary { cursor: pointer; }
"""

# One after the other, from above, so that text stands and can be scrolled meanwhile. The mark says when the last chart
# stood: a browser's test waits for it.
DRAW = """
(async () => {
  for (const place of document.querySelectorAll(".chart")) {
    await new Promise(resolve => setTimeout(resolve));
    const specification = JSON.parse(document.getElementById(place.dataset.of).textContent);
    await vegaEmbed(place, specification, { actions: false, renderer: "svg" })
      .catch(error => { place.textContent = "This chart could not be drawn: " + error; console.error(error); });
  }
  performance.mark("drawn");
})();
"""


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and what puts them into a page: as text of a script element."""
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub does not know the default
    return bundle.replace("</script", "<\\/script")
