"""Prepares one data set: reads all its splits, leaves evaluation problems out of training, and writes a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from verl_gsd.preparation import manifest
from verl_gsd.preparation.build import FilterRules, SplitBuilder
from verl_gsd.preparation.chats import ChatTemplate
from verl_gsd.preparation.item import turns
from verl_gsd.preparation.manifest import FORMAT, LEFT_OUT, PreparedDataset
from verl_gsd.preparation.overlap import OverlapIndex
from verl_gsd.preparation.reading import Origin, locate, read_rows, sha256
from verl_gsd.preparation.sources import MATHS, Row, Source
from verl_gsd.writing import atomic_write

#: The distance between the first indices of the two splits, whose indices must differ.
SPLIT_STRIDE = 1 << 32
#: Holds the hashes of new files while they are moved into place, before the manifest is written.
_INSTALLING = ".taking_up.json"

#: The files whose problems a split must not contain, and the suffix after each problem, per data set.
_EvaluationFiles = dict[str, tuple[Path, str]]


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and how.

    Attributes:
        name: the name of the data set's folder, and the ``data_source`` of its rows.
        source: where the rows come from, and how they are read.
        data_folder: the folder of all prepared data sets.
        input_path: a file or folder that is read instead of the hub.
        model: its chat template is applied to every prompt; None skips the checks of the template and of lengths.
        max_prompt_tokens: the longest training prompt that is kept; None for no limit.
        evaluation_sets: prepared data sets whose test problems are left out of training, in addition to the data set's
            own test split; None leaves nothing out.
        overlap_words: words per run that a training problem and an evaluation problem share.
        skip_unusable: count rows without a problem or an answer instead of raising an error.
    """

    name: str
    source: Source
    data_folder: Path
    input_path: Path | None = None
    model: str | None = None
    max_prompt_tokens: int | None = None
    evaluation_sets: Sequence[PreparedDataset] | None = ()
    overlap_words: int = 13
    skip_unusable: bool = False


def prepare_dataset(
    config: PrepareConfig, on_chunk: Callable[[str, int, int], None]
) -> tuple[PreparedDataset, str | None]:
    """Prepare all splits of ``config.source``.

    Splits that an earlier call made from the same source with the same settings are kept, and so are splits that the
    source does not have.

    Args:
        on_chunk: called with the split and the numbers of rows read and kept so far.

    Returns:
        The data set, and the first prompt as the model reads it (None without a model).

    Raises:
        ValueError: the source cannot be read, or a row cannot be used. Existing files are unchanged, and the finished
            chunks stay, so that the same call resumes.
        OSError: the disk is full or not writable.
    """
    folder = config.data_folder / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        earlier = manifest.read_manifest(folder)
        _check_no_foreign_files(folder, earlier, config.source)
        split_entries = dict(earlier.splits) if earlier else {}
        template = ChatTemplate(config.model) if config.model else None
        origins = {split: locate(config.source, config.input_path, split) for split in config.source.splits}
        builders: dict[str, SplitBuilder] = {}
        files: dict[str, Path] = {}
        # The test split comes first, because its problems are left out of training.
        for split in sorted(config.source.splits, key=lambda split: split != "test"):
            evaluation_files = _evaluation_files(config, split, files, earlier)
            settings = _settings(config, origins[split], template, evaluation_files)
            if earlier is not None and _is_up_to_date(earlier, split, settings):
                files[split] = earlier.file(split)
                continue
            # Only a user's table has indices of its own. Ours never clash between splits.
            reserved = _indices_of_other_split(earlier, split) if config.source.column_roles else set()
            builder = _builder(config, split, origins[split], template, evaluation_files, settings, reserved)
            builders[split] = builder
            files[split] = builder.build(_row_reader(config.source, origins[split]), partial(on_chunk, split))
            split_entries[split] = settings | _counts_entry(config, split, builder, files[split])
        first_prompt = template.text(_first_prompt(files[min(files)])) if template else None
        dataset = PreparedDataset(folder, split_entries)
        _install(dataset, files, builders)
        return dataset, first_prompt


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise ValueError(
            f"{folder}: another process is preparing this data set. Run the command again when it has ended"
        ) from None


def _check_no_foreign_files(folder: Path, earlier: PreparedDataset | None, source: Source) -> None:
    """Raise ValueError rather than overwrite a file that ``verl-gsd prepare`` did not make."""
    for split in source.splits:
        path = folder / f"{split}.parquet"
        is_ours = (earlier is not None and split in earlier.splits) or _is_half_installed(folder, split)
        if path.exists() and not is_ours:
            raise ValueError(
                f"{path}: the file exists and was not made by verl-gsd prepare. Move it, or use another NAME"
            )


def _is_up_to_date(earlier: PreparedDataset, split: str, settings: dict[str, Any]) -> bool:
    """Whether an earlier call made ``split`` with these settings, and its file has not changed since."""
    entry = earlier.splits.get(split, {})
    if any(entry.get(name) != value for name, value in settings.items()):
        return False
    try:
        earlier.file(split)
    except ValueError:
        return False
    return True


