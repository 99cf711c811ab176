"""Every recipe on every machine: it composes, passes our checks and verl's, and has what its paper states."""

import functools
import inspect
import re
import shlex
from itertools import pairwise

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import config as groups
from verl_gsd.audit import audit
from verl_gsd.trainer import validation
from verl_gsd.trainer.config import ConfigError, Line, compose_config, parse_line, resolve, verl_config_directory

RECIPES = groups.choices("recipe")
#: hardware=gpu is whatever this machine has (test_engines.py).
HARDWARE = [name for name in groups.choices("hardware") if name != "gpu"]


@pytest.fixture(autouse=True)
def _data(monkeypatch):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")


@functools.cache
def _part(*words, of_verl=False):
    """What a choice of groups says, or verl's own config: plain, interpolations open."""
    with initialize_config_dir(str(verl_config_directory()), version_base=None):
        return OmegaConf.to_container(compose("ppo_trainer" if of_verl else None, overrides=list(words)))


@functools.cache
def _stored():
    groups.store_groups()


def merged(node, over):
    """As Hydra merges: sections by key, all else replaced."""
    if not (isinstance(node, dict) and isinstance(over, dict)):
        return over
    return node | {key: merged(node.get(key), value) for key, value in over.items()}


def composed(recipe, *words, resolved=True):
    """As the command line composes, a hundred times over: each group by Hydra once, then verl's, hardware and recipe
    merged in that order."""
    _stored()
    of_groups = [word for word in words if word.partition("=")[0] in groups.GROUPS]
    hardware = [f"+{word}" for word in of_groups if word.startswith("hardware=")]
    algo = [word for word in of_groups if word.startswith("algo=")]
    rest = [f"+{word}" for word in of_groups if word.startswith("task=")]
    config = merged(_part(of_verl=True), _part(*hardware))
    config = OmegaConf.create(merged(config, _part(f"+recipe={recipe}", *algo, *rest, "+logger=console")))
    for word in words:
        key, _, value = word.partition("=")
        if word not in of_groups:
            assert OmegaConf.select(config, key, throw_on_missing=False) is not None, key
            OmegaConf.update(config, key, OmegaConf.create(f"x: {value}").x)
    return resolve(config) if resolved else config


def problems(config, *words):
    line = Line({}, words)
    checks = [check for check in validation.CHECKS if check not in validation.OF_THIS_MACHINE]
    return [problem for check in checks for problem in check(config, line)]


def leaves(node, prefix=""):
    """(dotted key, value), sections left out."""
    for name, value in node.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def test_the_quick_way_of_these_tests_is_the_command_lines():
    line = parse_line(["algo=dagrpo_mask", "recipe=dagrpo/qwen2.5_math_7b", "hardware=multi_node"])
    real = resolve(compose_config(line))
    assert composed("dagrpo/qwen2.5_math_7b", "hardware=multi_node", "algo=dagrpo_mask") == real


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_on_every_machine(recipe):
    pytest.importorskip("verl")
    from verl_gsd.trainer.validation_with_verl import validate_with_verl

    # No server is asked whether it is there.
    stub = ["algorithm.gsd.dagrpo.judge.scorer=stub"] if recipe.startswith("dagrpo") else []
    for hardware in HARDWARE:
        config = composed(recipe, f"hardware={hardware}", *stub)
        said = problems(config)
        if (recipe, hardware) == ("gvpo/summarisation", "1xh200"):
            assert len(said) == 1 and "hardware=1xh200 has 1 GPUs" in said[0]
        else:
            assert said == [], hardware
        validate_with_verl(config)


