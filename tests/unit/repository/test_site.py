"""The documentation site: it builds without warnings, loads nothing from elsewhere, and its reference is complete."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import typer
from messages_of_code import HOLE, texts
from places import ROOT

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.cli.main import app

#: Attributes from which a browser loads something by itself. A link that a reader may follow is none of them.
LOADING = {"src", "srcset", "poster", "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def reference():
    """The module that makes the reference pages."""
    specification = importlib.util.spec_from_file_location("reference_pages", ROOT / "scripts" / "reference_pages.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a browser loads for a page, and the texts of its paragraphs."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.paragraphs, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in LOADING or (tag == "link" and name == "href") or (name, tag) == ("href", "use"):
                self.loaded.append(value)
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "p"

    def handle_data(self, data):
        if self._inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def pages(site):
    """Path below the site -> the page."""
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_a_browser_loads_nothing_from_other_servers(site, pages):
    found = [(name, url) for name, page in pages.items() for url in page.loaded if re.match(r"(https?:)?//", url)]
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"url\(['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", sheet.read_text(encoding="utf-8"))
        found += [(sheet.name, url) for pair in loaded for url in pair if re.match(r"(https?:)?//", url)]
    assert found == []
    assert len(pages) > 40


def test_the_search_for_loaded_files_finds_them():
    page = Page('<script src="//a/b.js"></script><link href="https://a"><img src=c.png><a href="https://d">e</a>')
    assert page.loaded == ["//a/b.js", "https://a", "c.png"]


def test_no_list_or_table_is_shown_as_a_paragraph(pages):
    """Markdown takes a list that follows a line of text for more text."""
    broken = re.compile(r"^(?:[-*] |\d+\. |\|.*\|$|#{1,4} |```)", re.MULTILINE)
    found = [(name, text) for name, page in pages.items() for text in page.paragraphs if broken.search(text)]
    assert found == []


def test_every_page_is_in_the_navigation(site, pages):
    home = (site / "index.html").read_text(encoding="utf-8")
    missing = [name for name in pages if name != "404.html" and f'href="{name}"' not in home]
    assert missing == []


def commands(group, context):
    """(full name, its long options) of all commands, without what is hidden."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = command.context_class(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from commands(command, inner)
        elif not command.hidden:
            shown = [one for one in command.params if not getattr(one, "hidden", False)]
            yield inner.command_path, [option for one in shown for option in one.opts if option[:2] == "--"]


def test_the_page_of_commands_has_every_command_and_option(reference):
    root = typer.main.get_command(app)
    page = reference.commands_page()
    sections = dict(re.findall(r"^### (.+)\n((?:(?!###? ).*\n)*)", page, re.MULTILINE))
    found = dict(commands(root, root.context_class(root, info_name="verl-gsd")))
    assert len(found) > 15 and "verl-gsd lab train" in found
    for name, options in found.items():
        missing = [option for option in options if option != "--help" and option not in sections[name]]
        assert not missing, name


def test_help_texts_become_markdown(reference):
    text = "Two\nlines about a_b.\n\n\b\nExamples:\n  verl-gsd train algo=grpo\n  verl-gsd plan\n\nThe end."
    lines = [line for line in reference._prose(text) if line]
    commands = ["verl-gsd train algo=grpo", "verl-gsd plan"]
    assert lines == [r"Two lines about a\_b.", "Examples:", "```bash", *commands, "```", "The end."]


def test_the_page_of_settings_has_every_key_of_every_section(reference):
    sections = dict(
        re.findall(r"^## algorithm\.gsd\.(\S+)\n((?:(?!## ).*\n)*)", reference.settings_page(), re.MULTILINE)
    )
    ours = [declaration for declaration in extension.declarations() if extension.is_ours(declaration)]
    assert sections.keys() == {"limits", *(declaration.name for declaration in ours)}
    for declaration in ours:
        for key in extension.load(declaration.settings).model_fields:
            (row,) = re.findall(rf"^\| `{key}` \|(.*)\|$", sections[declaration.name], re.MULTILINE)
            assert all(cell.strip() for cell in row.split(" | ")), f"{declaration.name}.{key} lacks a text: {row}"
    assert "`3`" in sections["dagrpo"], "the value of the file, not that of the model"
    assert "`algo=hadw`" in sections["hadw"] and "`budget=adaptive`" in sections["budget"]


def test_the_page_of_choices_has_every_file(reference):
    page = reference.choices_page()
    for group in groups.GROUPS:
        if group != "recipe":
            for name in groups.choices(group):
                assert f"### {group}={name}\n" in page
    assert {*reference.GROUPS, "recipe"} == set(groups.GROUPS)


def test_the_page_of_figures_has_every_declared_name(reference):
    page = reference.figures_page()
    for declaration in extension.declarations():
        names = [one.name for one in (*declaration.record_columns, *declaration.step_figures)]
        names += (
            [name for chart in declaration.report.charts for name in chart.lines.values()] if declaration.report else []
        )
        assert [name for name in (*names, *declaration.histograms) if f"`{name}`" not in page] == []


def test_every_folder_of_recipes_has_a_page(reference):
    folders = {path.parent.name for path in ROOT.glob("recipes/*/README.md")}
    assert {*folders, ""} == set(reference.RECIPES)
    assert "](../hardware.md)" in reference.recipe_page("") and "](index.md)" in reference.recipe_page("gsd")


def quoted():
    """(line, fragments between the dots) of every message of ours that the page on troubleshooting quotes."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for block in re.findall(r'```text title="verl-gsd"\n(.*?)```', page, re.DOTALL):
        for line in filter(None, map(str.strip, block.splitlines())):
            yield line, [part.strip() for part in line.split("...") if part.strip(" .:=(),")]


def test_messages_that_the_page_on_troubleshooting_quotes_are_in_the_code():
    ours = [" ".join(of.text.split()).replace(HOLE, "...") for of in texts()]
    assert len(list(quoted())) > 8
    for line, parts in quoted():
        assert any(all(part in text for part in parts) for text in ours), line


def test_pages_fit_a_telephone_and_a_desk(site, browser):
    """Nothing but a table, which scrolls by itself, is wider than the window, and no line of code is cut."""
    cut = "[...document.querySelectorAll('pre > code')].filter(code => code.scrollWidth > code.clientWidth).length"
    for width in (400, 1280, 1400):
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine
        requested = []
        page.on("request", lambda request, requested=requested: requested.append(request.url))
        names = ("index", "switching", "reference/settings", "reference/api", "algorithms/gvpo", "troubleshooting")
        for name in (*names, "start/laptop"):
            page.goto(f"{(site / name).as_uri()}.html")
            assert page.evaluate(cut) == 0, (name, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            assert page.locator("h1").count() == 1
        assert requested and all(url.startswith(("file:", "data:")) for url in requested)
        context.close()
