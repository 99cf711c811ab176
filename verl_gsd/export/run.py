"""Exports a checkpoint: a folder with the model or its adapter, the tokenizer, the chat template and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from verl_gsd.checkpoints import step_of
from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.export import card
from verl_gsd.export.checkpoint import check_not_rehearsal, open_checkpoint
from verl_gsd.export.weights import architecture_of, origins_of, write_adapter, write_model
from verl_gsd.history import Part, config_of, parts_of_checkpoint
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
    distrust: str | None,
    base: str | None = None,
) -> None:
    """Write RUN/global_step_N to the new or empty ``folder``, atomically.

    Args:
        dtype: the precision of the weights, one of ``weights.DTYPES``.
        adapter: write the LoRA adapter instead of the merged model.
        prompts: number of held-out prompts per data source, if known. The card's intervals need them.
        evaluations: the folder of ``verl-gsd eval`` for this checkpoint; it need not exist.
        name: the model's name in the card.
        distrust: why somebody else may have written the run's config; None if the config is followed. Otherwise no
            file or model that it names is read.
        base: the base model of a run with LoRA, a folder or a name on the hub; by default, that of the config.

    Raises:
        ConfigError: the checkpoint or ``folder`` cannot be used.
        ValueError: the run's config, its metrics or a result of an evaluation cannot be read.
        OSError: the disk is full, or the process may not write there.
    """
    check_target(folder)
    run = RunDirectory(checkpoint.parent)
    newest = run.read_yaml(run.config)
    check_not_rehearsal(checkpoint, newest)
    step = step_of(checkpoint)
    if step is None:
        raise ConfigError(f"{checkpoint}: this is not a checkpoint. Use RUN/global_step_N")
    parts = parts_of_checkpoint(run, checkpoint)
    own = config_of(run, parts[-1].attempt) if parts else newest
    config = newest if own is None else own
    base_name = card.base_name(base or value_at(config, "actor_rollout_ref.model.path"))
    origins = origins_of(config, distrust=distrust, base=base)
    with open_checkpoint(checkpoint, distrust) as opened, atomic_folder(folder, replace=False) as building:
        if adapter:
            write_adapter(opened, building, dtype, origins, base_name or "unknown")
        else:
            write_model(opened, building, dtype, origins)
        architecture, parameters = architecture_of(opened)
        is_followed = distrust is None
        setups = _setups(run, parts, read=is_followed)
        is_newest = not parts or parts[-1].attempt == max(run.attempts())
        facts = card.CardFacts(
            step,
            base_name,
            adapter,
            dtype,
            choices=card.choices(run.read_yaml(run.overrides)) if is_newest else (),
            setup=card.setup_of(config, read=is_followed),
            earlier=setups if own is None else setups[:-1],
            unknown_steps=parts[0].first - 1 if parts else 0,
            accuracies=card.read_accuracies(run, step, prompts, last_attempt=parts[-1].attempt if parts else None),
            evaluations=card.read_evaluations(checkpoint, evaluations),
            versions=card.installed_versions(),
            base_origin=card.base_origin(origins.base) if is_followed or origins.is_base_chosen else "",
            architecture=architecture,
            parameters=parameters,
            trained_with_torch=saved_torch_version(checkpoint),
        )
        (building / "README.md").write_text(card.render(facts, name), encoding="utf-8")


def _setups(run: RunDirectory, parts: Sequence[Part], *, read: bool) -> list[card.EarlierSteps]:
    """What was set for the steps of each part, oldest first. Parts that follow each other with one setup are one."""
    setups: list[card.EarlierSteps] = []
    for part in parts:
        config = config_of(run, part.attempt)
        setup = None if config is None else card.setup_of(config, read=read)
        if setups and setups[-1].setup == setup:
            setups.pop()
        setups.append(card.EarlierSteps(part.last, setup))
    return setups