def _file(name):
    return OmegaConf.to_container(groups.load("recipe", name))


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_names_a_key_that_nobody_reads(recipe):
    _stored()
    files = [
        name for name in (recipe, f"{recipe.partition('/')[0]}/_base", "_maths") if name in groups._files("recipe")
    ]
    parts = [part for name in files for part in _file(name).get("defaults", ())]
    algo = next(part["/algo"] for part in parts if isinstance(part, dict))
    known = {key for key, _ in leaves(merged(_part(of_verl=True), _part(f"+algo={algo}")))}
    named = {key for name in files for key, _ in leaves(_file(name)) if not key.startswith("recipe.")}
    assert named - {"defaults"} <= known


ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
NO_KL = {f"{ACTOR}.use_kl_loss": False, "algorithm.use_kl_in_reward": False}
HADW = NO_KL | {
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.optimizer": "AdamW",
    f"{ACTOR}.optim.weight_decay": 0.1,
    f"{ACTOR}.optim.lr_warmup_steps": 10,
    f"{ACTOR}.optim.clip_grad": 1.0,
    f"{ACTOR}.ppo_mini_batch_size": 16,
    f"{ROLLOUT}.n": 8,
    "data.train_batch_size": 256,
    "data.max_prompt_length": 1024,
    "data.max_response_length": 4096,
    "algorithm.gsd.alpha": 1,
    "algorithm.gsd.hadw.lambda_scale": 1.3,
}
GVPO = NO_KL | {
    f"{ACTOR}.policy_loss.loss_mode": "gvpo",
    f"{ACTOR}.policy_loss.beta": 0.1,
    f"{ACTOR}.policy_loss.reference": "old",
    f"{ACTOR}.policy_loss.normalizer": "k-1",
    f"{ACTOR}.optim.lr": 5e-6,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.05,
    f"{ACTOR}.ppo_mini_batch_size": 256,
    f"{ROLLOUT}.n": 5,
    "data.train_batch_size": 1024,
    "trainer.total_epochs": 10,
    "algorithm.gsd.alpha": 0,
}
DAGRPO = NO_KL | {
    "actor_rollout_ref.model.path": "/data/models/Qwen2.5-Math-7B-16k",
    "data.train_files": "/data/openr1_math_46k/train.parquet",
    "data.train_batch_size": 128,
    "data.max_response_length": 8192,
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.lr_scheduler_type": "constant",
    f"{ROLLOUT}.n": 8,
    f"{ROLLOUT}.temperature": 1.0,
}


def _path(model):
    return {"actor_rollout_ref.model.path": model}


def _clips(low, high, epochs):
    return {f"{ACTOR}.clip_ratio_low": low, f"{ACTOR}.clip_ratio_high": high, "trainer.total_epochs": epochs}


#: What the papers state, apart from the files that must have it: (recipe, further words) -> keys.
STATED = {
    ("gsd/qwen2.5_math_1.5b",): {f"{ROLLOUT}.n": 8} | _path("Qwen/Qwen2.5-Math-1.5B"),
    ("gsd/qwen2.5_math_7b",): {f"{ROLLOUT}.n": 8} | _path("Qwen/Qwen2.5-Math-7B"),
    ("hadw/qwen3_4b_base",): HADW | _clips(0.2, 0.2, 3) | _path("Qwen/Qwen3-4B-Base"),
    ("hadw/qwen3_4b_base", "algo=hadw_gspo"): HADW | _clips(3e-4, 4e-4, 3),
    ("hadw/qwen3_4b_base_dapo",): HADW | _clips(0.2, 0.28, 9) | {"algorithm.filter_groups.enable": True},
    ("hadw/qwen3_8b_base",): HADW | _path("Qwen/Qwen3-8B-Base"),
    ("hadw/qwen3_8b_base_dapo",): HADW | _clips(0.2, 0.28, 9) | _path("Qwen/Qwen3-8B-Base"),
    ("hadw/llama_3.2_3b_instruct",): HADW | _path("meta-llama/Llama-3.2-3B-Instruct"),
    ("hadw/llama_3.2_3b_instruct_dapo",): HADW | _clips(0.2, 0.28, 9) | _path("meta-llama/Llama-3.2-3B-Instruct"),
    ("dagrpo/qwen2.5_math_7b",): DAGRPO
    | {
        "algorithm.gsd.dagrpo.delta": 3,
        "algorithm.gsd.dagrpo.demonstrations.mode": "all_fail",
        f"{ACTOR}.policy_loss.gamma": 0.1,
    },
    ("dagrpo/qwen2.5_math_7b", "algo=dagrpo_mask"): DAGRPO | {"algorithm.gsd.dagrpo.delta": 3},
    ("dagrpo/qwen2.5_math_7b", "algo=dagrpo_anchors"): DAGRPO | {"algorithm.gsd.dagrpo.delta": float("-inf")},
    ("dagrpo/qwen2.5_math_7b", "algo=grpo"): DAGRPO | {f"{ACTOR}.policy_loss.loss_mode": "vanilla"},
    ("gvpo/qwen2.5_math_7b",): GVPO | _path("Qwen/Qwen2.5-Math-7B"),
    ("gvpo/qwen2.5_math_1.5b",): GVPO | {f"{ROLLOUT}.n": 8} | _path("Qwen/Qwen2.5-Math-1.5B"),
    ("gvpo/llama_3.1_8b_instruct",): GVPO | _path("meta-llama/Llama-3.1-8B-Instruct"),
    ("gvpo/summarisation",): {f"{ACTOR}.policy_loss.reference": "ref", f"{ACTOR}.use_kl_loss": True},
}


