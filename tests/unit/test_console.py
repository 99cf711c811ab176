"""What commands print: control characters in names and texts of others reach no terminal."""

import io
import re

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from verl_gsd import console
from verl_gsd.console import SafeConsole, visible

#: Fills the clipboard, clears the screen, begins a C1 sequence, overwrites the line, and turns the text around.
HOSTILE = "a\x1b]52;c;cm0gLXJmIH4K\x1b\\ \x1b[2J \x9b2J \r \x07 \u202egnp \u2066 \u2028 \x7f \ud800 z"
#: The same for a reader.
SHOWN = r"a\x1b]52;c;cm0gLXJmIH4K\x1b\ \x1b[2J \x9b2J \r \x07 \u202egnp \u2066 \u2028 \x7f \ud800 z"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printed(show):
    """What a console without colours writes to its file."""
    file = io.StringIO()
    show(SafeConsole(file=file, width=300))
    return file.getvalue()


def test_what_a_terminal_obeys_is_shown_and_colours_are_left_out():
    assert visible(HOSTILE) == SHOWN
    assert visible("\x1b[1;31mred\x1b[0m, 3 \N{MULTIPLICATION SIGN} 4,\n\tλ 日本 🙂") == "red, 3 × 4,\n\tλ 日本 🙂"


@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_no_text_reaches_the_terminal_with_a_control_character(text):
    shown = visible(text)
    assert not OBEYED.search(shown) and visible(shown) == shown
    shown.encode()
    if not OBEYED.search(text) and text.isprintable():
        assert shown == text


def test_strings_tables_and_titles_are_safe():
    def show(out):
        out.print(HOSTILE, markup=False)
        table = Table(escape(HOSTILE), title=escape(HOSTILE), caption=escape(HOSTILE))
        table.add_row(escape(HOSTILE))
        out.print(table)

    text = printed(show)
    assert not OBEYED.search(text) and text.count(SHOWN) == 5, text


def test_a_status_is_safe_and_rich_still_moves_the_cursor():
    file = io.StringIO()
    terminal = SafeConsole(file=file, width=300, force_terminal=True, color_system=None)
    with terminal.status(escape("\x1b]0;title\x9c \u202e")):
        pass
    text = file.getvalue()
    assert r"\x1b]0;title\x9c \u202e" in text and "\x1b]" not in text
    assert "\x1b[?25l" in text, "rich hides the cursor"


def test_an_error_is_safe_and_its_brackets_are_no_markup(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "err", SafeConsole(file=file, width=300))
    with pytest.raises(typer.Exit):
        console.fail(f"{HOSTILE} maths[/hard]")
    assert file.getvalue() == f"error {SHOWN} maths[/hard]\n"
