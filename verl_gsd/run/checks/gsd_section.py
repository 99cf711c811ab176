"""What can be wrong with our own part of a config: the section ``algorithm.gsd`` and the trainer mode."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.checkpoints import step_of, whole_checkpoints
from verl_gsd.dial_settings import dial_settings
from verl_gsd.errors import OUR_MODES, ConfigError
from verl_gsd.run.checks.conflicts import check_conflicts
from verl_gsd.run.checks.limits import check_limits
from verl_gsd.run.cluster_lock import is_job
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import fingerprints
from verl_gsd.run.engines import check_engine
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import REMEDY, DamagedStateError, check_state


def is_ours(config: DictConfig) -> bool:
    """Whether the trainer mode is one of ours, which see whole groups and remember."""
    return config.trainer.v1.trainer_mode in OUR_MODES.values()


def _dial_settings_in_range(config: DictConfig, line: Line) -> Iterator[str]:
    if config.algorithm.adv_estimator == "gsd":
        try:
            dial_settings(OmegaConf.select(config, "algorithm.gsd") or {})
        except ValueError as error:
            yield str(error)


def _poll_interval_positive(config: DictConfig, line: Line) -> Iterator[str]:
    interval = OmegaConf.select(config, "algorithm.gsd.poll_interval")
    if interval is not None and not (isinstance(interval, int | float) and interval > 0):
        yield (
            f"algorithm.gsd.poll_interval={interval}: out of range. Set it to a number of seconds above 0, or to null "
            "for verl's 2 s."
        )


def _state_named(config: DictConfig, line: Line) -> Iterator[str]:
    state = OmegaConf.select(config, "algorithm.gsd.state")
    if state not in (None, "fresh"):
        yield (
            f"algorithm.gsd.state={state}: no such value. Set it to fresh to use a checkpoint's weights with an empty "
            "memory, or to null."
        )


def _groups_have_rewards(config: DictConfig, line: Line) -> Iterator[str]:
    model = config.reward.reward_model
    if is_ours(config) and model.enable and not model.enable_resource_pool:
        yield (
            "reward.reward_model.enable=true with reward.reward_model.enable_resource_pool=false: a colocated reward "
            "model scores after groups were chosen, so that nothing is known of a group when it is whole. Set "
            "reward.reward_model.enable_resource_pool=true."
        )


def check_accuracies_known(config: DictConfig, line: Line) -> Iterator[str]:
    """Report settings that read ``acc`` where a reward model alone gives the rewards: it returns a score and no acc."""
    if not config.reward.reward_model.enable or config.reward.custom_reward_function.path is not None:
        return
    alone = "a reward model without reward.custom_reward_function.path returns a score and no acc"
    metric = OmegaConf.select(config, "algorithm.filter_groups.metric")
    if OmegaConf.select(config, "algorithm.filter_groups.enable") and metric != "reward":
        yield (
            f"algorithm.filter_groups.metric={metric}: {alone}. Set algorithm.filter_groups.metric=reward, or "
            "algorithm.filter_groups.enable=false."
        )
    for declaration in extension.active(OmegaConf.select(config, "algorithm.gsd")):
        if declaration.reads_accuracy:
            section = f"algorithm.gsd.{declaration.name}"
            yield (
                f"{section} reads acc, the verifier's verdict, and {alone}. Set "
                f"reward.custom_reward_function.path to a function that returns both, or {section}=null."
            )


def memory_settings(config: DictConfig) -> dict[str, object]:
    """What a memory's keys and counts mean: prompts of these files, judged by this function."""
    return {
        "data.train_files": fingerprints(config.data.train_files),
        "reward.custom_reward_function.name": config.reward.custom_reward_function.name,
    }


def checkpoint_to_resume(config: DictConfig) -> Path | None:
    """The checkpoint folder verl will go on from, as it reads ``trainer.resume_mode``."""
    mode, path = (OmegaConf.select(config, f"trainer.resume_{name}") for name in ("mode", "from_path"))
    if mode == "resume_path" and path:
        return Path(path)
    run = RunDirectory(Path(config.trainer.default_local_dir))
    step = run.latest_checkpoint() if mode == "auto" else None
    return None if step is None else run.checkpoint(step)


