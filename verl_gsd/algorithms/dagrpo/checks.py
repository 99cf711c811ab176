"""Checks of a config under DaGRPO. Each of its sections has already been validated by itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms.dagrpo.conflicts import OTHER_LOSS
from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.settings import MaskSettings, check_on_policy, check_ratio
from verl_gsd.conflicts import Condition
from verl_gsd.errors import USE_REWARD_MODEL
from verl_gsd.judge.disks import journal_mode, mounts
from verl_gsd.judge.scorer import HIGHEST
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.run.checks.parallelism import sequence_parallel
from verl_gsd.run.checks.validate import as_list, made_on_first_use
from verl_gsd.run.compose import Line
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.scalars import is_whole

_LOSS = "actor_rollout_ref.actor.policy_loss"
_SECTION = "algorithm.gsd.dagrpo"


def is_dagrpo_loss(config: DictConfig) -> bool:
    """Whether the policy loss is DaGRPO's, which has a ratio of its own on demonstrations."""
    return OmegaConf.select(config, f"{_LOSS}.loss_mode") == "dagrpo"


def check_dagrpo(config: DictConfig, line: Line) -> Iterator[str]:
    """Check DaGRPO's settings against the other settings, and the settings of its loss."""
    section = OmegaConf.select(config, _SECTION)
    has_demonstrations = OmegaConf.select(config, f"{_SECTION}.demonstrations") is not None
    if is_dagrpo_loss(config) and not has_demonstrations:
        yield (
            f"{_LOSS}.loss_mode=dagrpo without {_SECTION}.demonstrations: demonstrations need both this section and "
            "loss_mode=dagrpo. Set algo=dagrpo or algo=dagrpo_anchors, or remove loss_mode."
        )
        return
    if section is None or (has_demonstrations and Condition.parse(OTHER_LOSS.setting).holds(config)):
        return
    has_judge = section.get("judge") is not None
    settings = MaskSettings.of(section)
    if has_judge:
        yield from _check_judge(config, settings)
    delta = f"{_SECTION}.delta={section.get('delta', settings.delta.first)}"
    if has_judge and settings.delta.keeps_all and not settings.fail_closed:
        yield f"{delta} with {_SECTION}.judge: no score is ever used. Set delta to a finite number, or judge=null."
    if not has_judge and not settings.delta.keeps_all:
        yield f"{delta} without {_SECTION}.judge: there are no scores. Set delta=-.inf, or algo=dagrpo_mask."
    actor = config.actor_rollout_ref.actor
    if settings.probe_every is not None and (actor.strategy not in ("fsdp", "fsdp2") or sequence_parallel(actor) > 1):
        yield (
            f"{_SECTION}.probe_every={settings.probe_every} with actor_rollout_ref.actor.strategy={actor.strategy} and "
            f"sequences split over {sequence_parallel(actor)} workers: the probe needs FSDP and unsplit sequences. Set "
            "it to null."
        )
    if has_demonstrations:
        yield from _check_demonstrations(config)


def _check_judge(config: DictConfig, mask: MaskSettings) -> Iterator[str]:
    settings = JudgeSettings.of(config.algorithm.gsd.dagrpo.judge)
    for delta in {mask.delta.first, mask.delta.last} if settings.scorer != "reward_model" else ():
        if delta > HIGHEST or -math.inf < delta <= -HIGHEST:
            pairs = "no judged pair" if delta > 0 else "every pair"
            yield (
                f"{_SECTION}.delta={config.algorithm.gsd.dagrpo.delta}: scores range from 0 to {HIGHEST}, so {pairs} "
                f"reaches {delta:g}. Set it to a number above -{HIGHEST} and up to {HIGHEST}."
            )
    if settings.cache is not None and scheme_of(settings.cache):
        yield f"{_SECTION}.judge.cache={settings.cache}: the cache is a local file. Set the key to a path, or to null."
    elif settings.cache is not None:
        path = Path(settings.cache).expanduser().absolute()
        folder = next((folder for folder in path.parents if folder.exists()), path)
        if path.is_dir() or not os.access(path if path.is_file() else folder, os.W_OK):
            yield (
                f"{_SECTION}.judge.cache={settings.cache}: cannot write a file there. Set it to the path of a writable "
                "file, or to null."
            )
        try:
            journal_mode(path, mounts())
        except ValueError as error:
            yield f"{_SECTION}.judge.cache={settings.cache}: {error}."
    model = config.reward.reward_model
    if settings.scorer == "reward_model" and not (model.enable and model.enable_resource_pool):
        yield (
            f"{_SECTION}.judge.scorer=reward_model with reward.reward_model.enable={model.enable} and "
            f"enable_resource_pool={model.enable_resource_pool}: groups cannot be scored while others are generated. "
            f"Set {' '.join(USE_REWARD_MODEL)}, or use another scorer ({_SECTION}.judge.scorer)."
        )


