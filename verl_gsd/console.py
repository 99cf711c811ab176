"""The consoles that all commands print to, and the function that ends a command with an error."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NoReturn, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

#: Sequences that colour text. They are left out: a log full of colours is easier to read without their escapes.
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
#: Characters that a terminal obeys instead of showing: control characters except the line feed and the tab (among them
#: ESC and the C1 codes, which begin sequences that move the cursor or fill the clipboard), characters that change the
#: direction of text or end a line, halves of surrogate pairs, which cannot be encoded, and two that XML does not allow.
_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""``text`` without colours, and with each character that a terminal would obey as its escape, such as ``\x1b``."""
    without_colours = _COLOURS.sub("", text)
    return _NOT_SHOWN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), without_colours)


class VisibleStream:
    """A text stream that shows control sequences as text, except for a carriage return with which a write begins.

    Progress bars of libraries begin with one, to replace what they printed before. All other attributes are those of
    the wrapped stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self.wrapped = stream

    def write(self, text: str) -> int:
        """Write ``text`` as ``visible`` shows it; returns the number of characters in ``text``."""
        rest = text.removeprefix("\r")
        self.wrapped.write(text[: len(text) - len(rest)] + visible(rest))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def protect_stderr() -> None:
    """Show control sequences in everything that this process writes to ``sys.stderr`` from now on.

    Libraries log there, and so do warnings and tracebacks. They quote other people's files, for example a value in a
    model's config. What native code or another process writes to the same terminal is not changed.
    """
    if not isinstance(sys.stderr, VisibleStream):
        sys.stderr = VisibleStream(sys.stderr)  # type: ignore[assignment]


class SafeConsole(Console):
    """A console that shows control sequences as text.

    Names and texts that commands print come from other people's files, models and clusters. Printing them must not
    change the terminal. Rich itself strips only a few control characters.
    """

    @property
    def file(self) -> IO[str]:
        """The file that the console writes to. It is not a ``VisibleStream``, because status lines move the cursor."""
        stream = Console.file.__get__(self)
        return stream.wrapped if isinstance(stream, VisibleStream) else stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        Console.file.__set__(self, new_file)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string with markup to rich's ``Text``. The options are those of ``Console.render_str``.

        Rich calls this for all strings, also those in tables, before it measures how wide they are.
        """
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that rich can print, also of texts that rich made: statuses and bars."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


#: For the result of a command. Programs can read it.
out = SafeConsole()
#: For everything else: progress, notes, warnings and errors.
err = SafeConsole(stderr=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print ``message`` to standard error and exit with ``code``.

    Args:
        code: 2 if the user can correct the mistake, 1 if a run failed.
    """
    err.print(f"[bold red]error[/] {_escape_markup(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _escape_markup(message: str) -> str:
    from rich.markup import escape

    return escape(message)


@contextmanager
def without_messages(logger: str) -> Iterator[None]:
    """Hide warnings of a library's logger, for example torch's about process groups when a checkpoint is only read."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
