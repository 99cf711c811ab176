"""Checks of our own part of a config: the section ``algorithm.gsd`` and the trainer mode.

An extension of this package, or of a package with an entry point, is known from the start. Other packages register
their extensions as plugins of verl, and are known only in a process that has imported verl.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.checkpoints import step_of, whole_checkpoints
from verl_gsd.conflicts import lacks_accuracy
from verl_gsd.dial_settings import dial_settings
from verl_gsd.dynamic_sampling import OLD_METRICS
from verl_gsd.errors import OUR_MODES, OWN_GPUS_FOR_REWARDS, ConfigError
from verl_gsd.estimators import GROUP_BASELINES
from verl_gsd.history import is_left_behind
from verl_gsd.run.checks.conflicts import check_conflicts
from verl_gsd.run.checks.limits import check_limits
from verl_gsd.run.checks.old_keys import check_old_keys
from verl_gsd.run.cluster_lock import is_job
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import fingerprints
from verl_gsd.run.engines import check_engine
from verl_gsd.rundir import RunDirectory
from verl_gsd.scalars import is_whole
from verl_gsd.state import REMEDY, DamagedStateError, check_state, saved_settings


def uses_our_trainer(config: DictConfig) -> bool:
    """Whether the trainer mode is one of ours, which see whole groups and keep a memory."""
    return config.trainer.v1.trainer_mode in OUR_MODES.values()


def _check_dial_settings(config: DictConfig, line: Line) -> Iterator[str]:
    if config.algorithm.adv_estimator == "gsd":
        try:
            dial_settings(OmegaConf.select(config, "algorithm.gsd") or {})
        except ValueError as error:
            yield str(error)


def _check_alpha_is_read(config: DictConfig, line: Line) -> Iterator[str]:
    """Report an alpha between or beyond 0 and 1 under an estimator of verl's, which cannot have it.

    Scripts of verl's set the estimator, and such a key wins over ``+algo=gsd``. On our own command line, an alpha that
    nothing reads is an unused key.
    """
    alpha, estimator = OmegaConf.select(config, "algorithm.gsd.alpha"), config.algorithm.adv_estimator
    if alpha in (None, 0, 1) or estimator not in GROUP_BASELINES - {"gsd"} or "algorithm.gsd.alpha" in line.keys:
        return
    yield (
        f"algorithm.gsd.alpha={alpha} with algorithm.adv_estimator={estimator}: this estimator of verl's does not read "
        "it. Set algorithm.adv_estimator=gsd, or remove algorithm.adv_estimator from your script."
    )


def _check_poll_interval(config: DictConfig, line: Line) -> Iterator[str]:
    interval = OmegaConf.select(config, "algorithm.gsd.poll_interval")
    if interval is not None and not (isinstance(interval, int | float) and interval > 0):
        yield (
            f"algorithm.gsd.poll_interval={interval}: out of range. Set it to a number of seconds above 0, or to null "
            "for verl's 2 s."
        )


def _check_state_setting(config: DictConfig, line: Line) -> Iterator[str]:
    state = OmegaConf.select(config, "algorithm.gsd.state")
    if state not in (None, "fresh"):
        yield (
            f"algorithm.gsd.state={state}: no such value. Set it to fresh to use a checkpoint's weights with an empty "
            "memory, or to null."
        )


def check_reward_model_pool(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a reward model that shares the GPUs of the policy: our trainer modes need rewards earlier.

    Also report one for which verl would find neither GPUs nor an engine, after Ray has started.
    """
    model = config.reward.reward_model
    if not model.enable:
        return
    if uses_our_trainer(config) and not model.enable_resource_pool:
        yield (
            "reward.reward_model.enable=true with reward.reward_model.enable_resource_pool=false: a colocated reward "
            "model computes rewards after the groups of a step are chosen, but our trainer modes need the rewards as "
            f"soon as a group is complete. Set {' '.join(OWN_GPUS_FOR_REWARDS)}, with the number of GPUs that it uses."
        )
    counts = {name: model[name] for name in ("nnodes", "n_gpus_per_node")}
    if model.enable_resource_pool and not all(is_whole(count, 1) for count in counts.values()):
        words = " and ".join(f"reward.reward_model.{name}={count}" for name, count in counts.items())
        yield f"{words}: the reward model has no GPUs. Set both to 1 or more."
    if OmegaConf.is_missing(model.rollout, "name"):
        yield "reward.reward_model.rollout.name is missing, and verl has no default. Set it to vllm."


