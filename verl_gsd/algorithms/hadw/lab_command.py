"""``verl-gsd lab bias``: the bias of group-relative advantages on a real policy, and what HA-DW's factor does to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_gsd.console import err, fail
from verl_gsd.word_completion import complete_words

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.algorithms.hadw.policy_bias_page import BiasStudy
    from verl_gsd.algorithms.hadw.settings import HadwSettings
    from verl_gsd.lab.training.study import StudyPolicy


def lab_bias(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            autocompletion=complete_words,
            help="The words of verl-gsd train, e.g. algo=hadw task=arithmetic.",
        ),
    ],
    model: Annotated[
        Path | None, typer.Option(help="The folder of another policy. Default: the model of the words.")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="Groups per training prompt.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal numbers.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write a page to this file, FILE.html.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write every chart into this folder.")] = None,
) -> None:
    """Measure the bias of group-relative advantages on a real policy, before and after HA-DW's factor.

    Nothing is trained. Solve rates are computed exactly, and groups are sampled from the policy. The command compares
    both with Theorems 1 to 3 and Lemma 2 of arXiv 2601.08521. Anchor and lambda_scale are those of algorithm.gsd.hadw.

    Examples:
        verl-gsd lab bias algo=hadw task=arithmetic
        verl-gsd lab bias algo=hadw task=arithmetic --model MODEL --output bias.html
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.lab.outputs import check_outputs, print_lines, print_table, write_outputs

    check_outputs(output, png)
    try:
        from verl_gsd.lab.training.study import StudyPolicy, study_config

        reads = ("algorithm.gsd.hadw.preset", "algorithm.gsd.hadw.lambda_scale")
        config = study_config(words, reads=reads, model=model)
        settings = _settings(config)
        with err.status("loading the policy and verl"):
            policy = StudyPolicy(config, model)
        study = _measure(policy, settings, int(config.actor_rollout_ref.rollout.n), groups, seed)
    except ConfigError as error:
        fail(str(error))
    from verl_gsd.algorithms.hadw import policy_bias_page as page

    print_lines([page.setting(study)])
    print_table("The group mean as a baseline", page.BASELINE_HEADER, page.baseline_rows(study.bias))
    print_table("How often an advantage is too small", page.CHANCE_HEADER, page.chance_rows(study.bias))
    print_lines([page.factor_setting(study)])
    print_table("After HA-DW's factor", page.FACTOR_HEADER, page.factor_rows(study.bias))
    print_lines([*page.legend(), *page.findings(study), *page.CAVEATS], bullet="- ")
    if output is not None or png is not None:
        write_outputs(page.TITLE, page.sections(study), page.charts_of(study), output, png)


def _settings(config: DictConfig) -> HadwSettings:
    """The settings of the factor.

    Raises:
        ConfigError: the config has no factor.
    """
    from verl_gsd.algorithms.hadw.settings import HadwSettings
    from verl_gsd.errors import ConfigError

    section = config.algorithm.gsd.get("hadw")
    if section is None:
        raise ConfigError("algorithm.gsd.hadw is missing, so that there is no factor to measure. Use algo=hadw.")
    try:
        settings = HadwSettings.of(section)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.preset == "off":
        raise ConfigError(
            "algorithm.gsd.hadw.preset=off: this preset has no factor. Set it to soft, hard, paper, fixed, or a number."
        )
    return settings


def _measure(policy: StudyPolicy, settings: HadwSettings, group_size: int, groups: int, seed: int) -> BiasStudy:
    """Sample groups, and compare them with exact solve rates.

    Raises:
        ConfigError: no group is mixed.
    """
    import numpy as np
    import torch
    from rich.progress import Progress

    from verl_gsd.algorithms.hadw.policy_bias import measure_bias
    from verl_gsd.algorithms.hadw.policy_bias_page import BiasStudy
    from verl_gsd.errors import ConfigError

    torch.set_num_threads(1)  # with such small tensors, several threads only wait for each other
    with Progress(console=err, transient=True) as bars:
        bar = bars.add_task("sampling groups", total=len(policy.prompts))
        rates, sampled = policy.measure(groups, group_size, seed, on_prompts=lambda count: bars.advance(bar, count))
    correct = np.array([group.accuracies.sum() for group in sampled]).reshape(len(policy.prompts), groups)
    mean_rate = float(rates.p.mean())
    fixed = 0.5 if settings.preset == "fixed" else settings.preset
    anchor = mean_rate if isinstance(fixed, str) else fixed
    try:
        bias = measure_bias(rates.p, correct, group_size, anchor=anchor, lambda_scale=settings.lambda_scale)
    except ValueError as error:
        raise ConfigError(
            f"{error} Set a larger actor_rollout_ref.rollout.n, or use --model with a policy that solves some prompts "
            "sometimes."
        ) from error
    return BiasStudy(
        model=str(policy.path),
        preset=str(settings.preset),
        is_fixed=not isinstance(fixed, str),
        n_prompts=len(policy.prompts),
        accuracy=float(correct.mean() / group_size),
        mean_rate=mean_rate,
        slack=float(rates.slack.max()),
        bias=bias,
    )
