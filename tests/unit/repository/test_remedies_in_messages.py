"""What messages tell a user to set or run exists: keys, choices, commands, options, files and modules.

The texts are all strings of the package, read from its source. tests/unit/run/checks/test_remedies.py follows the
remedies of the checks.
"""

import importlib.util
import re

import pytest
import typer
from hydra.core.override_parser.overrides_parser import OverridesParser
from known_keys import known_keys
from messages_of_code import HOLE, texts
from places import ROOT

from verl_gsd import config as groups
from verl_gsd.cli.main import app

#: Roots of verl's config and of ours. A word with a dot that begins with one of them is a key.
ROOTS = (
    *("actor_rollout_ref", "algorithm", "critic", "data", "distillation", "global_profiler", "hardware"),
    *("ray_kwargs", "reward", "skip", "trainer"),
)
#: Keys that no config lists, but that code reads, with the reason why a user can have them. Hydra accepts them only if
#: they have a plus.
UNLISTED = {
    "actor_rollout_ref.actor.router_replay": "a field of verl's dataclass",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "verl reads it if somebody adds it",
    "actor_rollout_ref.model.override_config.max_position_embeddings": "a key of the model's config",
    "actor_rollout_ref.model.target_parameters": "verl reads it if somebody adds it",
    "algorithm.gsd.dagrpo.delta.quantile": "in the value of delta, if it is a mapping",
    "data.sampler": "verl's older trainers read it if somebody adds it",
    "data.sampler.class_path": "as data.sampler",
    "hardware.sizing": "the command adds it to a run's config",
    "ray_kwargs.ray_init._temp_dir": "an argument of ray.init, if somebody adds it",
    "reward.custom_reward_function.reward_kwargs": "verl reads it if somebody adds it",
    "reward.reward_kwargs": "verl reads it if somebody adds it",
    "reward.reward_kwargs.overlong_buffer_cfg": "as reward.reward_kwargs",
    "reward.reward_kwargs.overlong_buffer_cfg.enable": "as reward.reward_kwargs",
    "reward.reward_kwargs.max_resp_len": "as reward.reward_kwargs",
    "reward.timeout": "the reward manager rate_limited reads it if somebody adds it",
    "trainer.v1.gsd_obey_truncation": "the launcher's own message to the workers",
    "trainer.v1.gsd_reward_seconds": "the launcher's own message to the workers",
    "trainer.v1.sync.parameter_sync_step": "verl reads it if somebody adds it",
}
#: Of these, keys that advice names only to a user who has added them.
ADDED_BY_USER = {"data.sampler", "trainer.v1.sync.parameter_sync_step"}
#: Names with a dot that are no keys: files, modules and columns.
NOT_KEYS = {"data.pt", "trainer.resume_"}
#: Words of a command line that are no keys.
PATH_WORDS = {"data", "model", "resume", "trust"}
#: Names before an equals sign that are no keys: arguments of functions, figures of commands, and placeholders.
ARGUMENTS = {
    *("data_source", "index", "acc", "fidelity", "mixed", "correct_column", "total_column", "samples", "batch_size"),
    *("place", "margin", "quality", "eta", "floor", "cap", "limit_mb", "step", "world_size", "correct", "p", "column"),
    *("ground_truth", "group_size"),
}
#: Environment variables of other programs.
VARIABLES_OF_OTHERS = {
    *("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_TOKEN", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "OMP_NUM_THREADS"),
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"),
    *("VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS"),
}
#: Options of other programs.
OPTIONS_OF_OTHERS = {"--shm-size", "--gpus", "--ipc", "--import-mode"}
#: A sentence with one of these tells the user what to do.
IMPERATIVE = re.compile(r"\b(?:[Ss]et|[Uu]se|[Aa]dd|[Rr]un|[Rr]emove|Rehearse|Did you mean)\b")
SETTING = re.compile(r"(?<![\w./$:%{-])\+{0,2}([A-Za-z_][\w.]*)=([^\s,;)`'\"]*)")


def sentences(text):
    return re.split(r"(?<=[.?])\s+|\n|; ", text)


#: (where, sentence) of every sentence that tells the user what to do.
ADVICE = [(of.where, sentence) for of in texts() for sentence in sentences(of.text) if IMPERATIVE.search(sentence)]


def matches(name, known):
    """Whether one of ``known`` has the name, in which HOLE stands for anything."""
    pattern = re.compile(re.escape(name).replace(re.escape(HOLE), r"[\w.]+"))
    return name in known or (HOLE in name and any(pattern.fullmatch(other) for other in known))


@pytest.fixture(scope="module")
def keys(configs_parsed_once):
    return known_keys()


def test_the_scan_finds_advice():
    assert len(ADVICE) > 300
    assert any("actor_rollout_ref.actor.use_dynamic_bsz=true" in sentence for _, sentence in ADVICE), "constants"


def test_every_key_that_a_text_names_exists(keys):
    pattern = re.compile(rf"(?<![\w./$:%{{-])\+{{0,2}}((?:{'|'.join(ROOTS)})(?:\.[\w{HOLE}]+)+)")
    named = [(of.where, key) for of in texts() for key in pattern.findall(of.text)]
    assert len(named) > 500
    known = {*keys, *UNLISTED, *NOT_KEYS}
    assert [pair for pair in named if not matches(pair[1], known)] == []
    unused = {*UNLISTED, *NOT_KEYS} - {key for _, key in named}
    assert not unused and not UNLISTED.keys() & keys


