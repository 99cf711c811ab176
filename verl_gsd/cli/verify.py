"""``verl-gsd verify FILE``: compare answers with references, and show which rule decided about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.cli.judge_score import progress
from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from verl_gsd.evaluation.pairs import ComparedPair, Pair

#: File types of --output.
_OUTPUTS = (".jsonl", ".parquet")
#: Characters of an answer that the table shows.
_SHOWN_CHARACTERS = 60


def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .parquet, .jsonl or .csv file of responses and reference answers; a folder of verl's rollout or "
            "validation dumps; or a run's folder, whose dumps are read.",
        ),
    ],
    response_column: Annotated[
        str | None, typer.Option(help="Column with the response: a text. Default: response.")
    ] = None,
    answer_column: Annotated[
        str | None,
        typer.Option(
            help="Column of reference answers: answers, solutions with the answer in the last \\boxed{}, or verl's "
            "reward_model. Default: answer."
        ),
    ] = None,
    answers_only: Annotated[
        bool,
        typer.Option(
            "--answers-only", help="The response column has final answers, not texts with the answer in a \\boxed{}."
        ),
    ] = False,
    problem_column: Annotated[
        str | None,
        typer.Option(help="Column of problems: texts, or chats. Only an LLM verifier reads it. Default: problem."),
    ] = None,
    verifier_url: Annotated[
        str | None,
        typer.Option(
            help="URL of an LLM verifier's server, for example http://localhost:8000/v1. It is the second opinion "
            "instead of math-verify alone."
        ),
    ] = None,
    verifier_model: Annotated[str | None, typer.Option(help="The LLM verifier's name on the server.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write all verdicts, rules and second opinions to this .jsonl or .parquet file.")
    ] = None,
    show: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest number of pairs to print. If there are more, those to look at are printed: the second "
            "opinion or the run's verdict differs, or no rule was sure.",
        ),
    ] = 20,
) -> None:
    """Compare responses with reference answers by the verifier of mathematics, and print the rule that decided.

    The pairs that a second opinion decides differently are marked: math-verify alone, or an LLM.

    Examples:
        verl-gsd verify RUN
        verl-gsd verify responses.jsonl --answer-column solution --output verdicts.jsonl
    """
    from verl_gsd.evaluation.pairs import ComparedPair, PairColumns, decide_all, read_pairs
    from verl_gsd.run.trust import real_run

    try:
        real_run(file)
        ask_second = _second_opinion(verifier_url, verifier_model)
        is_llm = verifier_url is not None
        if problem_column is not None and not is_llm:
            raise ValueError(
                f"--problem-column {problem_column}: only an LLM verifier reads problems. Set --verifier-url and "
                "--verifier-model, or remove the option"
            )
        if output is not None:
            _check_output(output, file)
        columns = PairColumns(problem_column, response_column, answer_column, answers_only, with_problems=is_llm)
        pairs = read_pairs(file, columns, _print_note)
        with progress() as display:
            decided = display.add_task("compared", total=len(pairs))
            decisions = decide_all(pairs, lambda done: display.update(decided, completed=done))
            second = display.add_task("second opinion", total=len(pairs))
            opinions = ask_second(pairs, lambda done: display.update(second, completed=done))
        compared = [ComparedPair(*of_pair) for of_pair in zip(pairs, decisions, opinions, strict=True)]
        if output is not None:
            _write(output, compared)
    except (ValueError, OSError) as error:
        fail(str(error))
    except RuntimeError as error:  # the verifier did not start
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("interrupted. Run the same command again", code=130)
    _print_rules(compared)
    _print_pairs(compared, show)
    if output is not None:
        out.print(f"Wrote all verdicts to [bold]{escape(str(output))}[/].", soft_wrap=True, highlight=False)


#: Maps pairs to one verdict each (None if there is none). Its second argument is called with the number of pairs done.
_Ask = Callable[["Sequence[Pair]", Callable[[int], None]], "list[bool | None]"]


def _second_opinion(url: str | None, model: str | None) -> _Ask:
    from verl_gsd.evaluation.pairs import math_verify_all

    if (url is None) != (model is None):
        raise ValueError("--verifier-url and --verifier-model only work together. Use both, or neither")
    if url is None or model is None:
        return math_verify_all
    from verl_gsd.judge.build import served_model
    from verl_gsd.judge.scorer import Question
    from verl_gsd.judge.settings import JudgeSettings
    from verl_gsd.judge.verdicts import verify_all

    try:
        served_model(JudgeSettings.of({"base_url": url, "model": model}))  # check this before anything is compared
    except ValueError as error:
        raise ValueError(f"--verifier-url, --verifier-model: {error}") from error

    def ask(pairs: Sequence[Pair], on_done: Callable[[int], None]) -> list[bool | None]:
        questions = [Question(pair.problem, pair.reference, pair.response) for pair in pairs]
        verdicts, failures = verify_all(questions, base_url=url, model=model, on_done=on_done)
        if failures:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(failures.items()))
            _print_note(f"{failures.total()} of {len(pairs)} second opinions failed: {reasons}.")
        return verdicts

    return ask


def _print_note(note: str) -> None:
    err.print(escape(note), highlight=False, soft_wrap=True)


def _check_output(output: Path, file: Path) -> None:
    if output.suffix not in _OUTPUTS:
        raise ValueError(f"--output {output}: unknown file type. Use a name that ends in {' or '.join(_OUTPUTS)}")
    if output.resolve() == file.resolve() or file.resolve() in output.resolve().parents:
        raise ValueError(f"--output {output}: this is the input, or a file in it. Use another place")


def _print_rules(compared: Sequence[ComparedPair]) -> None:
    """One line per rule that decided: how many pairs, how many are right, and how often the second opinion differs."""
    from verl_gsd.tasks.maths import RULES

    table = Table("rule", "pairs", "right", "second opinion differs", "what it means")
    for rule, meaning in RULES.items():
        of_rule = [pair for pair in compared if pair.decision.rule == rule]
        if of_rule:
            counts = (len(of_rule), sum(pair.is_right for pair in of_rule), sum(pair.differs for pair in of_rule))
            table.add_row(rule, *map(str, counts), meaning)
    out.print(table)
    totals = Counter(name for pair in compared for name, holds in _flags(pair).items() if holds)
    out.print(
        f"{len(compared)} pairs: {totals['right']} right, {totals['unverified']} unverified and {totals['doubtful']} "
        f"doubtful (these count as wrong). The second opinion differs on {totals['differs']} and is missing for "
        f"{totals['no opinion']}.",
        highlight=False,
    )
    if any(pair.pair.rewarded is not None for pair in compared):
        out.print(f"The run had another verdict on {totals['rewarded otherwise']} pairs.", highlight=False)


def _flags(pair: ComparedPair) -> dict[str, bool]:
    return {
        "right": pair.is_right,
        "unverified": pair.decision.right is None,
        "doubtful": pair.decision.is_doubtful,
        "differs": pair.differs,
        "no opinion": pair.second is None,
        "rewarded otherwise": pair.was_rewarded_otherwise,
    }


def _print_pairs(compared: Sequence[ComparedPair], show: int) -> None:
    """All pairs if there are few; otherwise the first of those to look at, the most telling kind first."""
    wanted = list(compared)
    if len(compared) > show:
        wanted = [pair for pair in compared if pair.differs or pair.was_rewarded_otherwise or pair.is_unsure]
        wanted.sort(key=lambda pair: (not pair.differs, not pair.was_rewarded_otherwise))  # stable
    if not wanted[:show]:
        return
    with_run = any(pair.pair.rewarded is not None for pair in compared)
    table = Table("pair", "answer", "reference", "verdict", "rule", "second opinion", *(["run"] if with_run else []))
    for pair in wanted[:show]:
        answer = pair.pair.final_answer
        row = [
            pair.pair.place,
            _shorten(answer or pair.pair.response, from_end=not answer),
            _shorten(pair.pair.reference),
            "unverified" if pair.decision.right is None else _word(pair.is_right),
            pair.decision.rule,
            _word(pair.second) + (" (differs)" if pair.differs else ""),
            *([_word(pair.pair.rewarded) + (" (differs)" if pair.was_rewarded_otherwise else "")] if with_run else []),
        ]
        table.add_row(*map(escape, row))
    out.print(table)
    if len(wanted) > show:
        out.print(
            f"{len(wanted) - show} more pairs to look at. Set --show {len(wanted)}, or use --output to write all "
            "verdicts to a file.",
            highlight=False,
        )


def _word(verdict: bool | None) -> str:
    return {True: "right", False: "wrong", None: "none"}[verdict]


def _shorten(text: str, *, from_end: bool = False) -> str:
    """A text in one short line: its beginning, or its end."""
    # A response may have megabytes, so that only a part of it is split into words.
    part = " ".join((text[-4 * _SHOWN_CHARACTERS :] if from_end else text[: 4 * _SHOWN_CHARACTERS]).split())
    if len(part) <= _SHOWN_CHARACTERS:
        return part
    return f"...{part[-_SHOWN_CHARACTERS:]}" if from_end else f"{part[:_SHOWN_CHARACTERS]}..."


def _write(path: Path, compared: Sequence[ComparedPair]) -> None:
    """Write one row per pair atomically."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_gsd.writing import atomic_write

    rows = [
        {
            "pair": pair.pair.place,
            "response": pair.pair.response,
            "answer": pair.pair.final_answer,
            "reference": pair.pair.reference,
            "right": pair.is_right,
            "unverified": pair.decision.right is None,
            "doubtful": pair.decision.is_doubtful,
            "rule": pair.decision.rule,
            "second_opinion": pair.second,
            "differs": pair.differs,
            "run_verdict": pair.pair.rewarded,
        }
        for pair in compared
    ]
    with atomic_write(path) as temporary:
        if path.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
            return
        flags, verdicts = ("right", "unverified", "doubtful", "differs"), ("second_opinion", "run_verdict")
        schema = pa.schema([(name, pa.bool_() if name in (*flags, *verdicts) else pa.string()) for name in rows[0]])
        # Arrow stores UTF-8, which has no halves of surrogate pairs.
        encodable = [
            {
                name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                for name, value in row.items()
            }
            for row in rows
        ]
        pq.write_table(pa.Table.from_pylist(encodable, schema), temporary, compression="zstd")