def check_accuracies_known(config: DictConfig, line: Line) -> Iterator[str]:
    """Report settings that read ``acc`` if rewards come only from a reward model, which returns a score and no acc."""
    if not lacks_accuracy(config):
        return
    no_accuracy = "a reward model without reward.custom_reward_function.path returns a score and no acc"
    metric = OmegaConf.select(config, "algorithm.filter_groups.metric")
    if OmegaConf.select(config, "algorithm.filter_groups.enable") and metric != "reward":
        yield (
            f"algorithm.filter_groups.metric={metric}: {no_accuracy}. Set algorithm.filter_groups.metric=reward, or "
            "algorithm.filter_groups.enable=false."
        )
    for declaration in extension.active(OmegaConf.select(config, "algorithm.gsd")):
        if declaration.reads_accuracy:
            section = f"algorithm.gsd.{declaration.name}"
            yield (
                f"{section} reads acc, the verifier's verdict, but {no_accuracy}. Set "
                f"reward.custom_reward_function.path to a function that returns both, or {section}=null."
            )


def check_filter_metric(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a metric of dynamic sampling without which verl stops when the first group is complete."""
    if not OmegaConf.select(config, "algorithm.filter_groups.enable"):
        return
    key, metric = "algorithm.filter_groups.metric", config.algorithm.filter_groups.metric
    fix = (
        f"Set {key}=acc to compare the verifier's verdicts. {key}=reward compares the rewards before a KL penalty. Use "
        "it only if rewards have no term for length or format."
    )
    if metric in OLD_METRICS:
        yield (
            f"{key}={metric}: this name is of verl's older trainers, for {OLD_METRICS[metric]}. verl's V1 trainers do "
            f"not compute it, and stop when the first group is complete. {fix} If your reward function returns a value "
            "of this name, rename it."
        )
    elif not metric:
        yield f"{key}=null with algorithm.filter_groups.enable=true: verl has nothing to compare. {fix}"


def memory_settings(config: DictConfig) -> dict[str, object]:
    """The settings that a memory depends on: the files with the prompts, and the function that verifies responses."""
    return {
        "data.train_files": fingerprints(config.data.train_files),
        "reward.custom_reward_function.name": config.reward.custom_reward_function.name,
    }


def checkpoint_to_resume(config: DictConfig) -> Path | None:
    """The checkpoint folder that verl will resume from, according to ``trainer.resume_mode``."""
    mode, path = (OmegaConf.select(config, f"trainer.resume_{name}") for name in ("mode", "from_path"))
    if mode == "resume_path" and path:
        return Path(path)
    run = RunDirectory(Path(config.trainer.default_local_dir))
    step = run.latest_checkpoint() if mode == "auto" else None
    return None if step is None else run.checkpoint(step)


def suggest_checkpoint(config: DictConfig, line: Line, damaged: Path) -> str | None:
    """A sentence that suggests another, complete checkpoint of the same run; None if there is none.

    An older checkpoint is preferred. A newer one was never announced. Checkpoints of steps from which a later attempt
    went back are left out (``history.is_left_behind``).
    """
    step = step_of(damaged)
    others = [path for path in whole_checkpoints(damaged.parent, needs_all_ranks(config)) if path != damaged]
    others = [path for path in others if not uses_our_trainer(config) or _has_whole_state(path)]
    # The sort is stable, so the newest comes first among the older checkpoints, and among the newer ones.
    others.sort(key=lambda path: step is not None and (step_of(path) or 0) > step)
    other = next((path for path in others if not is_left_behind(RunDirectory(path.parent), path)), None)
    if other is None:
        return None
    if line.resume is None:
        path = shlex.quote(f"trainer.resume_from_path={other}")
        return f"Set trainer.resume_mode=resume_path {path} to use a complete checkpoint."
    return f"The newest complete checkpoint is {other.name}. To resume from it, run:\n{resume_command(other)}"


def resume_command(folder: Path) -> str:
    """The shell command that resumes a run, given its folder or one of its checkpoints."""
    return f"verl-gsd {'submit --resume ' if is_job() else 'train resume='}{shlex.quote(str(folder))}"


def needs_all_ranks(config: DictConfig) -> bool:
    """Whether this machine must have the checkpoint files of all ranks. With several nodes, each may have its own."""
    return OmegaConf.select(config, "trainer.nnodes") == 1


def _has_whole_state(checkpoint: Path) -> bool:
    try:
        check_state(checkpoint, {})
    except ConfigError:
        return False
    return True


def _memory_names(config: DictConfig) -> set[str] | None:
    """The names of the memories that this run saves.

    None if this process does not know the owner of a section. It may be registered when verl is imported.
    """
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    if set(_sections(gsd)) - {declaration.name for declaration in extension.declarations()}:
        return None
    return {"prompts", *(declaration.name for declaration in extension.active(gsd) if declaration.saves)}


def _sections(gsd: DictConfig) -> list[str]:
    return [name for name, value in gsd.items() if isinstance(value, DictConfig) and name not in extension.RESERVED]


def check_saved_memory(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a memory that cannot be restored from the checkpoint that the run resumes."""
    if uses_our_trainer(config) and OmegaConf.select(config, "algorithm.gsd.state") != "fresh":
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is not None:
            try:
                check_state(checkpoint, memory_settings(config), names=_memory_names(config))
            except DamagedStateError as error:
                suggestion = suggest_checkpoint(config, line, checkpoint)
                yield f"{error.problem}. {suggestion}\nOr: {REMEDY}" if suggestion else str(error)
            except ConfigError as error:
                yield str(error)


def check_third_party_memory(config: DictConfig) -> Iterator[str]:
    """Run ``check_saved_memory`` again for a run with extensions of other packages. Their plugins must be loaded."""
    if any(not extension.is_ours(declaration) for declaration in extension.active(config.algorithm.get("gsd"))):
        yield from check_saved_memory(config, Line({}, ()))


def check_fingerprints(config: DictConfig, line: Line) -> Iterator[str]:
    """Report an extension whose settings differ from those with which its saved memory was made.

    If the run resumes, this builds the extensions, and therefore imports torch.
    """
    checkpoint = checkpoint_to_resume(config)
    is_restored = uses_our_trainer(config) and OmegaConf.select(config, "algorithm.gsd.state") != "fresh"
    if checkpoint is None or not is_restored:
        return
    saved = saved_settings(checkpoint)
    try:
        fingerprints_now = extension.fingerprints(extension.build(OmegaConf.select(config, "algorithm.gsd") or {}))
    except Exception:
        return  # wrong settings, or a fingerprint that needs a run; the trainer compares again
    for key in fingerprints_now.keys() & saved.keys():
        try:
            check_state(checkpoint, {key: fingerprints_now[key]})
        except ConfigError as error:
            yield str(error)


def _check_rollout_skipping(config: DictConfig, line: Line) -> Iterator[str]:
    if uses_our_trainer(config) and config.skip.rollout_tq.enable:
        yield (
            "skip.rollout_tq.enable=true: verl reads rollouts from a file, and "
            f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode} cannot tell which prompts they belong to. Set "
            "skip.rollout_tq.enable=false, or use one of verl's own trainer modes."
        )