def other_checkpoint(config: DictConfig, line: Line, damaged: Path) -> str | None:
    """A sentence that offers a whole checkpoint of the same run instead of ``damaged``; None if there is no other.

    An older one is preferred: a newer one was not announced, and may be of a branch that was given up.
    """
    step = step_of(damaged)
    others = [path for path in whole_checkpoints(damaged.parent, all_ranks(config)) if path != damaged]
    others = [path for path in others if not is_ours(config) or _has_whole_state(path)]
    others.sort(key=lambda path: step is not None and (step_of(path) or 0) > step)  # stable: newest first in each
    if not others:
        return None
    if line.resume is None:
        return f"Set trainer.resume_mode=resume_path trainer.resume_from_path={others[0]} to use a whole checkpoint."
    return f"The newest whole checkpoint is {others[0].name}. To resume from it, run:\n{resume_command(others[0])}"


def resume_command(place: Path) -> str:
    """The command that resumes a run's folder or one of its checkpoints, as one line for a shell."""
    return f"verl-gsd {'submit --resume ' if is_job() else 'train resume='}{shlex.quote(str(place))}"


def all_ranks(config: DictConfig) -> bool:
    """Whether this machine must have the checkpoint files of every rank: on several nodes each may have its own."""
    return OmegaConf.select(config, "trainer.nnodes") == 1


def _has_whole_state(checkpoint: Path) -> bool:
    try:
        check_state(checkpoint, {})
    except ConfigError:
        return False
    return True


def _memories(config: DictConfig) -> set[str] | None:
    """What this run saves, by name; None where a section belongs to nobody that this process knows, yet: packages of
    other people are known where verl is imported."""
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    if set(_sections(gsd)) - {declaration.name for declaration in extension.declarations()}:
        return None
    return {"prompts", *(declaration.name for declaration in extension.active(gsd) if declaration.saves)}


def _sections(gsd: DictConfig) -> list[str]:
    return [name for name, value in gsd.items() if isinstance(value, DictConfig) and name not in extension.RESERVED]


def memory_restorable(config: DictConfig, line: Line) -> Iterator[str]:
    if is_ours(config) and OmegaConf.select(config, "algorithm.gsd.state") != "fresh":
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is not None:
            try:
                check_state(checkpoint, memory_settings(config), names=_memories(config))
            except DamagedStateError as error:
                offer = other_checkpoint(config, line, checkpoint)
                yield f"{error.problem}. {offer}\nOr: {REMEDY}" if offer else str(error)
            except ConfigError as error:
                yield str(error)


def foreign_memory_restorable(config: DictConfig) -> Iterator[str]:
    """``memory_restorable`` for a run with extensions of other people's packages, once these are loaded."""
    if any(not extension.is_ours(declaration) for declaration in extension.active(config.algorithm.get("gsd"))):
        yield from memory_restorable(config, Line({}, ()))


def _rollouts_are_generated(config: DictConfig, line: Line) -> Iterator[str]:
    if is_ours(config) and config.skip.rollout_tq.enable:
        yield (
            "skip.rollout_tq.enable=true: rollouts read from a file belong to no prompt that "
            f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode} could know. Set skip.rollout_tq.enable=false, "
            "or use a trainer mode of verl's."
        )


def _extensions_registered(config: DictConfig, line: Line) -> Iterator[str]:
    """Report extensions of installed packages that could not be registered."""
    yield from extension.rejected()


def _misspelt_sections(config: DictConfig, line: Line) -> Iterator[str]:
    """Report unknown sections with a name like a known one. A package that only verl loads may own any other."""
    for name, meant in _unknown_sections(config):
        if meant:
            yield _unknown_section(name, meant)


def _extensions_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """What is wrong with each extension's section, and what its own check finds, with or without a section."""
    for declaration in extension.declarations():
        yield from _told_by(declaration, config, line)