def _check_demonstrations(config: DictConfig) -> Iterator[str]:
    settings = DemonstrationSettings.of(config.algorithm.gsd.dagrpo.demonstrations)
    loss, rollout = config.actor_rollout_ref.actor.policy_loss, config.actor_rollout_ref.rollout
    if is_dagrpo_loss(config):
        try:
            check_ratio(loss.get("ratio"), loss.get("gamma"))
            check_on_policy(loss.get("on_policy"))
        except ValueError as error:
            yield f"{_LOSS}.{error}"
    if isinstance(rollout.n, int) and settings.per_group >= rollout.n:
        yield (
            f"{_SECTION}.demonstrations.per_group={settings.per_group} with actor_rollout_ref.rollout.n={rollout.n}: "
            "no response of the policy would be left. Set per_group to a smaller number."
        )


def check_demonstration_column(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that the Parquet files of training prompts have the column with demonstrations."""
    settings = DemonstrationSettings.of(config.algorithm.gsd.dagrpo.demonstrations)
    column, is_made_on_first_use = settings.column, made_on_first_use(config)
    if settings.source == "self" or not column:
        return
    key = f"{_SECTION}.demonstrations.column={column}"
    for file in map(str, as_list(config.data.train_files)):
        if scheme_of(file) or is_made_on_first_use(file):
            continue
        try:
            schema = pq.read_schema(Path(file).expanduser())
        except (pa.ArrowException, OSError):
            continue  # another check reports a file that is not Parquet
        if column not in schema.names:
            columns = ", ".join(schema.names)
            yield f"{key}: data.train_files={file} has no such column. Set the key to one of its columns: {columns}."
        elif not _holds_texts(schema.field(column).type):
            kind = schema.field(column).type
            yield (
                f"{key}: in data.train_files={file}, this column has the type {kind}. Set the key to a column of "
                "texts, or of lists of texts."
            )


def _holds_texts(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_texts(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


#: Assumptions about a step whose responses a distilled judge scores. Most runs have more and longer ones.
_SHARE_JUDGED, _SHARE_OF_LENGTH = 0.5, 0.25


def check_distilled_judge(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a distilled judge that cannot score a step's responses in ``budget_s``. Then most judgements would fail.

    The check measures this machine, and takes a second.
    """
    from verl_gsd.judge.encoder_cost import layer_weights, operations_per_second, seconds_per_response
    from verl_gsd.judge.head import load_distilled

    settings = JudgeSettings.of(config.algorithm.gsd.dagrpo.judge)
    batch, size = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    longest = config.data.max_response_length
    if settings.scorer != "distilled" or not all(is_whole(number, 1) for number in (batch, size, longest)):
        return
    key = f"{_SECTION}.judge.model={settings.model}"
    try:
        encoder = load_distilled(Path(settings.model or "")).encoder
        weights = layer_weights(encoder)
    except ValueError as error:
        yield f"{key}: {error}."
        return
    responses, tokens = batch * size * _SHARE_JUDGED, longest * _SHARE_OF_LENGTH
    seconds = seconds_per_response(weights, tokens, operations_per_second())
    if responses * seconds > settings.budget_s:
        yield (
            f"{key}: the trainer runs the encoder {encoder} on one CPU core. {responses:,.0f} responses (half of a "
            f"step's) of {tokens:,.0f} tokens (a quarter of data.max_response_length) would take about "
            f"{responses * seconds:,.0f} s, and {_SECTION}.judge.budget_s={settings.budget_s:g} allows "
            f"{settings.budget_s / seconds:,.0f} of them. The others would count as failed judgements. Use a smaller "
            "encoder, set a larger budget_s, or set scorer=openai or scorer=reward_model."
        )


def check_judge_server(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that the judge's server answers. Without it, no pair would be judged in any step."""
    from verl_gsd.judge.build import served_model

    try:
        settings = JudgeSettings.of(config.algorithm.gsd.dagrpo.judge)
        if settings.scorer == "openai":
            served_model(settings)
    except ValueError as error:
        yield f"{_SECTION}.judge.{error}."
