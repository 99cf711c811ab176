"""Every recipe on every machine: it composes, passes our checks, and has what its paper states."""

import functools
import re
import shlex
from itertools import cycle, pairwise

import pytest
from omegaconf import OmegaConf
from places import ROOT
from recipe_configs import HARDWARE, RECIPES, composed, leaves, merged, part, problems

from verl_gsd import config as groups
from verl_gsd.audit import audit
from verl_gsd.errors import ConfigError
from verl_gsd.run.compose import compose_config, parse_line, resolve
from verl_gsd.run.sizing import apply_sizing


@pytest.fixture(autouse=True)
def _data(monkeypatch, configs_parsed_once):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")


def test_the_quick_way_of_these_tests_is_the_command_lines():
    line = parse_line(["algo=dagrpo_mask", "recipe=dagrpo/qwen2.5_math_7b", "hardware=multi_node"])
    real = resolve(compose_config(line))
    assert composed("dagrpo/qwen2.5_math_7b", "hardware=multi_node", "algo=dagrpo_mask") == real


#: Every recipe on one machine in turn, and the two that need most memory on all of them.
LARGEST = ("dagrpo/qwen2.5_math_7b", "gvpo/llama_3.1_8b_instruct")
ON_MACHINES = dict(zip(RECIPES, ([machine] for machine in cycle(HARDWARE)), strict=False))
ON_MACHINES |= dict.fromkeys(LARGEST, HARDWARE) | {"gvpo/summarisation": ["1xh200", "8xa100_80g"]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_on_its_machines(recipe):
    """tests/contract/test_recipes.py has all recipes on all machines."""
    # No server is asked whether it is there.
    stub = ["algorithm.gsd.dagrpo.judge.scorer=stub"] if recipe.startswith("dagrpo") else []
    for hardware in ON_MACHINES[recipe]:
        config = composed(recipe, f"hardware={hardware}", *stub)
        said = problems(config)
        if (recipe, hardware) == ("gvpo/summarisation", "1xh200"):
            assert len(said) == 1 and "hardware=1xh200" in said[0]
        else:
            assert said == [], hardware


def _file(name):
    return OmegaConf.to_container(groups.load("recipe", name))


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_names_a_key_that_nobody_reads(recipe):
    groups.store_groups()
    names = (recipe, f"{recipe.partition('/')[0]}/_base", "_maths")
    files = [name for name in names if (ROOT / "recipes" / f"{name}.yaml").is_file()]
    choices = [choice for name in files for choice in _file(name).get("defaults", ())]
    algo = next(choice["/algo"] for choice in choices if isinstance(choice, dict))
    known = {key for key, _ in leaves(merged(part(of_verl=True), part(f"+algo={algo}")))}
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
    "algorithm.gsd.hadw.preset": "soft",
    "algorithm.filter_groups.enable": False,
    f"{ACTOR}.use_dynamic_bsz": True,
    f"{ROLLOUT}.tensor_model_parallel_size": 1,
    f"{ROLLOUT}.val_kwargs.do_sample": False,
    "trainer.test_freq": 5,
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
    ("hadw/qwen3_4b_base_dapo",): HADW | _clips(0.2, 0.28, 9),
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
    # No paper: what makes them a first run on one GPU.
    ("start/gsm8k_qwen2.5_0.5b",): _path("Qwen/Qwen2.5-0.5B-Instruct") | {f"{ROLLOUT}.n": 8},
    ("start/gsm8k_qwen2.5_0.5b_lora",): _path("Qwen/Qwen2.5-0.5B-Instruct")
    | {"actor_rollout_ref.model.lora_rank": 32, f"{ROLLOUT}.load_format": "safetensors"},
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
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/README.md")]):
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
    assert recipes == {"gsd", "hadw", "dagrpo", "gvpo", "start"} and len(LINES) > 30


@pytest.mark.parametrize("line", LINES)
def test_lines_of_the_pages_pass(line):
    recipe, *words = sorted(LINES[line], key=lambda word: not word.startswith("recipe="))
    keys = [word for word in words if word.partition("=")[0] not in groups.GROUPS]
    config = composed(recipe.partition("=")[2], *words, resolved=False).copy()
    apply_sizing(config, parse_line(LINES[line]))
    assert problems(resolve(config), *keys) == []


@pytest.mark.parametrize("algo", groups.choices("algo"))
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.startswith("start/")])
def test_a_first_run_takes_every_algorithm(recipe, algo):
    """Its data has no demonstrations, which algorithms with anchors need: their check names the column."""
    config = composed(recipe, "hardware=8xa100_80g", f"algo={algo}")
    assert problems(config) == []


#: Of the recipes that differ in the first model alone, one.
EACH_ALGORITHM = [recipe for recipe in RECIPES if not re.search("1.5b|8b|llama", recipe)]


@pytest.mark.parametrize("recipe", EACH_ALGORITHM)
def test_the_embedded_task_takes_data_model_and_sizes_in_a_recipes_place(recipe):
    """What is left is the algorithm: as many updates a step as it has, its verifier, and one worker."""
    config = composed(recipe, "task=arithmetic", "hardware=cpu")
    alone = composed("gsd/qwen2.5_math_7b", "task=arithmetic", "hardware=cpu")
    assert problems(config) == []
    assert (config.data.train_files, config.trainer.n_gpus_per_node) == (alone.data.train_files, 1)
    assert not config.reward.reward_model.enable
    updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
    assert updates == (4 if recipe.startswith("gvpo") else 1)
    assert not [text for text in audit(config).warnings if "ppo_mini_batch_size" in text], "GVPO is not REINFORCE"


def test_remax_is_refused():
    """The paper's fourth baseline, for which verl makes no greedy response (tests/contract/test_verl.py)."""
    config = composed("gvpo/qwen2.5_math_7b", "algo=grpo", "algorithm.adv_estimator=remax")
    assert any("adv_estimator=remax" in problem for problem in problems(config))


def test_a_task_takes_a_recipe_to_a_laptop():
    """Its own data, model and sizes; the recipe's algorithm."""
    config = composed("hadw/qwen3_4b_base_dapo", "hardware=cpu", "task=arithmetic")
    assert (config.data.train_batch_size, config.data.max_response_length) == (24, 8)
    assert config.actor_rollout_ref.model.path.endswith("/arithmetic/model")
    assert not config.algorithm.filter_groups.enable and config.algorithm.gsd.hadw.preset == "soft"
    assert problems(config) == []


def test_gvpo_in_the_paper_is_not_degenerate():
    assert audit(composed("gvpo/qwen2.5_math_7b")).warnings == ()


@pytest.mark.parametrize("word", ["recipe=gvpo/nope", "recipe=gvpo/_base", "recipe=_maths"])
def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(word):
    with pytest.raises(ConfigError, match=rf"{word}: .*dagrpo/qwen2\.5_math_7b"):
        parse_line([word])
