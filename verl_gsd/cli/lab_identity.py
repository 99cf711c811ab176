"""``verl-gsd lab identity``: GSD's identity on a real policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_gsd.console import err, fail
from verl_gsd.word_completion import complete_words

if TYPE_CHECKING:
    from verl_gsd.lab.identity_page import IdentityStudy
    from verl_gsd.lab.training.study import StudyPolicy


def identity(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            autocompletion=complete_words,
            help="The words of verl-gsd train, e.g. algo=grpo task=arithmetic.",
        ),
    ],
    model: Annotated[
        Path | None, typer.Option(help="The folder of another policy. Default: the model of the words.")
    ] = None,
    groups: Annotated[
        int, typer.Option(min=1, help="At most this many groups are measured, spread over solve rates.")
    ] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal numbers.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write a page to this file, FILE.html.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write every chart into this folder.")] = None,
) -> None:
    """Measure group gradients of a real policy against sigma^(2 - alpha) times the score difference.

    Nothing is trained. The policy samples one group per training prompt. For groups with different rewards, the command
    computes both sides of the identity of arXiv 2607.00152 by separate backward passes.

    Examples:
        verl-gsd lab identity algo=grpo task=arithmetic
        verl-gsd lab identity algo=grpo task=arithmetic actor_rollout_ref.rollout.n=16 --groups 24
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.lab.outputs import check_outputs, print_lines, print_table, write_outputs

    check_outputs(output, png)
    try:
        from verl_gsd.lab.training.study import StudyPolicy, study_config

        config = study_config(words, model=model)
        with err.status("loading the policy and verl"):
            policy = StudyPolicy(config, model)
        study = _measure(policy, int(config.actor_rollout_ref.rollout.n), groups, seed)
    except ConfigError as error:
        fail(str(error))
    from verl_gsd.lab import identity_page as page

    print_lines([page.setting(study)])
    print_table("The identity of arXiv 2607.00152, by solve rate", page.HEADER, page.rows(study))
    print_lines([page.legend(study)])
    print_lines([*page.findings(study), *page.CAVEATS], bullet="- ")
    if output is not None or png is not None:
        write_outputs(page.TITLE, page.sections(study), page.charts_of(study), output, png)


def _measure(policy: StudyPolicy, group_size: int, count: int, seed: int) -> IdentityStudy:
    """Sample, choose groups, and measure them.

    Raises:
        ConfigError: all groups are silent.
    """
    import numpy as np
    import torch
    from rich.progress import track

    from verl_gsd.errors import ConfigError
    from verl_gsd.lab.identity import IdentityMeter, spread_over_rates
    from verl_gsd.lab.identity_page import IdentityStudy

    torch.set_num_threads(1)  # with such small tensors, several threads only wait for each other
    with err.status("sampling one group per prompt"):
        rates, sampled = policy.measure(1, group_size, seed)
    mixed = [group for group in sampled if group.rewards.min() < group.rewards.max()]
    if not mixed:
        raise ConfigError(
            f"All {len(sampled)} groups are silent: their rewards are equal, so that their gradients are 0. Set a "
            "larger actor_rollout_ref.rollout.n, or use --model with a policy that solves some prompts sometimes."
        )
    rate_of_mixed = np.array([rates.p[group.prompt] for group in mixed])
    chosen = spread_over_rates(rate_of_mixed, count, seed)
    meter = IdentityMeter(policy.model, policy.temperature)
    measured = [
        meter.measure(
            policy.prompts[mixed[number].prompt],
            mixed[number].responses,
            mixed[number].rewards,
            float(rate_of_mixed[number]),
        )
        for number in track(chosen, "measuring gradients", console=err, transient=True)
    ]
    rewards = {float(reward) for group in sampled for reward in group.rewards}
    return IdentityStudy(
        model=str(policy.path),
        group_size=group_size,
        is_binary=rewards <= {0.0, 1.0},
        mixed=len(mixed),
        sampled=len(sampled),
        slack=float(rates.slack.max()),
        groups=measured,
    )