def _check_registration(config: DictConfig, line: Line) -> Iterator[str]:
    """Report extensions of installed packages that could not be registered."""
    yield from extension.rejected()


def check_section_owners(config: DictConfig, line: Line) -> Iterator[str]:
    """Report unknown sections, unless importing verl can still register an extension of another package."""
    plugins = importlib.metadata.entry_points(group="verl.plugins")
    has_other_plugins = any(not point.value.startswith("verl_gsd.") for point in plugins)
    imports_more = os.environ.get("VERL_USE_EXTERNAL_MODULES") or OmegaConf.select(
        config, "actor_rollout_ref.model.external_lib"
    )
    if not has_other_plugins and not imports_more:
        yield from check_unknown_sections(config)


def _check_extensions(config: DictConfig, line: Line) -> Iterator[str]:
    """Report wrong sections of extensions, and what the extensions' own checks find, even without a section."""
    for declaration in extension.declarations():
        yield from _check_extension(declaration, config, line)


def _check_extension(declaration: extension.Declaration, config: DictConfig, line: Line) -> Iterator[str]:
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    yield from extension.settings_problems(declaration, gsd)
    if declaration.check is not None:
        top = declaration.name.partition(".")[0]
        family = [other for other in extension.declarations() if other.name.partition(".")[0] == top]
        # The check may rely on the sections of the whole family.
        if not any(extension.settings_problems(member, gsd) for member in family):
            yield from extension.call_declared(declaration, "check", config, line)


