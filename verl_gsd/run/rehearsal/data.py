"""Writes the data of a rehearsal: short prompts from the first rows of each file, with all their columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run.checks.data_files import files_of, prompt_column
from verl_gsd.run.checks.data_reading import DataFile, DataReport, open_files, without_progress_bars
from verl_gsd.run.checks.data_sources import reads_ground_truth
from verl_gsd.run.rehearsal.seeded_rewards import KINDS, kind_of_prompt
from verl_gsd.writing import atomic_write

#: The rows at the start of each file among which a rehearsal chooses, and whose references it checks.
FIRST_ROWS = 128
#: Rows per validation file.
VALIDATION_ROWS = 4

#: The number of tokens of a chat, or the reason why the chat template rejects it.
Count = Callable[[Sequence[list[dict[str, Any]]]], list[int | str]]


@dataclass(frozen=True)
class RehearsalData:
    """The written data.

    Attributes:
        files: one Parquet file per file of the run, or the files of the run if its own dataset class reads them.
        rows: the rows in them that the rehearsal uses.
        read: the first rows of the run's files, from which the others were chosen.
        prompt_tokens: length of the longest prompt in ``rows``.
        demonstration_tokens: length of the longest demonstration in ``rows``; 0 if there is none.
        samples: limit of rows for the run's own dataset class; -1 for none.
    """

    files: tuple[str, ...]
    rows: list[dict[str, Any]]
    read: list[dict[str, Any]]
    prompt_tokens: int
    demonstration_tokens: int
    samples: int = -1


def write_rows(
    config: DictConfig,
    key: str,
    folder: Path,
    count: int,
    prompt_lengths: Count,
    text_length: Callable[[str], int],
) -> RehearsalData:
    """Choose ``count`` rows with the shortest prompts and demonstrations, in the order of the files, and write them.

    A prompt that the file has twice is chosen once if there are enough others. Records then tell visits apart.

    Args:
        config: the resolved config of the run.
        key: ``data.train_files`` or ``data.val_files``.
        count: rows from all files together; fewer if the files have fewer.
        prompt_lengths: counts the tokens of prompts.
        text_length: counts the tokens of a text.

    Raises:
        ConfigError: a file cannot be read, or the chat template rejects all its prompts.
    """
    report = DataReport()
    column, demonstration = prompt_column(config), demonstration_column(config)
    files, chosen, read, longest_prompt, longest_demonstration = [], [], [], 0, 0
    with without_progress_bars():
        opened = list(open_files(key, config, None, report))
    if report.problems:
        raise ConfigError("\n".join(report.problems))
    if not opened:
        raise ConfigError("\n".join(message.text for message in report.messages))
    per_file = -(-count // len(opened))
    for number, file in enumerate(opened):
        rows = _first_rows(file)
        lengths = prompt_lengths([row[column] for row in rows])
        shown = [text_length(_demonstration(row.get(demonstration))) if demonstration else 0 for row in rows]
        usable = [place for place, length in enumerate(lengths) if isinstance(length, int)]
        if not usable:
            raise ConfigError(f"{file}: the chat template rejects every prompt: {lengths[0]}. Use another template.")
        first = {str(rows[place][column]): place for place in reversed(usable)}
        # A demonstration counts for more, because it also is what the limit of responses must hold.
        usable.sort(
            key=lambda place: (first[str(rows[place][column])] != place, int(lengths[place]) + 2 * shown[place])
        )
        places = sorted(usable[:per_file])
        path = folder / f"{key.rpartition('.')[2]}_{number}.parquet"
        schema = file.features.arrow_schema
        with atomic_write(path) as temporary:
            pq.write_table(pa.Table.from_pylist([rows[place] for place in places], schema), temporary)
        files.append(str(path))
        chosen += [rows[place] for place in places]
        read += rows
        longest_prompt = max(longest_prompt, *(int(lengths[place]) for place in places))
        longest_demonstration = max(longest_demonstration, *(shown[place] for place in places))
    return RehearsalData(tuple(files), chosen, read, longest_prompt, longest_demonstration)


def rows_of_own_dataset(
    config: DictConfig, key: str, count: int, prompt_lengths: Count, text_length: Callable[[str], int], tokenizer: Any
) -> RehearsalData:
    """The rows of the user's own dataset class (data.custom_cls), which reads the run's files with ``count`` as limit.

    Args:
        config, key, count, prompt_lengths, text_length: as in ``write_rows``.
        tokenizer: passed to the class.

    Raises:
        ConfigError: the class cannot be built, ignores the limit of a large data set, draws rows without a seed, or its
            rows lack an entry that the run reads.
    """
    from verl.utils.dataset.rl_dataset import get_dataset_class

    name = f"data.custom_cls.path={config.data.custom_cls.path}"
    if config.data.get("shuffle") and config.data.get("seed") is None:
        raise ConfigError(
            f"data.seed=null: with {name}, a rehearsal measures rows that the class draws, and the run must draw the "
            "same ones. Set data.seed=1."
        )
    files, demonstration = files_of(config, key), demonstration_column(config)
    try:
        with without_progress_bars():
            dataset = get_dataset_class(config.data)(
                data_files=files, tokenizer=tokenizer, processor=None, config=config.data.copy(), max_samples=count
            )
            total = len(dataset)
            rows = [dict(dataset[number]) for number in range(min(total, max(count, FIRST_ROWS)))]
    except Exception as error:  # the user's class can raise any error
        raise ConfigError(
            f"{name}: the class raised {type(error).__name__}: {str(error)[:200]} for {key}. Correct the class or the "
            "data."
        ) from error
    if not rows:
        raise ConfigError(f"{name}: the class has no rows for {key}. Check the files, and which prompts it leaves out.")
    if total > len(rows):
        raise ConfigError(
            f"{name}: the class has {total} rows, although its argument max_samples was {count}. Let it keep "
            f"max_samples rows as verl's RLHFDataset does, or rehearse with {key} of at most {FIRST_ROWS} rows."
        )
    required = ("raw_prompt", *(("data_source", "reward_model") if reads_ground_truth(config) else ()))
    if missing := [entry for entry in required if any(entry not in row for row in rows)]:
        raise ConfigError(
            f"{name}: rows have no entry {', '.join(missing)}, which verl reads. Return it from the class."
        )
    lengths = prompt_lengths([row["raw_prompt"] for row in rows])
    if rejected := [length for length in lengths if not isinstance(length, int)]:
        raise ConfigError(f"{name}: the chat template rejects a prompt of the class: {rejected[0]}.")
    shown = [text_length(_demonstration(row.get(demonstration))) if demonstration else 0 for row in rows]
    return RehearsalData(tuple(files), rows, rows, max(map(int, lengths)), max(shown), count)


def demonstration_column(config: DictConfig) -> str | None:
    """The column of demonstrations; None if the run reads none."""
    for section in (OmegaConf.select(config, "algorithm.gsd") or {}).values():
        settings = section.get("demonstrations") if isinstance(section, DictConfig) else None
        if settings is not None and settings.source != "self":
            return str(settings.column)
    return None


def balanced_seed(rows: Sequence[dict[str, Any]]) -> int:
    """The first seed with which the kinds of prompts are as even as possible among ``rows``."""

    def fewest(seed: int) -> int:
        kinds = [kind_of_prompt(seed, row.get("data_source", ""), _truth(row), row.get("extra_info")) for row in rows]
        return min(map(kinds.count, KINDS))

    return max(range(64), key=fewest)


def _truth(row: dict[str, Any]) -> Any:
    return (row.get("reward_model") or {}).get("ground_truth")


def _first_rows(file: DataFile) -> list[dict[str, Any]]:
    return next(file.rows(file.columns))[:FIRST_ROWS]


def _demonstration(value: Any) -> str:
    """The first demonstration of a row; empty if it has none."""
    texts = [value] if isinstance(value, str) else list(value or ())
    return str(texts[0]) if texts else ""
