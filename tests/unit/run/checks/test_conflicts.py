"""Every declared conflict: a config that has both sides is rejected by name, and what is said to be set helps."""

import re
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.conflicts import MODE, Condition, all_conflicts, others_that_weigh
from verl_gsd.declaration import WEIGHS
from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate as validation
from verl_gsd.run.checks.conflicts import check_conflicts
from verl_gsd.run.compose import Line

LINE = Line({}, ())
OURS = [declaration for declaration in extension.declarations() if extension.is_ours(declaration)]
CONFLICTS = [(of, conflict) for of in OURS for conflict in all_conflicts(of)]


def choice_with(declaration):
    """The first choice of a group that has the extension's section."""
    for group in ("budget", "sampler", "silent_groups", "algo"):
        for name in groups.choices(group):
            if declaration.section(groups.load_with_defaults(group, name).algorithm.gsd) is not None:
                return f"{group}={name}"
    raise AssertionError(f"no choice has algorithm.gsd.{declaration.name}")


@pytest.fixture
def config_with(compose_fast):
    """declaration -> a resolved config in which the extension takes part."""

    def config_with(declaration):
        choice = choice_with(declaration)
        algo = [] if choice.startswith("algo=") else ["algo=grpo"]
        return compose_fast(*algo, choice, "task=arithmetic", "hardware=cpu")[0]

    return config_with


def add_section(config, declaration):
    group, _, name = choice_with(declaration).partition("=")
    section = declaration.section(groups.load_with_defaults(group, name).algorithm.gsd)
    resolved = OmegaConf.merge(config, {"algorithm": {"gsd": {}}})
    OmegaConf.update(resolved, f"algorithm.gsd.{declaration.name}", section, force_add=True)
    OmegaConf.resolve(resolved)
    return resolved


def fulfil(config, text):
    """The config in which a condition holds."""
    condition = Condition.parse(text)
    other = extension.declared(condition.key.removeprefix("algorithm.gsd."))
    if other is not None and not condition.values:
        return add_section(config, other)
    if condition.negated:
        value = "sync" if condition.key == MODE else "other" if isinstance(condition.values[0], str) else 0.7
    else:
        value = condition.values[0] if condition.values else "token"
    OmegaConf.update(config, condition.key, value, force_add=True)
    return config


def sentences(config, *words):
    return [text for text in check_conflicts(config, LINE) if all(word in text for word in words)]


def names(declaration, conflict):
    """Both sides, as a message names them."""
    return f"{Condition.parse(conflict.setting).key}", f": algorithm.gsd.{declaration.name} does not work with it: "


def fixes(conflict):
    """(key, value) of each alternative of the first sentence of the fix."""
    first = conflict.fix.partition(". ")[0].removesuffix(".")
    return re.findall(r"([\w.]+)=([^\s,]+)", first)