def test_advice_to_set_a_key_that_verls_config_does_not_list_has_a_plus():
    for where, sentence in ADVICE:
        for plus, key in re.findall(rf"(\+*)(?<![\w.])({'|'.join(map(re.escape, UNLISTED))})(?![\w.])", sentence):
            is_about_it = key in ADDED_BY_USER or sentence.startswith(("warning: ", key))
            assert plus or is_about_it, (where, sentence)


def test_every_setting_that_advice_names_exists(keys):
    """Also if a sentence shortens the key, for example to ``use_dynamic_bsz=true`` after another key of its section."""
    ends = {".".join(key.split(".")[start:]) for key in (*keys, *UNLISTED) for start in range(key.count(".") + 1)}
    named = [(where, *found) for where, sentence in ADVICE for found in SETTING.findall(sentence)]
    wrong = []
    for where, name, value in named:
        value = value.rstrip(".?:")
        if name in groups.GROUPS:
            is_known = not re.fullmatch(r"[a-z0-9_/]+", value) or value in groups.choices(name)
        elif name.isupper():
            is_known = name in VARIABLES_OF_OTHERS or name in ("KEY", "LABEL") or is_read(name)
        else:
            is_known = name in ends or name in PATH_WORDS or name in ARGUMENTS
        if not is_known:
            wrong.append((where, name, value))
    assert len(named) > 200 and wrong == []


def test_a_setting_that_a_shell_would_change_is_in_quotes():
    keys = rf"\+{{0,2}}(?:{'|'.join(ROOTS)})(?:\.[\w{HOLE}]+)+"
    quoted, bare = [], []
    for of in texts():
        quoted += re.findall(rf"(?<![\w.])'({keys}=[^'\s]*[{{\[][^']*)'", of.text)
        bare += [(of.where, word) for word in re.findall(rf"(?<![\w.'+])({keys}=\S*?[{{}}\[\]*$&<>\"~!]\S*)", of.text)]
    assert len(quoted) >= 4 and bare == []
    for word in quoted:
        OverridesParser.create().parse_override(word.replace(HOLE, "name"))


def is_read(variable):
    """Whether the package or a script reads an environment variable."""
    paths = [*(ROOT / "verl_gsd").rglob("*.py"), *(ROOT / "scripts").glob("*.sh")]
    pattern = re.compile(rf"\$\{{?{variable}\b|environ\S*\W{variable}\b|\[\"{variable}\"\]")
    return any(pattern.search(path.read_text(encoding="utf-8")) for path in paths)


def commands(command=None, path=()):
    """Words -> the options of every command of ``verl-gsd``, without groups of commands."""
    command = typer.main.get_command(app) if command is None else command
    members = getattr(command, "commands", None)
    if members is None:
        return {path: {option for of in command.params for option in (*of.opts, *of.secondary_opts)} | {"--help"}}
    context = typer.Context(command)
    found = {}
    for name in command.list_commands(context):
        found |= commands(command.get_command(context, name), (*path, name))
    return found


COMMANDS = commands()


def test_every_command_that_advice_names_exists_with_its_options():
    named, wrong = 0, []
    for where, sentence in ADVICE:
        for before, rest in re.findall(r"(\w*)[`\s]*\bverl-gsd((?: [^`;]*)?)", sentence):
            words = [word.rstrip(".:") for word in re.split(r",? or |, |\)", rest)[0].split()]
            called = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in COMMANDS), None)
            if called is not None:
                named += 1
                given = {word.partition("=")[0] for word in words if word.startswith("--")}
                wrong += [(where, sentence, option) for option in given - COMMANDS[called] - OPTIONS_OF_OTHERS]
            elif before in ("Run", "run") and words and re.fullmatch(r"[a-z]+", words[0]):
                wrong.append((where, sentence))
    assert named > 20 and wrong == []


def test_every_option_that_a_text_names_belongs_to_a_command():
    """The texts of a command's file must name options of that command or of another one."""
    known = {option for options in COMMANDS.values() for option in options} | OPTIONS_OF_OTHERS
    named = [
        (where, option)
        for where, sentence in ADVICE
        for option in re.findall(rf"(?<![\w{HOLE}-])--[a-z][a-z-]+", sentence)
    ]
    assert len(named) > 50 and [pair for pair in named if pair[1] not in known] == []


def test_every_file_and_module_that_advice_names_exists():
    for where, sentence in ADVICE:
        for name in re.findall(r"\b(?:docs|scripts|recipes|docker)/[\w./-]+\w", sentence):
            assert (ROOT / name).exists(), (where, name)
        for name, anchor in re.findall(r"\b(docs/[\w./-]+\.md)#([\w-]+)", sentence):
            headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            links = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in links, (where, name, anchor)
        for name in re.findall(r"pkg://(verl_gsd[\w.]*\w)", sentence):
            assert importlib.util.find_spec(name), (where, name)
