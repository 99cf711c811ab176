"""Checks that each row's ``data_source`` has a reward function (verl#5558).

Without a reward function of the user, verl chooses one by ``data_source``. For an unknown name it raises an error in a
reward worker, at each response, minutes after the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import USE_REWARD_MODEL
from verl_gsd.preparation.manifest import read_manifest

#: For these, verl evaluates texts of the data or of responses as Python: the ground truth and matrices of numina, the
#: ground truth of geometry3k (mathruler gives it to sympy's parser), and programs, which it runs without a sandbox
#: (verl/utils/reward_score/prime_math, geo3k.py and prime_code).
RUN_AS_CODE = frozenset(
    {
        "numina_aops_forum",
        "numina_synthetic_math",
        "numina_amc_aime",
        "numina_synthetic_amc",
        "numina_cn_k12",
        "numina_olympiads",
        "codecontests",
        "apps",
        "codeforces",
        "taco",
        "hiyouga/geometry3k",
    }
)
#: The sources that ``default_compute_score`` knows (verl/utils/reward_score/__init__.py).
VERL_SOURCES = RUN_AS_CODE | frozenset(
    {
        "openai/gsm8k",
        "lighteval/MATH",
        "DigitalLearningGmbH/MATH-lighteval",
        "HuggingFaceH4/MATH-500",
        "math_dapo",
        "math",
        "math_dapo_reasoning",
        "searchR1_nq",
        "searchR1_triviaqa",
        "searchR1_popqa",
        "searchR1_hotpotqa",
        "searchR1_2wikimultihopqa",
        "searchR1_musique",
        "searchR1_bamboogle",
    }
)
#: It also knows all sources that start with this.
VERL_PREFIX = "aime"
#: Unknown sources that a message names.
_NAMED = 5


def reads_ground_truth(config: DictConfig) -> bool:
    """Whether a reward function compares responses with ``reward_model.ground_truth``.

    It does not if a discriminative reward model scores without a custom function, or in a custom reward manager.
    """
    own_manager = OmegaConf.select(config, "reward.reward_manager.source") not in (None, "register")
    by_model = bool(OmegaConf.select(config, "reward.reward_model.enable")) and not has_own_function(config)
    return not own_manager and not by_model


def has_own_function(config: DictConfig) -> bool:
    """Whether the config names a reward function, which then scores all sources."""
    return OmegaConf.select(config, "reward.custom_reward_function.path") is not None


def is_chosen_by_source(config: DictConfig) -> bool:
    """Whether verl chooses the reward function of a row by its ``data_source``."""
    return reads_ground_truth(config) and not has_own_function(config)


def check_sources(sources: Iterable[Any], config: DictConfig) -> Iterator[str]:
    """Report values of ``data_source`` whose reward nobody chose: verl has none for them, or it runs texts as code."""
    if not is_chosen_by_source(config):
        return
    sources = list(sources)
    if dangerous := sorted({str(source) for source in sources if source in RUN_AS_CODE}):
        yield run_as_code(dangerous)
    unknown = sorted({str(source) for source in sources if not _is_verls(source)})
    if not unknown:
        return
    yield (
        f"data_source={_names(unknown)}: verl has no reward function for this source. Set "
        "reward.custom_reward_function.path to a file with a function compute_score, for example "
        "pkg://verl_gsd.tasks.maths for mathematics. For a reward model, set "
        f"{' '.join(USE_REWARD_MODEL)}."
    )


def run_as_code(sources: list[str]) -> str:
    """The message that rejects ``sources``, which are among ``RUN_AS_CODE``."""
    return (
        f"data_source={_names(sources)}: for this source, verl's reward function runs texts of the data or of "
        "responses as Python code. Set reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths for "
        "mathematics. If you trust the data, or run in a sandbox, name verl's function: "
        "reward.custom_reward_function.path=pkg://verl.utils.reward_score and "
        "reward.custom_reward_function.name=default_compute_score."
    )


def _names(sources: list[str]) -> str:
    return ", ".join(sources[:_NAMED]) + (f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else "")


def check_prepared_verifier(file: Path, config: DictConfig) -> Iterator[str]:
    """Report a file of ``verl-gsd prepare`` whose verifier the config leaves out.

    verl may have a reward function for its source. That function expects another form of answer than the prompts of
    ``verl-gsd prepare`` ask for, so that all rewards could be zero.
    """
    if not is_chosen_by_source(config):
        return
    try:
        dataset = read_manifest(file.parent)
        verifier = dataset.verifier(file.stem) if dataset is not None and file.stem in dataset.splits else None
    except ValueError:
        return  # not the manifest of a prepared data set, or it names code of somebody else
    if verifier is not None and file.suffix == ".parquet":
        yield (
            f"verl-gsd prepare made this file for the verifier {verifier}, but no reward function is set. Set "
            f"data={file.parent} instead of this key, or set reward.custom_reward_function.path=pkg://{verifier}."
        )


def _is_verls(source: Any) -> bool:
    return isinstance(source, str) and (source in VERL_SOURCES or source.startswith(VERL_PREFIX))