def _told_by(declaration: extension.Declaration, config: DictConfig, line: Line) -> Iterator[str]:
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    yield from extension.settings_problems(declaration, gsd)
    if declaration.check is not None:
        top = declaration.name.partition(".")[0]
        family = [of for of in extension.declarations() if of.name.partition(".")[0] == top]
        if not any(extension.settings_problems(of, gsd) for of in family):  # a check may rely on all of them
            yield from extension.load(declaration.check)(config, line)


def check_extension_files(config: DictConfig, line: Line) -> Iterator[str]:
    """Report what the extensions of this run miss in files of the machine that trains."""
    for declaration in _taking_part(config):
        if declaration.check_files is not None:
            yield from extension.load(declaration.check_files)(config, line)


def check_extension_services(config: DictConfig) -> Iterator[str]:
    """Report what the extensions of this run miss of servers. It may take seconds."""
    for declaration in _taking_part(config):
        if declaration.check_services is not None:
            yield from extension.load(declaration.check_services)(config, Line({}, ()))


def _taking_part(config: DictConfig) -> list[extension.Declaration]:
    """The extensions of this run, without those whose settings are wrong, which another check reports."""
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    active = extension.active(gsd)
    return [declaration for declaration in active if not extension.settings_problems(declaration, gsd)]


CHECKS = (
    _extensions_registered,
    _misspelt_sections,
    _dial_settings_in_range,
    _poll_interval_positive,
    _state_named,
    _groups_have_rewards,
    check_accuracies_known,
    _rollouts_are_generated,
    _extensions_wrong,
    check_conflicts,
    check_limits,
    memory_restorable,
)


def own_problems(config: DictConfig) -> list[str]:
    """All that is wrong with our own part, for a trainer that verl's own command started."""
    line = Line({}, ())
    if problems := list(check_engine(config, line)):
        return problems
    problems = [
        *own_keys_unknown(config),
        *extensions_unusable(config),
        *(problem for check in CHECKS for problem in check(config, line)),
    ]
    return list(dict.fromkeys(problems))


def foreign_extensions_wrong(config: DictConfig, files: bool = True) -> Iterator[str]:
    """What extensions of other people's packages have to say of the config, once these are loaded.

    The first checks of the config were made without them.

    Args:
        files: whether this machine has the run's files.
    """
    line = Line({}, ())
    for declaration in extension.declarations():
        if not extension.is_ours(declaration):
            yield from _told_by(declaration, config, line)
    if any(not extension.is_ours(declaration) for declaration in _taking_part(config)):
        for check in (check_accuracies_known, check_conflicts, check_limits):
            yield from check(config, line)
        if files:
            yield from check_extension_files(config, line)


def own_keys_unknown(config: DictConfig) -> Iterator[str]:
    """Report every unknown section. verl's plugins must have been loaded, because they may have registered it."""
    for name, meant in _unknown_sections(config):
        yield _unknown_section(name, meant)


def _unknown_sections(config: DictConfig) -> Iterator[tuple[str, list[str]]]:
    """(name, the known names that it resembles or []) of each key that nobody reads."""
    gsd, known = OmegaConf.select(config, "algorithm.gsd") or {}, _known_sections()
    for name in sorted(set(map(str, gsd)) - set(known)):
        yield name, difflib.get_close_matches(name, known, n=1)


def _known_sections() -> list[str]:
    top = {declaration.name for declaration in extension.declarations() if "." not in declaration.name}
    return sorted({*extension.RESERVED, *top})


def _unknown_section(name: str, meant: list[str]) -> str:
    if meant:
        return f"algorithm.gsd.{name}: no such key. Did you mean {meant[0]}?"
    return f"algorithm.gsd.{name}: no such key. Keys are {', '.join(_known_sections())}."


def extensions_unusable(config: DictConfig) -> Iterator[str]:
    """Extensions whose section is wrong or which cannot take part together. Needs the plugins loaded, and imports
    torch."""
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    # An extension's own check says it better, where it has one.
    told = {of.name: list(_told_by(of, config, Line({}, ()))) for of in extension.active(gsd)}
    for name, problem in extension.problems(gsd):
        if not told.get(name) and not told.get(name.partition(".")[0]):
            yield problem
