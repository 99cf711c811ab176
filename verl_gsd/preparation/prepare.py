"""One data set, from where it lies to ``DATA/NAME``: all its splits, the evaluation sets kept apart, a manifest."""

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

from verl_gsd.preparation import prepared as prepared_sets
from verl_gsd.preparation.build import Rules, SplitBuilder
from verl_gsd.preparation.chats import Template
from verl_gsd.preparation.overlap import Overlap
from verl_gsd.preparation.prepared import FORMAT, LEFT_OUT, Prepared
from verl_gsd.preparation.reading import Origin, find, rows, sha256
from verl_gsd.preparation.sources import Row, Source
from verl_gsd.writing import atomic_write

#: Between the indices of two splits of a data set, which must not share any.
SPLIT_STRIDE = 1 << 32
#: The hashes of files that are being put in their places.
_TAKING_UP = ".taking_up.json"


@dataclass(frozen=True)
class Wish:
    """What to prepare, and how.

    Attributes:
        name: the data set's, of its folder and of its rows.
        source: where it comes from.
        data: the folder of all prepared data sets.
        path: a file or folder in the place of the hub.
        model: whose chat template is applied; None leaves it and lengths unchecked.
        longest: tokens a prompt may have; None for any number.
        against: prepared data sets whose test problems are left out, beside those of its own test split; None where
            nothing is.
        overlap_words: words that a problem must share with one of them.
        skip_unusable: count rows without a problem or an answer, rather than stop.
    """

    name: str
    source: Source
    data: Path
    path: Path | None = None
    model: str | None = None
    longest: int | None = None
    against: Sequence[Prepared] | None = ()
    overlap_words: int = 13
    skip_unusable: bool = False


def prepare(wish: Wish, on_chunk: Callable[[str, int, int], None]) -> tuple[Prepared, str | None]:
    """Make it. Splits that are there, made of the same in the same way, and those the source lacks stay as they are.

    Args:
        on_chunk: told the split, rows read and rows kept so far.

    Returns:
        What was prepared, and the first prompt as the model reads it (with a model).

    Raises:
        ValueError: the source cannot be read, or a row of it cannot be used; nothing was changed but the chunks, with
            which the same call goes on.
        OSError: there is no room, or no right to write.
    """
    folder = wish.data / wish.name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        before = prepared_sets.read(folder)
        _require_own(folder, before, wish.source)
        described = dict(before.splits) if before else {}
        template = Template(wish.model) if wish.model else None
        origins = {split: find(wish.source, wish.path, split) for split in wish.source.splits}
        built: dict[str, SplitBuilder] = {}
        files: dict[str, Path] = {}
        # The test problems first: training problems are held against them.
        for split in sorted(wish.source.splits, key=lambda split: split != "test"):
            sets = _against(wish, split, files, before)
            settings = _settings(wish, origins[split], template, sets)
            if before is not None and _is_there(before, split, settings):
                files[split] = before.file(split)
                continue
            taken = _indices(before, split) if wish.source.reads else set()  # others' indices are ours
            built[split] = _builder(wish, split, origins[split], template, sets, settings, taken)
            files[split] = built[split].build(_reader(wish.source, origins[split]), partial(on_chunk, split))
            described[split] = settings | _counted(wish, split, built[split], files[split])
        shown = template.text(_first_prompt(files[min(files)])) if template else None
        made = Prepared(folder, described)
        _take_up(made, files, built)
        return made, shown


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise ValueError(f"{folder}: another process prepares it. Wait for it") from None


def _require_own(folder: Path, before: Prepared | None, source: Source) -> None:
    """What somebody else put there is not written over."""
    for split in source.splits:
        path = folder / f"{split}.parquet"
        is_ours = (before is not None and split in before.splits) or _is_taken_up(folder, split)
        if path.exists() and not is_ours:
            raise ValueError(f"{path}: is there, and was not prepared here. Move it, or write another NAME")


def _is_there(before: Prepared, split: str, settings: dict[str, Any]) -> bool:
    """Whether an earlier call made ``split`` of the same, and nobody touched it."""
    made = before.splits.get(split, {})
    if any(made.get(name) != value for name, value in settings.items()):
        return False
    try:
        before.file(split)
    except ValueError:
        return False
    return True


def _against(wish: Wish, split: str, files: dict[str, Path], before: Prepared | None) -> dict[str, tuple[Path, str]]:
    """The files whose problems ``split`` must not have, with what stands behind each problem, by their data set."""
    if split == "test" or wish.against is None:
        return {}
    sets = {
        other.name: (other.file("test"), str(other.splits["test"]["suffix"]))
        for other in (*wish.against, *([before] if before and "test" in before.splits and "test" not in files else []))
        if other.name != wish.name or other is before
    }
    if "test" in files:
        sets[wish.name] = files["test"], wish.source.suffix
    return sets


