"""The lab's table of algorithms: the dial and DAPO, and the rows that extensions declare (``Declaration.lab``)."""

from __future__ import annotations

from collections.abc import Mapping

from verl_gsd import extension
from verl_gsd.bernoulli import (
    REDRAWS,
    ROUNDS,
    Algorithm,
    SameAlgorithm,
    dial_update,
    one_group_per_prompt,
    redraw_silent_groups,
    replace_silent_groups,
)
from verl_gsd.dial_settings import check_dial_settings


def _dial(alpha: float, about: str) -> Algorithm:
    return Algorithm("dial", about, one_group_per_prompt, lambda logit, generator: dial_update(alpha))


_ROWS: Mapping[str, Algorithm | SameAlgorithm] = {
    "grpo": _dial(1.0, "Divides by sigma: a prompt's logit moves by its group's sigma."),
    "dr_grpo": _dial(
        0.0, "Does not divide: a prompt's logit moves by sigma squared, least where responses nearly agree."
    ),
    "alpha=0.5": _dial(0.5, "The dial half-way between GRPO and Dr. GRPO."),
    "alpha=2": _dial(2.0, "The dial at which every mixed group has the same weight, 1 right of 8 like 4 of 8."),
    "dapo": Algorithm(
        "dapo",
        f"GRPO on mixed groups alone: each silent group is replaced by a group of another prompt, in {ROUNDS} rounds "
        "at most. DAPO's clips have no effect here, because each batch is used once.",
        replace_silent_groups,
        lambda logit, generator: dial_update(1.0),
    ),
    "dapo_redraw": Algorithm(
        "dapo",
        f"The paper's reading of DAPO: a silent group is drawn again from the same prompt, {REDRAWS} draws at most. "
        "This multiplies a prompt's weight by its number of draws, and most draws go to prompts already mastered.",
        redraw_silent_groups,
        lambda logit, generator: dial_update(1.0),
    ),
    "gspo": SameAlgorithm(
        "a sequence of one token has the token's ratio, which is 1 where each batch is used once", use="grpo"
    ),
    "gsd": SameAlgorithm("it is the dial at the alpha that you choose", use="alpha=X, for example alpha=0.5"),
}


def algorithms() -> dict[str, Algorithm]:
    """All algorithms by name, in the order of tables: ours, then those of other packages.

    Raises:
        ValueError: an extension declares a name that is taken.
    """
    return {name: row for name, row in _rows().items() if isinstance(row, Algorithm)}


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; ``alpha=X`` is the dial at any X.

    Raises:
        ValueError: there is no such algorithm, or its run would repeat another algorithm's run.
    """
    rows = _rows()
    row = rows.get(name)
    if isinstance(row, Algorithm):
        return row
    if row is not None:
        raise ValueError(f"{name}: {row.reason}. Use {row.use}.")
    key, _, value = name.partition("=")
    if key == "alpha":
        try:
            alpha = float(value)
            check_dial_settings(alpha, 0, 0.0)
        except ValueError as error:
            raise ValueError(f"{name}: X in alpha=X is not a finite number. Use, for example, alpha=0.5.") from error
        return _dial(alpha, f"The dial at alpha {alpha:g}: a prompt's logit moves by sigma to the power {2 - alpha:g}.")
    known = ", ".join(algorithms())
    raise ValueError(f"{name}: no such algorithm. Use one of {known}, or alpha=X for the dial at any X.")


def families() -> list[str]:
    """All families, in the order of their first algorithms: a family's place is that of its colour."""
    return list(dict.fromkeys(row.family for row in algorithms().values()))


def _rows() -> dict[str, Algorithm | SameAlgorithm]:
    # The chain's last first, as the tables have always been; other packages follow.
    in_order = sorted(
        extension.declarations(),
        key=lambda declaration: (not extension.is_ours(declaration), -declaration.order, declaration.name),
    )
    rows, owners = dict(_ROWS), dict.fromkeys(_ROWS, "verl_gsd.lab")
    for declaration in in_order:
        if declaration.lab is None:
            continue
        for name, row in extension.call_declared(declaration, "lab").items():
            if name in rows:
                raise ValueError(
                    f"extension {declaration.name!r}: {declaration.lab} has a row {name}, which {owners[name]} has "
                    "already. Rename one of the two."
                )
            rows[name], owners[name] = row, declaration.lab
    return rows
