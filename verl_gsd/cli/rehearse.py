"""``verl-gsd train ... --rehearse``: run the config of a run for three steps on this machine's CPU, and report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.run.checks.hub_models import HubReport
    from verl_gsd.run.compose import Line
    from verl_gsd.run.rehearsal.config import Files
    from verl_gsd.run.rehearsal.judge_stand_in import JudgeStandIn
    from verl_gsd.run.rehearsal.report import Findings


#: The file of the report, in the rehearsal's folder.
_REPORT = "report.txt"


def rehearse(line: Line, composed: DictConfig, config: DictConfig) -> None:
    """Rehearse a run and print what was found. Exits with 1 if something is wrong.

    Args:
        composed: the config with unresolved interpolations.
        config: the resolved config. Its run directory names the rehearsal's folder.
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.rundir import rehearsal_folder

    try:
        with _new_folder(rehearsal_folder(Path(config.trainer.default_local_dir)), line.trust is not None) as folder:
            _rehearse_in(folder, line, composed, config)
    except ConfigError as error:
        fail(str(error))


@contextmanager
def _new_folder(folder: Path, trusted: bool) -> Iterator[Path]:
    """Create the rehearsal's folder for this user alone. It is removed at the end if nothing was written to it.

    Creating it answers whether its name is free: between a look and a later write, another user could put a link there.

    Args:
        folder: its name without symbolic links.
        trusted: whether others may write there, because of ``trust=``.

    Raises:
        ConfigError: the name is taken, or another user could replace the folder.
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.trust import check_folder

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigError(
            f"{folder} exists, so that an earlier rehearsal is there. Remove the folder, or set "
            "trainer.default_local_dir to another one."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be created: {error.strerror}. Set trainer.default_local_dir to a folder in which you "
            "can write."
        ) from error
    try:
        real = folder.resolve() if trusted else check_folder(folder)
        if real != folder:
            raise ConfigError(
                f"trainer.default_local_dir: {folder} leads through a symbolic link that was not there before. Set the "
                "key to a folder where only you can write."
            )
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _rehearse_in(folder: Path, line: Line, composed: DictConfig, config: DictConfig) -> None:
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.launch import RunFailedError
    from verl_gsd.run.messages import RunStoppedError
    from verl_gsd.run.rehearsal.failures import explain
    from verl_gsd.run.rehearsal.report import Findings, next_lines

    findings = Findings()
    try:
        _rehearse(line, composed, config, folder, findings)
    except KeyboardInterrupt:
        fail("interrupted; all processes of the rehearsal have ended", code=130)
    except ConfigError as error:
        findings.wrong += str(error).splitlines()
    except (RunFailedError, RunStoppedError) as error:
        findings.wrong.append(explain(str(error), config))
    for text in findings.lines():
        _print(text)
    if any(folder.iterdir()):
        _write_report(findings, folder)
        _print(f"logs, data and checkpoints of the rehearsal: {folder}")
    if findings.wrong:
        fail("the rehearsal found problems; see the list above", code=1)
    for text in next_lines(line, config):
        _print(text)


def _rehearse(line: Line, composed: DictConfig, config: DictConfig, folder: Path, findings: Findings) -> None:
    from verl_gsd.cli.train import make_task, print_audit
    from verl_gsd.run.checks.hub_models import hub_asked_once
    from verl_gsd.run.checks.validate import OF_THIS_ENVIRONMENT, validate
    from verl_gsd.run.compose import verl_defaults
    from verl_gsd.run.rehearsal import config as rehearsal
    from verl_gsd.run.rehearsal.judge_stand_in import judge_stand_in
    from verl_gsd.run.rehearsal.report import preserved_lines, replaced_lines, replaced_summary

    rehearsal.check_rehearsable(config)
    validate(config, line, leave_out=OF_THIS_ENVIRONMENT)
    print_audit(config)
    make_task(config)
    os.environ["VERL_GSD_CPU"] = "1"  # before anything imports verl
    with ExitStack() as stack:
        hub = stack.enter_context(hub_asked_once(config))
        with redirect_stdout(sys.stderr):  # verl prints while it validates
            _check_with_verl(config, hub)
        _note_checks(config, findings)
        judge = stack.enter_context(judge_stand_in()) if rehearsal.judge_keys(config) else None
        files = _make_files(config, folder, judge, findings)
        rehearsed, replacements = rehearsal.rehearsal_config(composed, files)
        updates = rehearsal.sizes_of(config).updates
        preserved = list(preserved_lines(rehearsed, updates, replacements, verl_defaults()))
        findings.settings = [*preserved, *replaced_lines(replacements)]
        _write_report(findings, folder)  # also at the end; until then, the lists are there
        for text in (*preserved, *replaced_summary(replacements, folder / _REPORT)):
            _print(text)
        for text in findings.stand_ins:
            _print(f"stand-in: {text}", style="bold yellow")
        _train(rehearsed, config, files, judge, findings, trusted=line.trust is not None)


def _note_checks(config: DictConfig, findings: Findings) -> None:
    """Note which checks of the original config have passed, and which could not be made."""
    from verl_gsd.run.footprint import gpu_memory_gib, shape_of

    path, has_shape = config.actor_rollout_ref.model.path, shape_of(config) is not None
    findings.worked.append("checks: keys, data, chat template and batch sizes")
    if has_shape:
        findings.worked.append("checks: prompts and responses fit the model's positions")
    else:
        findings.unchecked.append(
            f"whether lengths and memory fit, because the sizes of {path} are not known. Set model= or "
            "actor_rollout_ref.model.path to a local folder with its config.json"
        )
    if has_shape and gpu_memory_gib(config) is not None:
        findings.worked.append("checks: the estimated memory fits the GPUs")
    elif has_shape:
        findings.unchecked.append("whether memory fits, because hardware.gpu_memory_gib is not set")


def _check_with_verl(config: DictConfig, hub: HubReport) -> None:
    """verl's checks of the original config, its model and its data. The judge need not answer on this machine."""
    from verl_gsd.run.checks.prompt_lengths import check_prompts
    from verl_gsd.run.checks.validate import raise_problems
    from verl_gsd.run.checks.with_verl import check_reward_function, validate_with_verl

    validate_with_verl(config, runs_here=False)
    raise_problems([*check_reward_function(config), *hub.problems])
    report = check_prompts(config, remote=False, counts=not hub.unknown)
    raise_problems(report.problems)
    for message in (*hub.messages, *report.messages):
        err.print(f"{message.kind}: {message.text}", markup=False, highlight=False, soft_wrap=True)