@pytest.mark.parametrize("words", STATED, ids=" ".join)
def test_a_recipe_has_what_its_paper_states(words):
    config = composed(*words, resolved=False)
    assert {key: OmegaConf.select(config, key) for key in STATED[words]} == STATED[words]


def test_the_table_above_has_every_recipe():
    assert {words[0] for words in STATED} == set(RECIPES)


def lines_of_the_pages():
    """{line: words} of every train or submit line of a recipe that a page shows, without options and remarks."""
    found = {}
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/README.md")]):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        names = {f"${name}": value for name, value in re.findall(r'`([A-Z])="?([^"`]+)"?`', text)}
        for line in re.findall(
            r"^    (verl-gsd (?:train|submit) .*recipe=.*|verl-gsd train \$.*)$", text, re.MULTILINE
        ):
            written = functools.reduce(lambda line, name: line.replace(name, names[name]), names, line)
            after = pairwise(shlex.split(written, comments=True)[1:])
            words = [word for option, word in after if option[:2] != "--" and re.match(r"[\w.+]+=[^.]", word)]
            found[f"{page.parent.name}: {line.partition('#')[0].strip()}"] = words
    return found


LINES = lines_of_the_pages()


def test_the_pages_have_lines_of_every_paper():
    recipes = {
        word.partition("=")[2].partition("/")[0] for words in LINES.values() for word in words if "recipe=" in word
    }
    assert recipes == {"gsd", "hadw", "dagrpo", "gvpo"} and len(LINES) > 30


@pytest.mark.parametrize("line", LINES)
def test_lines_of_the_pages_pass(line):
    recipe, *words = sorted(LINES[line], key=lambda word: not word.startswith("recipe="))
    keys = [word for word in words if word.partition("=")[0] not in groups.GROUPS]
    assert problems(composed(recipe.partition("=")[2], *words), *keys) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_embedded_task_takes_data_model_and_sizes_in_a_recipes_place(recipe):
    """What is left is the algorithm: as many updates a step as it has, its verifier, and one worker."""
    config = composed(recipe, "task=arithmetic", "hardware=cpu")
    alone = composed("gsd/qwen2.5_math_7b", "task=arithmetic", "hardware=cpu")
    assert problems(config) == []
    assert (config.data.train_files, config.trainer.n_gpus_per_node) == (alone.data.train_files, 1)
    assert not config.reward.reward_model.enable
    updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
    assert updates == (4 if recipe.startswith("gvpo") else 1)
    assert not [text for text in audit(config).warnings if "GVPO is REINFORCE" in text]


def test_remax_is_refused_since_verl_makes_no_greedy_response():
    """The paper's fourth baseline. Fails when verl's V1 trainers learn to."""
    trainer_base = pytest.importorskip("verl.trainer.ppo.v1.trainer_base")
    assert "reward_baselines" not in inspect.getsource(trainer_base)
    config = composed("gvpo/qwen2.5_math_7b", "algo=grpo")
    config.algorithm.adv_estimator = "remax"
    assert any("adv_estimator=remax" in problem for problem in problems(config))


def test_a_task_takes_a_recipe_to_a_laptop():
    """Its own data, model and sizes; the recipe's algorithm."""
    config = composed("hadw/qwen3_4b_base_dapo", "hardware=cpu", "task=arithmetic")
    assert (config.data.train_batch_size, config.data.max_response_length) == (24, 8)
    assert config.actor_rollout_ref.model.path.endswith("/arithmetic/model")
    assert config.algorithm.filter_groups.enable and config.algorithm.gsd.hadw.preset == "hard"
    assert problems(config) == []


def test_gvpo_in_the_paper_is_not_degenerate():
    assert audit(composed("gvpo/qwen2.5_math_7b")).warnings == ()


@pytest.mark.parametrize("word", ["recipe=gvpo/nope", "recipe=gvpo/_base", "recipe=_maths"])
def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(word):
    with pytest.raises(ConfigError, match=r"recipe=.*: no such choice\. Write recipe= one of dagrpo/qwen2\.5_math_7b"):
        parse_line([word])
