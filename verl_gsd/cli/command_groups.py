"""Groups of commands, ours and those that extensions declare (``Declaration.commands``), and how their help is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup

from verl_gsd.console import err, protect_stderr

if TYPE_CHECKING:
    from verl_gsd.extension import Declaration


def add_command(app: typer.Typer, function: Callable[..., Any], name: str | None = None, **options: Any) -> None:
    """Add a command whose help is the function's docstring, with its examples at the end.

    Args:
        name: of the command. Default: that of the function.
        options: of ``typer.Typer.command``.
    """
    app.command(name, **help_and_examples(function), **options)(function)


def help_and_examples(function: Callable[..., Any]) -> dict[str, str]:
    """The options ``help`` and ``epilog`` of a command, from the docstring of its function.

    The docstring may end with a section ``Examples:`` that has one command per line.
    """
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
    return {"help": text, "epilog": epilog(*examples.splitlines())}


def epilog(*examples: str) -> str:
    """The end of a help with examples; empty without any. Typer keeps only ends of paragraphs."""
    return "\n\n".join(["Examples:", *(example.strip() for example in examples)]) if examples else ""


class CommandGroup(TyperGroup):
    """A group of commands to which extensions add theirs.

    It imports declarations and declared commands when they are needed: for help, for completion, and to run a command
    that is not ours.

    Attributes:
        group: of the commands that belong here: ``judge`` for ``judge NAME``; empty for a name without spaces.
        declared_after: help lists the declared commands after this one of ours.
        declared_panel: the panel of the declared commands in help. None: the panel of commands without one.
    """

    group: ClassVar[str] = ""
    declared_after: ClassVar[str]
    declared_panel: ClassVar[str | None] = None

    def list_commands(self, ctx: Any) -> list[str]:
        """Our commands in the order of ``extension.COMMANDS``, and those that extensions declare."""
        from verl_gsd.extension import COMMANDS

        ours = sorted(super().list_commands(ctx), key=COMMANDS[self.group].index)
        place = ours.index(self.declared_after) + 1
        return [*ours[:place], *self._declared(), *ours[place:]]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self._load(cmd_name)

    def _declared(self) -> dict[str, tuple[Declaration, str]]:
        """Name within this group -> extension, and where its function is."""
        from verl_gsd import extension

        commands = {}
        for declaration in extension.declarations():
            for command, place in declaration.commands.items():
                group, _, name = command.rpartition(" ")
                if group == self.group:
                    commands[name] = declaration, place
        return commands

    def _load(self, name: str) -> Any:
        """A declared command; None if there is no such command or another package's function cannot be loaded."""
        from verl_gsd import extension

        declared = self._declared()
        if name not in declared:
            return None
        declaration, place = declared[name]
        app = typer.Typer(add_completion=False)
        try:
            add_command(app, extension.load(place), name, rich_help_panel=self.declared_panel)
            return typer.main.get_command(app)
        except Exception as error:  # another package's module may raise anything
            if extension.is_ours(declaration):
                raise
            problem = f"extension {declaration.name!r}: its command {place} could not be loaded: {error!r}"
            err.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
            return None


class MainCommands(CommandGroup):
    """``verl-gsd NAME``."""

    declared_after = "stop"
    declared_panel = "Commands of algorithms"

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line. The arguments are those of ``TyperGroup.main``."""
        protect_stderr()
        return super().main(*arguments, **options)


class LabCommands(CommandGroup):
    """``verl-gsd lab NAME``."""

    group = "lab"
    declared_after = "train"


class JudgeCommands(CommandGroup):
    """``verl-gsd judge NAME``."""

    group = "judge"
    declared_after = "score"