def check_extension_files(config: DictConfig, line: Line) -> Iterator[str]:
    """Report files that this run's extensions need and that are missing or wrong on the machine that trains."""
    for declaration in _with_valid_settings(config):
        if declaration.check_files is not None:
            yield from extension.call_declared(declaration, "check_files", config, line)


def check_extension_services(config: DictConfig) -> Iterator[str]:
    """Report servers that this run's extensions need and that do not answer correctly. This may take seconds."""
    for declaration in _with_valid_settings(config):
        if declaration.check_services is not None:
            yield from extension.call_declared(declaration, "check_services", config, Line({}, ()))


def _with_valid_settings(config: DictConfig) -> list[extension.Declaration]:
    """The extensions of this run, without those whose settings are wrong. Another check reports these."""
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    active = extension.active(gsd)
    return [declaration for declaration in active if not extension.settings_problems(declaration, gsd)]


CHECKS = (
    _check_registration,
    check_section_owners,
    _check_dial_settings,
    _check_alpha_is_read,
    _check_poll_interval,
    _check_state_setting,
    check_old_keys,
    check_reward_model_pool,
    check_accuracies_known,
    check_filter_metric,
    _check_rollout_skipping,
    _check_extensions,
    check_conflicts,
    check_limits,
    check_saved_memory,
    check_fingerprints,
)


def gsd_section_problems(config: DictConfig) -> list[str]:
    """All problems of our own part, for a trainer that verl's own command started. Verl's plugins must be loaded."""
    line = Line({}, ())
    if problems := list(check_engine(config, line)):
        return problems
    problems = [
        *check_unknown_sections(config),
        *check_extensions_build(config),
        *(problem for check in CHECKS for problem in check(config, line)),
    ]
    return list(dict.fromkeys(problems))


def check_third_party_extensions(config: DictConfig, files: bool = True) -> Iterator[str]:
    """Run the checks of extensions of other packages. Their plugins must be loaded.

    The first checks of a config run without these plugins.

    Args:
        files: whether this machine has the run's files.
    """
    line = Line({}, ())
    for declaration in extension.declarations():
        if not extension.is_ours(declaration):
            yield from _check_extension(declaration, config, line)
    if any(not extension.is_ours(declaration) for declaration in _with_valid_settings(config)):
        for check in (check_accuracies_known, check_conflicts, check_limits):
            yield from check(config, line)
        if files:
            yield from check_extension_files(config, line)


def check_unknown_sections(config: DictConfig) -> Iterator[str]:
    """Report every unknown section. Verl's plugins must be loaded, because they may register one."""
    for name, similar in _unknown_sections(config):
        yield _unknown_section_problem(name, similar)


def _unknown_sections(config: DictConfig) -> Iterator[tuple[str, list[str]]]:
    """(name, similar known names) of each key of ``algorithm.gsd`` that nothing reads."""
    gsd, known_names = OmegaConf.select(config, "algorithm.gsd") or {}, _known_sections()
    for name in sorted(set(map(str, gsd)) - set(known_names)):
        yield name, difflib.get_close_matches(name, known_names, n=1)


def _known_sections() -> list[str]:
    top = {declaration.name for declaration in extension.declarations() if "." not in declaration.name}
    return sorted({*extension.RESERVED, *top})


def _unknown_section_problem(name: str, similar: list[str]) -> str:
    if similar:
        return f"algorithm.gsd.{name}: no such key. Did you mean {similar[0]}?"
    return (
        f"algorithm.gsd.{name}: no such key. Keys are {', '.join(_known_sections())}. If {name} is an extension in a "
        "module of your own, set VERL_USE_EXTERNAL_MODULES to that module. If it belongs to another package, install "
        "that package in this environment."
    )


def check_extensions_build(config: DictConfig) -> Iterator[str]:
    """Build the extensions, and report those whose section is wrong or that exclude each other.

    Verl's plugins must be loaded. This imports torch.
    """
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    # An extension's own check has a better message, so a problem is left out if the check reports the extension.
    problems_by_name = {
        declaration.name: list(_check_extension(declaration, config, Line({}, ())))
        for declaration in extension.active(gsd)
    }
    for name, problem in extension.build_problems(gsd):
        if not problems_by_name.get(name) and not problems_by_name.get(name.partition(".")[0]):
            yield problem
