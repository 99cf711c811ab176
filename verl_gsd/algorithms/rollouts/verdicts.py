"""What a budget and a sampler need of a verifier: an accuracy in [0, 1] for every response."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from verl_gsd.groups import Group, first_invalid_accuracy


def require_accuracies(groups: Sequence[Group], unrated: Collection[str], section: str) -> None:
    """Check groups before their update. Without accuracies, every prompt would stay unknown for the whole run.

    The groups must have left the buffer, because an extension may rescale their accuracies at that point.

    Args:
        unrated: data sources of which the memory takes no accuracies (``PromptStore.unrated``), as after a
            resume of a run that had neither budget nor sampler before.
        section: the config section that reads the accuracies, for the message.

    Raises:
        ValueError: a response of the visit has no accuracy, or one outside [0, 1]. The message names its prompt. Or
            a group is of an unrated source.
    """
    for group in groups:
        accuracy = first_invalid_accuracy(group)
        if accuracy is not None:
            raise ValueError(
                f"{section} needs acc, the verifier's verdict in [0, 1]. A response to data_source="
                f"{group.data_source}, index={group.index} has acc={accuracy}. Return acc from the reward function, "
                f'for example {{"score": -1.0, "acc": 0.0}} for a wrong response, or set {section}=null.'
            )
        if group.data_source in unrated:
            raise ValueError(
                f"{section} needs solve rates, and there are none of data_source={group.data_source}, because acc was "
                "outside [0, 1] in an earlier step. If the reward function has been corrected since then, resume with "
                f"algorithm.gsd.state=fresh. Otherwise set {section}=null."
            )