@pytest.mark.parametrize(
    ("declaration", "conflict"),
    [pair for pair in CONFLICTS if pair[1].setting != WEIGHS],
    ids=lambda value: getattr(value, "setting", getattr(value, "name", None)),
)
def test_a_config_that_has_both_is_rejected_and_the_fix_helps(config_with, compose_fast, declaration, conflict):
    both = names(declaration, conflict)
    config = config_with(declaration)
    assert not sentences(config, *both), "the choice itself has no conflict"
    config = fulfil(config, conflict.setting)
    if conflict.when:
        config = fulfil(config, conflict.when)
    (said,) = sentences(config, *both)
    # An extension's own reason comes before one that follows from its other fields.
    key = both[0]
    first = next(one for one in all_conflicts(declaration) if Condition.parse(one.setting).key == key)
    assert said.startswith(key) and (conflict.reason in said or first.reason in said)
    with pytest.raises(ConfigError) as refused:
        validation.validate(config, LINE, leave_out=validation.OF_THIS_MACHINE)
    assert said in str(refused.value).splitlines()

    # The other way round: the extension joins a config that has the setting.
    other = fulfil(compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")[0], conflict.setting)
    other = add_section(other, declaration)
    if conflict.when:
        other = fulfil(other, conflict.when)
    assert len(sentences(other, *both)) == 1

    assert conflict.fix.endswith(".") and not conflict.reason.endswith(".") and fixes(conflict)
    for key, value in fixes(conflict):
        mended = config.copy()
        assert key not in groups.GROUPS or value == {"silent_groups": "counted"}.get(key, "uniform")
        full, value = (f"algorithm.gsd.{key}", "null") if key in groups.GROUPS else (key, value)
        OmegaConf.update(mended, full, OmegaConf.create(f"x: {value}").x, force_add=True)
        assert not sentences(mended, *both), (key, value)


@pytest.mark.parametrize(
    ("declaration", "other"),
    [(of, other) for of, conflict in CONFLICTS if conflict.setting == WEIGHS for other in others_that_weigh(of, OURS)],
    ids=lambda of: of.name,
)
def test_whatever_else_weighs_is_rejected_once(config_with, declaration, other):
    for first, second in ((declaration, other), (other, declaration)):
        config = add_section(config_with(first), second)
        named = [
            text for text in check_conflicts(config, LINE) if all(f"gsd.{of.name}" in text for of in (first, second))
        ]
        (said,) = named
        assert said.startswith(f"algorithm.gsd.{other.name}: algorithm.gsd.{declaration.name} does not work with it: ")
        with pytest.raises(ConfigError, match=re.escape(said)):
            validation.validate(config, LINE, leave_out=validation.OF_THIS_MACHINE)
        OmegaConf.update(config, f"algorithm.gsd.{second.name}", None)
        assert not sentences(config, f"gsd.{second.name}")


def test_a_part_is_not_rejected_beside_the_whole():
    """It is named where the whole, which contains it, weighs nothing itself."""
    whole, part, other = (extension.Declaration(name, "module:Class") for name in ("whole", "whole.part", "other"))
    assert others_that_weigh(other, [whole, part]) == [whole]
    assert others_that_weigh(other, [replace(whole, weighs=False), part]) == [part]
    assert others_that_weigh(part, [whole, part]) == []


def test_of_dagrpo_gvpo_rejects_the_mask_alone(config_with):
    gvpo = extension.declared("gvpo")
    config = add_section(config_with(extension.declared("dagrpo.demonstrations")), gvpo)
    (said,) = sentences(config, "algorithm.gsd.dagrpo", "algorithm.gsd.gvpo ")
    assert said.startswith("algorithm.gsd.dagrpo.judge: ")
    OmegaConf.update(config, "algorithm.gsd.dagrpo.judge", None)
    assert not sentences(config, "algorithm.gsd.dagrpo", "algorithm.gsd.gvpo ")


def test_two_extensions_that_do_not_work_together_say_so_on_one_side():
    known = {f"algorithm.gsd.{of.name}": of.name for of in OURS}
    pairs = [(of.name, known[conflict.setting]) for of, conflict in CONFLICTS if conflict.setting in known]
    assert pairs and not {(second, first) for first, second in pairs} & set(pairs)


def test_a_trainer_mode_of_verls_is_replaced_by_the_one_that_extends_it(config_with):
    config = config_with(extension.declared("hadw"))
    config.trainer.v1.trainer_mode = "colocate_async"
    (said,) = check_conflicts(config, LINE)
    assert said.endswith(f"Set {MODE}=gsd_colocate_async.")


def test_a_setting_that_an_extension_rejects_itself_is_named_once(config_with):
    config = config_with(extension.declared("budget"))
    config.trainer.v1.trainer_mode = "sync"
    assert len(sentences(config, MODE, "algorithm.gsd.budget")) == 1


@pytest.mark.parametrize(
    ("text", "holding", "others"),
    [
        ("a.b", [1, 0, False, "x", {"c": 1}], [None]),
        ("a.b=1", [1, 1.0], [None, True, 2, "1"]),
        ("a.b=true", [True], [None, 1, False]),
        ("a.b=x|null", ["x", None], ["y", 0]),
        ("a.b!=1", [2, True, "1"], [None, 1, 1.0]),
        ("a.b!=x|y", ["z"], ["x", "y", None]),
    ],
)
def test_when_a_condition_holds(text, holding, others):
    condition = Condition.parse(text)
    for value in (*holding, *others):
        config = OmegaConf.create({"a": {"b": value}})
        assert condition.holds(config) == any(value is one for one in holding), value
    assert condition.holds(OmegaConf.create({"a": 3})) == any(value is None for value in holding), "no such key"


def test_a_conflict_names_the_word_that_the_user_typed(compose_fast):
    config, line = compose_fast("algo=gvpo", "task=arithmetic", "budget=adaptive", "hardware=cpu")
    (problem,) = [text for text in check_conflicts(config, line) if "budget" in text]
    assert problem.startswith(
        "budget=adaptive, which sets algorithm.gsd.budget: algorithm.gsd.gvpo does not work with it: "
    )
    assert "Set budget=uniform" in problem