def _make_files(config: DictConfig, folder: Path, judge: JudgeStandIn | None, findings: Findings) -> Files:
    """Write the model and the data of the rehearsal, and check the chat template and the references."""
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer

    from verl_gsd.errors import ConfigError
    from verl_gsd.run.checks.data_files import has_own_dataset
    from verl_gsd.run.checks.prompt_tokens import NotCountableError, prompt_tokens_of
    from verl_gsd.run.rehearsal import config as rehearsal
    from verl_gsd.run.rehearsal.data import VALIDATION_ROWS, balanced_seed, rows_of_own_dataset, write_rows
    from verl_gsd.run.rehearsal.model import opens_assistant_turn, write_tiny_model, write_tiny_reward_model

    tiny = write_tiny_model(config, folder / "model")
    findings.stand_ins += tiny.stand_ins
    trusted = bool(config.actor_rollout_ref.model.get("trust_remote_code", False))
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder, trust_remote_code=trusted)
    if (template := config.actor_rollout_ref.model.get("custom_chat_template")) is not None:
        tokenizer.chat_template = template
    local = config.copy()
    OmegaConf.set_struct(local, False)
    local.actor_rollout_ref.model.update({"path": str(tiny.folder), "tokenizer_path": None, "hf_config_path": None})
    try:
        tokens = prompt_tokens_of(local, tokenizer)
    except NotCountableError as error:
        raise ConfigError(f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: {error}") from error
    options = OmegaConf.to_container(OmegaConf.create(config.data.get("apply_chat_template_kwargs") or {}))
    if not opens_assistant_turn(tokenizer, {str(name): value for name, value in dict(options).items()}):
        findings.wrong.append(
            "actor_rollout_ref.model.custom_chat_template: the chat template has no generation prompt "
            "(add_generation_prompt has no effect), so that the policy continues the user's message. Use a template "
            "that opens the assistant's turn."
        )
    sizes = rehearsal.sizes_of(config)

    def prompt_lengths(chats: Any) -> list[int | str]:
        return tokens.lengths(chats, 0)

    def rows_of(key: str, count: int) -> Any:
        def text_length(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False))

        if has_own_dataset(config):
            with redirect_stdout(sys.stderr):  # verl and the class may print
                return rows_of_own_dataset(config, key, count, prompt_lengths, text_length, tokenizer)
        return write_rows(config, key, folder / "data", count, prompt_lengths, text_length)

    # More rows than three steps use, so that a resume that continues in the data trains other rows. With a filter that
    # evicts half of the groups, three steps of 8 prompts have used 77 rows.
    batches = (3 if OmegaConf.select(config, "algorithm.filter_groups.enable") else 1) * (rehearsal.ALL_STEPS + 1)
    train = rows_of("data.train_files", batches * sizes.batch)
    val = rows_of("data.val_files", VALIDATION_ROWS)
    accepted = _check_references(config, train.read, val.read, findings)
    findings.worked.append(f"model: {tiny.architecture}")
    if rehearsal.has_reward_model(config):
        write_tiny_reward_model(folder / "reward_model")
    return rehearsal.Files(
        run=folder / "run",
        model=tiny.folder,
        train=train.files,
        val=val.files,
        train_rows=len(train.rows),
        train_samples=train.samples,
        val_samples=val.samples,
        prompt_tokens=max(train.prompt_tokens, val.prompt_tokens),
        response_tokens=max(rehearsal.RESPONSE_TOKENS, train.demonstration_tokens + 2),
        rewards=folder / "rewards.jsonl",
        accepted_score=accepted,
        seed=balanced_seed(train.rows),
        judge_url=None if judge is None else judge.base_url,
        judge_cache=folder / "judge.sqlite",
        reward_model=folder / "reward_model" if rehearsal.has_reward_model(config) else None,
    )


