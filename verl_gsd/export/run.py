"""Exports a checkpoint: a folder with the model or its adapter, the tokenizer, the chat template and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from verl_gsd.checkpoints import step_of
from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.export import card
from verl_gsd.export.checkpoint import check_not_rehearsal
from verl_gsd.export.weights import architecture_of, write_adapter, write_model
from verl_gsd.plain_data import read_yaml
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import saved_torch_version
from verl_gsd.writing import atomic_folder


def check_target(folder: Path) -> None:
    """Check that ``folder`` is new or empty.

    Raises:
        ConfigError: it is not.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise ConfigError(f"{folder}: it exists and is not an empty folder. Use a new folder")


def export(
    checkpoint: Path,
    folder: Path,
    *,
    dtype: str,
    adapter: bool,
    prompts: Mapping[str, int],
    evaluations: Path,
    name: str,
) -> None:
    """Write RUN/global_step_N to the new or empty ``folder``, atomically.

    Args:
        dtype: the precision of the weights, one of ``weights.DTYPES``.
        adapter: write the LoRA adapter instead of the merged model.
        prompts: number of held-out prompts per data source, if known. The card's intervals need them.
        evaluations: the folder of ``verl-gsd eval`` for this checkpoint; it need not exist.
        name: the model's name in the card.

    Raises:
        ConfigError: the checkpoint or ``folder`` cannot be used.
        ValueError: the run's config, its metrics or a result of an evaluation cannot be read.
        OSError: the disk is full, or the process may not write there.
    """
    check_target(folder)
    run = RunDirectory(checkpoint.parent)
    config = read_yaml(run.config)
    check_not_rehearsal(checkpoint, config)
    step = step_of(checkpoint)
    if step is None:
        raise ConfigError(f"{checkpoint}: this is not a checkpoint. Use RUN/global_step_N")
    base = card.base_name(config)
    with atomic_folder(folder, replace=False) as building:
        if adapter:
            write_adapter(checkpoint, building, dtype, config, base or "unknown")
        else:
            write_model(checkpoint, building, dtype, config)
        architecture, parameters = architecture_of(checkpoint)
        facts = card.CardFacts(
            step,
            base,
            adapter,
            dtype,
            choices=card.choices(read_yaml(run.overrides)),
            settings=card.public_settings(config),
            train=card.data_files(value_at(config, "data.train_files")),
            held_out=card.data_files(value_at(config, "data.val_files")),
            accuracies=card.read_accuracies(run, step, prompts),
            validation=card.describe_validation(config),
            evaluations=card.read_evaluations(checkpoint, evaluations),
            versions=card.installed_versions(),
            base_origin=card.base_origin(config),
            architecture=architecture,
            parameters=parameters,
            trained_with_torch=saved_torch_version(checkpoint),
        )
        (building / "README.md").write_text(card.render(facts, name), encoding="utf-8")