def _settings(
    wish: Wish, origin: Origin, template: Template | None, sets: dict[str, tuple[Path, str]]
) -> dict[str, Any]:
    """All that the rows of a split depend on, and the manifest says."""
    return {
        "made_by": f"verl-gsd {version('verl-gsd')}, format {FORMAT}",
        "origin": origin.described(),
        "columns": list(wish.source.columns),
        "reads": wish.source.reads,
        "verifier": wish.source.verifier,
        "suffix": wish.source.suffix,
        "model": wish.model,
        "chat_template_sha256": template.sha256 if template else None,
        "longest_prompt": wish.longest,
        "overlap_words": wish.overlap_words if sets else None,
        "against": {name: sha256(path) for name, (path, _) in sets.items()},
        "skip_unusable": wish.skip_unusable,
    }


def _builder(
    wish: Wish,
    split: str,
    origin: Origin,
    template: Template | None,
    sets: dict[str, tuple[Path, str]],
    settings: dict[str, Any],
    taken: set[int],
) -> SplitBuilder:
    overlap = Overlap(wish.overlap_words) if sets else None
    for name, (path, suffix) in sets.items():
        assert overlap is not None
        overlap.add(name, _problems(path, suffix))
    rules = Rules(wish.name, overlap, template, wish.longest, wish.skip_unusable, taken)
    first = 0 if split == "train" else SPLIT_STRIDE
    return SplitBuilder(wish.source, split, rules, wish.data / wish.name, settings, origin.name, first)


def _indices(before: Prepared | None, split: str) -> set[int]:
    """Those of the data set's other split."""
    if before is None:
        return set()
    files = [before.file(other) for other in before.splits if other != split]
    tables = [pq.read_table(file, columns=["extra_info"]).column(0).to_pylist() for file in files]
    return {row["index"] for table in tables for row in table}


def _reader(source: Source, origin: Origin) -> Callable[[int], Iterator[Row]]:
    return lambda skip: rows(source, origin, skip)


def _problems(path: Path, suffix: str) -> Iterator[str]:
    """What a prepared file's chats ask, without options and what was written after it."""
    for prompt in pq.read_table(path, columns=["prompt"]).column(0).to_pylist():
        yield prompt[-1]["content"].removesuffix(suffix).split("\n\nA. ")[0]


def _first_prompt(path: Path) -> list[dict[str, str]]:
    with pq.ParquetFile(path) as file:
        return next(file.iter_batches(1, columns=["prompt"])).to_pylist()[0]["prompt"]


def _counted(wish: Wish, split: str, builder: SplitBuilder, file: Path) -> dict[str, Any]:
    """What the manifest says of a split beside its settings."""
    counts = builder.counts()
    if not counts.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.left_out.items() if n) or "there are none"
        place = wish.path or wish.source.repository
        raise ValueError(f"{place}: of {counts.read} rows of {split} none is left: {reasons}")
    return {
        "read": counts.read,
        "rows": counts.kept,
        "left_out": {reason: n for reason, n in sorted(counts.left_out.items()) if n},
        "contaminated_by_set": dict(sorted(counts.by_set.items())),
        "sha256": sha256(file),
    }


def _take_up(made: Prepared, files: dict[str, Path], built: dict[str, SplitBuilder]) -> None:
    """Put the files in their places, the manifest last: until it is there, files are not what the old one says, and
    ``_TAKING_UP`` says that they are ours."""
    for split, builder in built.items():
        with atomic_write(made.folder / LEFT_OUT.format(split=split)) as building, building.open("w") as lines:
            lines.writelines(json.dumps(other) + "\n" for other in builder.others())
    with atomic_write(made.folder / _TAKING_UP) as building:
        building.write_text(json.dumps({split: made.splits[split]["sha256"] for split in built}))
    for split in built:
        files[split].replace(made.folder / f"{split}.parquet")
    prepared_sets.write(made)
    (made.folder / _TAKING_UP).unlink()
    for builder in built.values():
        builder.discard()


def _is_taken_up(folder: Path, split: str) -> bool:
    """Whether a call that was stopped before its manifest put the file of ``split`` there."""
    try:
        hashes = dict(json.loads((folder / _TAKING_UP).read_text()))
        return bool(hashes.get(split) == sha256(folder / f"{split}.parquet"))
    except (OSError, ValueError, TypeError):
        return False