def _check_references(
    config: DictConfig, train: Sequence[dict], val: Sequence[dict], findings: Findings
) -> float | None:
    """Check the data's references with the real reward function, and return the lowest score of an accepted one.

    Raises:
        ConfigError: the function fails, or does not return a value that the config reads.
    """
    from omegaconf import OmegaConf

    from verl_gsd.errors import ConfigError
    from verl_gsd.run.checks.gsd_section import uses_our_trainer
    from verl_gsd.run.rehearsal.config import has_reward_function
    from verl_gsd.run.rehearsal.references import check_references
    from verl_gsd.run.rehearsal.seeded_rewards import real_function
    from verl_gsd.run.rehearsal.verdicts import accuracy_warning, verdict_problems

    if not has_reward_function(config):
        return None
    function = config.reward.custom_reward_function
    kwargs = OmegaConf.to_container(OmegaConf.create(function.get("reward_kwargs") or {}))
    result = check_references(
        real_function(function.path, function.name),
        {str(name): value for name, value in dict(kwargs).items()},
        [*train, *val],
    )
    if problems := list(verdict_problems(config, result.returned)):
        raise ConfigError("\n".join(problems))
    if uses_our_trainer(config) and (warning := accuracy_warning(config, result.returned)):
        findings.warnings.append(warning)
    if problem := result.problem():
        findings.wrong.append(problem)
    else:
        findings.worked.append(
            f"references: the reward function accepts all {result.checked} that were checked, {len(train)} of "
            f"data.train_files and {len(val)} of data.val_files"
        )
    return result.accepted_score


def _train(
    rehearsed: DictConfig,
    config: DictConfig,
    files: Files,
    judge: JudgeStandIn | None,
    findings: Findings,
    *,
    trusted: bool,
) -> None:
    from verl_gsd.run.rehearsal import observations, resumed
    from verl_gsd.run.rehearsal.config import ALL_STEPS, FIRST_STEPS
    from verl_gsd.rundir import RunDirectory

    run = RunDirectory(files.run)
    try:
        _attempt(rehearsed, resuming=False, trusted=trusted)
        observations.observe_first_attempt(run, findings)
        before = observations.weight_checksums(run.checkpoint(FIRST_STEPS))
        rehearsed.trainer.total_training_steps = ALL_STEPS
        _attempt(rehearsed, resuming=True, trusted=trusted)
        observations.observe_resume(run, before, findings)
        resumed.observe_optimizer(run, findings)
        resumed.observe_prompts(run, rehearsed, files.train_rows, findings)
        resumed.observe_state(run, rehearsed, findings)
    finally:  # a run that fails has shown something before
        observations.observe_rewards(files.rewards, config, findings)
        if run.records(1).is_dir():
            observations.observe_groups(run, config, findings)
            observations.observe_judge(run, judge.answered if judge else 0, config, findings)


def _attempt(rehearsed: DictConfig, resuming: bool, trusted: bool) -> None:
    from verl_gsd.cli.train import train_attempt
    from verl_gsd.run import launch
    from verl_gsd.run.rehearsal.config import has_reward_function

    with launch.new_attempt(rehearsed, [], resuming, trusted=trusted) as (run, attempt):
        text = f"attempt {attempt} of the rehearsal; output: {run.log(attempt)}"
        err.print(text, markup=False, highlight=False, soft_wrap=True)
        seeded = " (seeded)" if has_reward_function(rehearsed) else ""
        train_attempt(run, attempt, rehearsed, score_note=seeded)


def _print(text: str, style: str | None = None) -> None:
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _write_report(findings: Findings, folder: Path) -> None:
    from verl_gsd.writing import atomic_write

    with atomic_write(folder / _REPORT) as path:
        path.write_text("\n".join([*findings.settings, *findings.lines()]) + "\n", encoding="utf-8")