def _evaluation_files(
    config: PrepareConfig, split: str, files: dict[str, Path], earlier: PreparedDataset | None
) -> _EvaluationFiles:
    if split == "test" or config.evaluation_sets is None:
        return {}
    own_earlier_test = [earlier] if earlier and "test" in earlier.splits and "test" not in files else []
    evaluation_files = {
        other.name: (other.file("test"), str(other.splits["test"]["suffix"]))
        for other in (*config.evaluation_sets, *own_earlier_test)
        if other.name != config.name or other is earlier
    }
    if "test" in files:
        evaluation_files[config.name] = files["test"], config.source.suffix
    return evaluation_files


def _settings(
    config: PrepareConfig, origin: Origin, template: ChatTemplate | None, evaluation_files: _EvaluationFiles
) -> dict[str, Any]:
    """Everything that a split's rows depend on, as the manifest stores it."""
    return {
        "made_by": f"verl-gsd {version('verl-gsd')}, format {FORMAT}",
        "origin": origin.describe(),
        "columns": list(config.source.columns),
        "level_column": config.source.level_column,
        "reads": config.source.column_roles,
        "verifier": config.source.verifier,
        "suffix": config.source.suffix,
        "model": config.model,
        "chat_template_sha256": template.sha256 if template else None,
        "longest_prompt": config.max_prompt_tokens,
        "overlap_words": config.overlap_words if evaluation_files else None,
        "against": {name: sha256(path) for name, (path, _) in evaluation_files.items()},
        "skip_unusable": config.skip_unusable,
    }


def _builder(
    config: PrepareConfig,
    split: str,
    origin: Origin,
    template: ChatTemplate | None,
    evaluation_files: _EvaluationFiles,
    settings: dict[str, Any],
    reserved_indices: set[int],
) -> SplitBuilder:
    overlap = OverlapIndex(config.overlap_words) if evaluation_files else None
    for name, (path, suffix) in evaluation_files.items():
        assert overlap is not None
        overlap.add(name, _problems(path, suffix))
    # Published scores are means over all rows of a test split. That of a user's table has no published scores.
    is_published = split == "test" and not config.source.column_roles
    rules = FilterRules(
        config.name,
        overlap,
        template,
        config.max_prompt_tokens,
        config.skip_unusable,
        reserved_indices,
        check_references=config.source.verifier == MATHS and not is_published,
    )
    first_index = 0 if split == "train" else SPLIT_STRIDE
    folder = config.data_folder / config.name
    return SplitBuilder(config.source, split, rules, folder, settings, origin.row_label, first_index)


def _indices_of_other_split(earlier: PreparedDataset | None, split: str) -> set[int]:
    if earlier is None:
        return set()
    files = [earlier.file(other) for other in earlier.splits if other != split]
    tables = [pq.read_table(file, columns=["extra_info"]).column(0).to_pylist() for file in files]
    return {row["index"] for table in tables for row in table}


def _row_reader(source: Source, origin: Origin) -> Callable[[int], Iterator[Row]]:
    return lambda skip: read_rows(source, origin, skip)


def _problems(path: Path, suffix: str) -> Iterator[str]:
    """The questions of a prepared file, without their options and the suffix."""
    for *earlier, last in pq.read_table(path, columns=["prompt"]).column(0).to_pylist():
        question = last["content"].removesuffix(suffix).split("\n\nA. ")[0]
        yield turns([*earlier, {"role": last["role"], "content": question}])


def _first_prompt(path: Path) -> list[dict[str, str]]:
    with pq.ParquetFile(path) as file:
        return next(file.iter_batches(1, columns=["prompt"])).to_pylist()[0]["prompt"]


def _counts_entry(config: PrepareConfig, split: str, builder: SplitBuilder, file: Path) -> dict[str, Any]:
    """The part of a split's manifest entry that the settings do not determine: row counts and the file's hash."""
    counts = builder.counts()
    if not counts.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.left_out.items() if n) or "the split is empty"
        place = config.input_path or config.source.repository
        raise ValueError(f"{place}: none of the {counts.read} rows of split {split} can be kept: {reasons}")
    return {
        "read": counts.read,
        "rows": counts.kept,
        "left_out": {reason: n for reason, n in sorted(counts.left_out.items()) if n},
        "contaminated_by_set": dict(sorted(counts.by_set.items())),
        "not_compared": counts.not_compared,
        "prompt_tokens": counts.prompt_tokens,
        "sha256": sha256(file),
    }


def _install(dataset: PreparedDataset, files: dict[str, Path], builders: dict[str, SplitBuilder]) -> None:
    """Move the new files into place and write the manifest last.

    Until then the old manifest does not match the files. ``_INSTALLING`` records that they are ours, so that the
    command can be run again after a stop in between.
    """
    for split, builder in builders.items():
        with atomic_write(dataset.folder / LEFT_OUT.format(split=split)) as building, building.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in builder.left_out_rows())
    with atomic_write(dataset.folder / _INSTALLING) as building:
        building.write_text(json.dumps({split: dataset.splits[split]["sha256"] for split in builders}))
    for split in builders:
        files[split].replace(dataset.folder / f"{split}.parquet")
    manifest.write_manifest(dataset)
    (dataset.folder / _INSTALLING).unlink()
    for builder in builders.values():
        builder.discard()


def _is_half_installed(folder: Path, split: str) -> bool:
    """Whether a call that was stopped before it wrote the manifest moved the file of ``split`` into place."""
    try:
        hashes = dict(json.loads((folder / _INSTALLING).read_text()))
        return bool(hashes.get(split) == sha256(folder / f"{split}.parquet"))
    except (OSError, ValueError, TypeError):
        return False
