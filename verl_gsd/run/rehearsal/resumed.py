"""Reads from the checkpoints and records of a rehearsal whether its resume restored everything besides the weights.

An attempt that restores nothing also trains, with new moments of the optimizer, the first prompts and an empty memory.
Each check therefore compares something that only grows: updates, the prompts of a pass, and visits of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.console import without_messages
from verl_gsd.records import read_records
from verl_gsd.run.checks.gsd_section import uses_our_trainer
from verl_gsd.run.rehearsal.config import ALL_STEPS, FIRST_STEPS
from verl_gsd.run.rehearsal.report import Findings
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import check_state

_CHECKPOINT = "actor_rollout_ref.actor.checkpoint"


def observe_optimizer(run: RunDirectory, findings: Findings) -> None:
    """Check that the optimizer counted its updates from the checkpoint on."""
    before, after = (_updates(run.checkpoint(step)) for step in (FIRST_STEPS, ALL_STEPS))
    if before is None or after is None:
        findings.unchecked.append(
            f"whether a resume restores the optimizer, because the checkpoints have no count of its updates "
            f"({_CHECKPOINT}.save_contents)"
        )
    elif after > before:
        findings.worked.append(f"resume: the optimizer continued after {before} updates and then had {after}")
    else:
        findings.wrong.append(
            f"{_CHECKPOINT}.load_contents: the optimizer was not restored. It had {before} updates at step "
            f"{FIRST_STEPS} and {after} at step {ALL_STEPS}. Add optimizer to {_CHECKPOINT}.load_contents."
        )


def _updates(checkpoint: Path) -> int | None:
    """The updates that the optimizer in a checkpoint has made; None if the checkpoint does not tell."""
    import torch
    import torch.distributed.tensor  # registers DTensor and its parts as types that may be loaded

    path = next((checkpoint / "actor").glob("optim_world_size_*_rank_0.pt"), None)
    if path is None:
        return None
    with without_messages("torch.distributed.device_mesh"):
        states = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state"].values()
    return max((int(state["step"]) for state in states if "step" in state), default=None)


def observe_prompts(run: RunDirectory, config: DictConfig, rows: int, findings: Findings) -> None:
    """Check that the resumed attempt trained the next prompts of the data, and not the first ones again.

    Args:
        config: the config of the rehearsal.
        rows: number of rows of the training data.
    """
    prompts: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    for row in read_records(run.path).to_pylist():
        prompts[row["step"] > FIRST_STEPS].append((row["data_source"], row["index"]))
    earlier, later = set(prompts[False]), set(prompts[True])
    if not later:
        return  # another check reports that nothing was recorded
    used, per_pass = len(prompts[False]) + len(prompts[True]), _prompts_per_pass(config, rows)
    if not (repeated := later & earlier):
        findings.worked.append(
            f"resume: step {ALL_STEPS} used {len(later)} prompts that steps 1 to {FIRST_STEPS} had not used"
        )
    elif _may_repeat(config):
        findings.unchecked.append("whether a resume continues with the next prompts, because the sampler repeats them")
    elif used > per_pass:
        findings.unchecked.append(
            f"whether a resume continues with the next prompts, because {ALL_STEPS} steps used {used} prompts, and a "
            f"pass over the {rows} rows has only {per_pass}. The next pass repeats them in another order"
        )
    else:
        findings.wrong.append(
            f"resume: step {ALL_STEPS} used {len(repeated)} prompts of steps 1 to {FIRST_STEPS} again, although others "
            "were left. The position in the data was not restored. Check data.sampler and the dataset class."
        )


def _prompts_per_pass(config: DictConfig, rows: int) -> int:
    """The prompts of a pass over the data: verl leaves out the rows that do not fill a last batch."""
    batch = OmegaConf.select(config, "data.gen_batch_size") or config.data.train_batch_size
    return rows // batch * batch


def _may_repeat(config: DictConfig) -> bool:
    """Whether the run draws its prompts in another way than in passes over the data."""
    extensions = extension.build(OmegaConf.select(config, "algorithm.gsd") or {})
    draws = any(extension.overrides(one, "draw_prompts") for one in extensions.values())
    return draws or OmegaConf.select(config, "data.sampler.class_path") is not None


def observe_state(run: RunDirectory, config: DictConfig, findings: Findings) -> None:
    """Check the memory of prompts and the state of extensions, which our trainer modes save in ``gsd/``."""
    if not uses_our_trainer(config):
        return
    saved, arrays = check_state(run.checkpoint(FIRST_STEPS), {})
    before, after = _visits(saved, arrays), _visits(*check_state(run.checkpoint(ALL_STEPS), {}))
    lost = [prompt for prompt, visits in before.items() if after.get(prompt, 0) < visits]
    counts = f"{sum(before.values())} visits at step {FIRST_STEPS}, {sum(after.values())} at step {ALL_STEPS}"
    if lost:
        findings.wrong.append(
            f"resume: the memory of prompts lost {len(lost)} of {len(before)} prompts ({counts}), so that it was not "
            "restored. Remove algorithm.gsd.state=fresh if it is set."
        )
    else:
        findings.worked.append(f"resume: the memory of prompts was carried on ({counts})")
    for name, part in extension.build(OmegaConf.select(config, "algorithm.gsd") or {}).items():
        if name in saved:
            own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
            _check_round_trip(name, part, saved[name] | own, findings)


def _visits(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, int], int]:
    """(data source, index) of a prompt -> its visits, in a saved state."""
    names = values["prompts"]["sources"]
    source, index, visits = (arrays[f"prompts/{column}"].tolist() for column in ("source", "index", "visits"))
    return {(names[place], number): count for place, number, count in zip(source, index, visits, strict=True)}


def _check_round_trip(name: str, part: extension.Extension, state: Mapping[str, Any], findings: Findings) -> None:
    """Check that an extension saves again what it restores from the checkpoint of the first attempt."""
    key = f"algorithm.gsd.{name}"
    try:
        part.load_state_dict(dict(state))
        restored = part.state_dict()
    except Exception as error:  # the run restored it with services, which are missing here
        findings.unchecked.append(f"whether {key} restores all of its state ({type(error).__name__}: {error})")
        return
    lost = sorted(entry for entry in state if not _are_equal(state[entry], restored.get(entry)))
    if lost:
        findings.wrong.append(
            f"{key}: load_state_dict does not restore {', '.join(lost)}. Let it restore all that state_dict returns."
        )
    else:
        findings.worked.append(f"resume: {key} restores all of its state ({', '.join(state)})")


def _are_equal(saved: Any, restored: Any) -> bool:
    """Whether a value equals the saved one. Tuples become lists, as in JSON."""
    if isinstance(saved, np.ndarray):
        return isinstance(restored, np.ndarray) and np.array_equal(saved, restored)
    return json.dumps(saved, sort_keys=True) == json.dumps(restored, sort_keys=True)
