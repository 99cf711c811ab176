"""What can be wrong with a config under DaGRPO. Its sections by themselves are right where this is asked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.settings import MaskSettings, check_on_policy, check_ratio
from verl_gsd.judge.disks import journal_mode, mounts
from verl_gsd.judge.scorer import HIGHEST
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.run.checks.parallelism import sequence_parallel
from verl_gsd.run.checks.validate import as_list, made_on_first_use
from verl_gsd.run.compose import Line
from verl_gsd.run.remote_paths import scheme_of

_LOSS = "actor_rollout_ref.actor.policy_loss"
_SECTION = "algorithm.gsd.dagrpo"


def is_dagrpo_loss(config: DictConfig) -> bool:
    """Whether the policy loss is the one that knows demonstrations."""
    return OmegaConf.select(config, f"{_LOSS}.loss_mode") == "dagrpo"


def dagrpo_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """Everything that is wrong with DaGRPO's settings together with others, and with those of its loss."""
    section = OmegaConf.select(config, _SECTION)
    shown = OmegaConf.select(config, f"{_SECTION}.demonstrations") is not None
    if is_dagrpo_loss(config) != shown:
        yield (
            f"{_LOSS}.loss_mode={OmegaConf.select(config, f'{_LOSS}.loss_mode')} {'with' if shown else 'without'} "
            f"{_SECTION}.demonstrations: demonstrations need both. Set algo=dagrpo or dagrpo_anchors, or neither."
        )
        return
    if section is None:
        return
    judged = section.get("judge") is not None
    own = MaskSettings.of(section)
    if judged:
        yield from _judge_wrong(config, own)
    named = f"{_SECTION}.delta={section.get('delta', own.delta.first)}"
    if judged and own.delta.keeps_all and not own.fail_closed:
        yield f"{named} with {_SECTION}.judge: no score is ever used. Set delta to a finite number, or judge=null."
    if not judged and not own.delta.keeps_all:
        yield f"{named} without {_SECTION}.judge: there are no scores. Set delta=-.inf, or algo=dagrpo_mask."
    actor = config.actor_rollout_ref.actor
    if own.probe_every is not None and (actor.strategy not in ("fsdp", "fsdp2") or sequence_parallel(actor) > 1):
        yield (
            f"{_SECTION}.probe_every={own.probe_every} with actor_rollout_ref.actor.strategy={actor.strategy} and "
            f"sequences over {sequence_parallel(actor)} workers: only FSDP's gradients of whole sequences are probed. "
            "Set it to null."
        )
    if shown:
        yield from _demonstrations_wrong(config)


def _judge_wrong(config: DictConfig, own: MaskSettings) -> Iterator[str]:
    settings = JudgeSettings.of(config.algorithm.gsd.dagrpo.judge)
    for delta in {own.delta.first, own.delta.last} if settings.scorer != "reward_model" else ():
        if delta > HIGHEST or -math.inf < delta <= -HIGHEST:
            what = "no judged pair" if delta > 0 else "every pair"
            yield (
                f"{_SECTION}.delta={config.algorithm.gsd.dagrpo.delta}: scores go from 0 to {HIGHEST}, so that {what} "
                f"reaches {delta:g}. Set it to a number above -{HIGHEST} and up to {HIGHEST}."
            )
    if settings.cache is not None and scheme_of(settings.cache):
        yield f"{_SECTION}.judge.cache={settings.cache}: the cache is a local file. Set the key to a path, or to null."
    elif settings.cache is not None:
        place = Path(settings.cache).expanduser().absolute()
        folder = next((folder for folder in place.parents if folder.exists()), place)
        if place.is_dir() or not os.access(place if place.is_file() else folder, os.W_OK):
            yield (
                f"{_SECTION}.judge.cache={settings.cache}: no file can be made there. Set it to the path of a file, or "
                "to null."
            )
        try:
            journal_mode(place, mounts())
        except ValueError as error:
            yield f"{_SECTION}.judge.cache={settings.cache}: {error}."
    model = config.reward.reward_model
    if settings.scorer == "reward_model" and not (model.enable and model.enable_resource_pool):
        yield (
            f"{_SECTION}.judge.scorer=reward_model with reward.reward_model.enable={model.enable} and "
            f"enable_resource_pool={model.enable_resource_pool}: no reward model can be asked while groups wait. Set "
            "both to true, or use another scorer."
        )


def _demonstrations_wrong(config: DictConfig) -> Iterator[str]:
    settings = DemonstrationSettings.of(config.algorithm.gsd.dagrpo.demonstrations)
    loss, rollout = config.actor_rollout_ref.actor.policy_loss, config.actor_rollout_ref.rollout
    try:
        check_ratio(loss.get("ratio"), loss.get("gamma"))
        check_on_policy(loss.get("on_policy"))
    except ValueError as error:
        yield f"{_LOSS}.{error}"
    if isinstance(rollout.n, int) and settings.per_group >= rollout.n:
        yield (
            f"{_SECTION}.demonstrations.per_group={settings.per_group} of actor_rollout_ref.rollout.n={rollout.n}: no "
            "response of the policy's own would be left. Set it to a smaller number."
        )


def demonstrations_absent(config: DictConfig, line: Line) -> Iterator[str]:
    """Parquet files of training prompts without the column that demonstrations come from."""
    settings = DemonstrationSettings.of(config.algorithm.gsd.dagrpo.demonstrations)
    column, made = settings.column, made_on_first_use(config)
    if settings.source == "self" or not column:
        return
    key = f"{_SECTION}.demonstrations.column={column}"
    for file in map(str, as_list(config.data.train_files)):
        if scheme_of(file) or made(file):
            continue
        try:
            schema = pq.read_schema(Path(file).expanduser())
        except (pa.ArrowException, OSError):
            continue  # another check reports what is no Parquet file
        if column not in schema.names:
            yield f"{key}: data.train_files={file} has no such column. It has {', '.join(schema.names)}."
        elif not _is_of_texts(schema.field(column).type):
            kind = schema.field(column).type
            yield f"{key}: data.train_files={file} has {kind} there. Set it to a column of texts, or of lists of texts."


def _is_of_texts(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_of_texts(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def judge_absent(config: DictConfig, line: Line) -> Iterator[str]:
    """A judge's server that does not answer: every pair would stay unjudged, step after step."""
    from verl_gsd.judge.build import served_model

    try:
        settings = JudgeSettings.of(config.algorithm.gsd.dagrpo.judge)
        if settings.scorer == "openai":
            served_model(settings)
    except ValueError as error:
        yield f"{_SECTION}.judge.{error}."
