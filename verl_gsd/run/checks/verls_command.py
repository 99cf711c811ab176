"""Checks of a run that verl's own command starts: what a user's script can change without notice, and ours rejects.

``verl-gsd train`` knows the words of the line. Here only the config is known, and a key of the script wins over
``+algo=``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.dotted_keys import dotted_leaves, value_at
from verl_gsd.history import config_of
from verl_gsd.run.checks.data_sources import check_prepared_verifier
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.rundir import RunDirectory

_ALPHA, _ESTIMATOR = "algorithm.gsd.alpha", "algorithm.adv_estimator"
_SWITCH = "algorithm.norm_adv_by_std_in_grpo"
#: Together with the sections of extensions, they tell which algorithm a config has.
_ALGORITHM = (
    *(_ESTIMATOR, _ALPHA, "algorithm.filter_groups.enable"),
    "actor_rollout_ref.actor.policy_loss.loss_mode",
)


def check_verls_command(config: DictConfig, verls_estimators: Collection[str]) -> Iterator[str]:
    """Report another algorithm than that of ``+algo=``, or than that of the run in the folder, and a missing verifier.

    Args:
        verls_estimators: the names of verl's own estimators.
    """
    yield from _check_alpha(config, verls_estimators)
    yield from _check_folder(config)
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key) or []
        for file in [files] if isinstance(files, str) else files:
            for problem in check_prepared_verifier(Path(str(file)), config):
                yield f"{key}={file}: {problem}"


def _check_alpha(config: DictConfig, verls_estimators: Collection[str]) -> Iterator[str]:
    alpha, estimator = OmegaConf.select(config, _ALPHA), str(config.algorithm.adv_estimator)
    divides = bool(config.algorithm.norm_adv_by_std_in_grpo)
    if alpha is None:
        return
    if estimator == "gsd" and alpha == 1 and not divides:
        yield (
            f"{_SWITCH}=false does nothing: {_ESTIMATOR}=gsd reads {_ALPHA}, which is 1 and divides by sigma. Set "
            f"{_ALPHA}=0 to keep sigma, or {_SWITCH}=true to divide by it."
        )
    if estimator not in verls_estimators or (estimator in ("grpo", "grpo_vectorized") and alpha == divides):
        return
    yield (
        f"{_ESTIMATOR}={estimator}: it wins over +algo=, and this estimator of verl's does not read {_ALPHA}={alpha}. "
        f"Remove {_ESTIMATOR} from your script, or set {_ALPHA}=null to train with verl's estimator."
    )


def _check_folder(config: DictConfig) -> Iterator[str]:
    """Report a folder whose run had another algorithm. verl would go on from its weights."""
    run = RunDirectory(Path(config.trainer.default_local_dir))
    checkpoint, attempts = checkpoint_to_resume(config), run.attempts()
    if config.trainer.resume_mode != "auto" or checkpoint is None or not attempts:
        return
    try:
        before = config_of(run, attempts[-1])
    except ValueError:
        return  # a damaged file, which reports name
    if not isinstance(before, dict):
        return  # an older version wrote none
    now = OmegaConf.to_container(config, resolve=True)
    # Extensions that only choose rollouts can come and go. So can settings within a section.
    declared = [one for one in extension.declarations() if "." not in one.name and not one.follows_responses]
    keys = (*_ALGORITHM, *(f"algorithm.gsd.{one.name}" for one in declared))
    changed = [key for key in keys if _named(value_at(before, key)) != _named(value_at(now, key))]
    if changed:
        values = ", ".join(f"{key}={_shown(value_at(before, key))}" for key in changed)
        yield (
            f"trainer.default_local_dir={run.path}: the run in this folder had another algorithm ({values}), and verl "
            "would go on from its weights. Set trainer.default_local_dir to another folder. To go on all the same, set "
            f"trainer.resume_mode=resume_path and trainer.resume_from_path={checkpoint}."
        )


def _named(value: Any) -> Any:
    """A section as whether it has an entry that is set, and anything else as it is."""
    return any(leaf is not None for _, leaf in dotted_leaves(value)) if isinstance(value, dict) else value


def _shown(value: Any) -> Any:
    return "{...}" if isinstance(value, dict) else "null" if value is None else value
