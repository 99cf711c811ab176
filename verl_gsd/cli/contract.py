"""``verl-gsd contract``: lists what this package assumes of verl and what of it no longer holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_gsd.console import fail, out


def contract(
    checkout: Annotated[
        Path | None,
        typer.Option("--verl", help="A checkout of verl to check instead of the installed one.", show_default=False),
    ] = None,
) -> None:
    """Check whether verl still has all classes, functions, parameters and config keys that verl-gsd uses.

    Examples:
        verl-gsd contract
        verl-gsd contract --verl ~/verl
    """
    from verl_gsd.run import verl_contract

    if checkout is not None and not (checkout / "verl" / "__init__.py").is_file():
        fail(f"--verl {checkout}: no package verl in this folder. Set it to the root of a checkout of verl.")
    source = verl_contract.source_of(checkout)
    if not source.is_read("verl"):
        fail("verl is not installed. Install it, or set --verl to a checkout of it.")
    names, keys = verl_contract.assumptions(), verl_contract.config_keys()
    expected = [*names, *keys]
    broken = [*verl_contract.check(source, names), *verl_contract.check_config(source, keys)]
    name = f"verl {verl_contract.version_in(source)}"
    if not broken:
        out.print(f"{name}: all {len(expected)} assumptions hold.", highlight=False)
        return
    lines = [f"{name}: {len(broken)} of {len(expected)} assumptions do not hold."]
    lines += [f"  {one.assumption}: {one.problem} (used in {one.assumption.used_in})" for one in broken]
    if any(one.assumption.stops_runs for one in broken):
        lines.append("Runs that use verl-gsd are rejected with this verl. Runs that do not use it are not affected.")
    else:
        lines.append(
            "verl-gsd does not reject runs with this verl. What the files above do may fail or have no effect."
        )
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
