"""Prompts are counted before Ray starts, token for token as verl's agent loop builds them."""

import asyncio
import re
from types import SimpleNamespace

import datasets
import pytest
import yaml
from chat_model import build_tokenizer, save
from data_cases import jsonl, parquet, row
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import normalizers
from transformers import AutoTokenizer
from typer.testing import CliRunner
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY
from verl.tools.tool_registry import load_all_tools
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import continuous_token_wiring
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.rollout.replica import TokenOutput

from verl_gsd.cli.main import app
from verl_gsd.run.checks.prompt_lengths import check_prompts
from verl_gsd.run.checks.prompt_tokens import PromptTokens
from verl_gsd.run.messages import MessageWriter, RunStoppedError, read_messages
from verl_gsd.run.truncation import obey_truncation

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {}}}]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def verls_lengths(tokenizer, chats, tools=None, **options):
    builder = create_continuous_token_builder(tokenizer, hf_model_type="llama", chat_template_kwargs=options)
    return [len(builder.build_initial_tokens(chat, tools=tools)) for chat in chats]


def ask(text, role="user"):
    return [{"role": role, "content": text}]


_TEXTS = st.one_of(st.text(max_size=60), st.text("the sum of <|end|>\n é", max_size=200))


@given(st.lists(_TEXTS, min_size=1, max_size=5), st.booleans(), st.sampled_from([0, 20, 60, 1000]))
def test_counts_are_verls_wherever_a_prompt_is_too_long(tokenizer, texts, with_tools, limit):
    chats, tools = [ask(text) for text in texts], TOOLS if with_tools else None
    counted = PromptTokens(tokenizer, None, "llama", {}).lengths(chats, limit, tools)
    for mine, verls in zip(counted, verls_lengths(tokenizer, chats, tools), strict=True):
        assert mine == verls if verls > limit else mine <= limit


@pytest.mark.parametrize("normalizer", [normalizers.NFC, lambda: normalizers.Replace("1", "one of them")])
def test_a_tokenizer_that_lengthens_text_is_not_taken_for_one_of_bytes(normalizer):
    tokenizer = build_tokenizer(normalizer)
    counter = PromptTokens(tokenizer, None, "llama", {})
    chats = [ask("1" * 40)]
    (verls,) = verls_lengths(tokenizer, chats)
    rendered = len(tokenizer.apply_chat_template(chats[0], tokenize=False, add_generation_prompt=True))
    limit = min(rendered, verls - 1)
    assert counter.lengths(chats, limit) == [verls]


def test_the_embedded_tasks_tokenizer_is_counted_too(tiny_task):
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    chats = [ask("12+34="), [*ask("Be brief.", "system"), *ask("é=")]]
    assert PromptTokens(tokenizer, None, "llama", {}).lengths(chats, 0) == verls_lengths(tokenizer, chats)


@pytest.mark.parametrize("options", [{"manner": "Think for a long while."}, {"max_length": 5, "truncation": True}])
def test_options_of_the_template_and_of_the_tokenizer_are_kept(tokenizer, options):
    chats = [ask("what is the sum"), ask("é")]
    counted = PromptTokens(tokenizer, None, "llama", options).lengths(chats, 0)
    assert counted == verls_lengths(tokenizer, chats, **options) != verls_lengths(tokenizer, chats)


def test_a_prompt_that_the_template_rejects_does_not_hide_the_others(tokenizer):
    first, second, third = PromptTokens(tokenizer, None, "llama", {}).lengths([ask("a"), ask("b", "me"), ask("c")], 0)
    assert [first, third] == verls_lengths(tokenizer, [ask("a"), ask("c")])
    assert second == "TemplateError: no such role"


def test_a_builder_that_renders_in_its_own_way_is_asked_prompt_by_prompt(tokenizer, monkeypatch):
    """As DeepSeek V4's does. Here the base class is changed: its model has no tokenizer on this machine."""

    class Own(continuous_token_wiring.ContinuousTokenBuilder):
        def build_initial_tokens(self, messages, **arguments):
            return [1, 2, 3]

    default = continuous_token_wiring.ContinuousTokenModelFamily.DEFAULT
    monkeypatch.setitem(continuous_token_wiring._CONTINUOUS_TOKEN_BUILDER_REGISTRY, default, Own)
    assert PromptTokens(tokenizer, None, "llama", {}).lengths([ask("a long text")], 0) == [3]


# The files of a run

LENGTHS = {"1+1=": 6, "12+12=": 8, "123+123=": 10}


@pytest.fixture
def examined(compose_fast, tiny_task, tmp_path):
    """Examine a run whose training and held-out files have the given questions, on the embedded model's tokenizer."""

    def examined(train, *words, test=("1+1=",), **arguments):
        files = [parquet(tmp_path, [row(prompt=ask(text)) for text in train], name="train.parquet")]
        files += [parquet(tmp_path, [row(prompt=ask(text)) for text in test], name="test.parquet")]
        keys = [f"data.{split}_files={file}" for split, file in zip(("train", "val"), files, strict=True)]
        groups = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
        config, _ = compose_fast(*groups, "data.train_batch_size=1", *keys, *words)
        return check_prompts(config, **arguments)

    return examined


def mentions(text, *parts):
    """Whether ``parts``, which are keys, values and counts, stand in ``text`` in this order."""
    return re.search(".*".join(map(re.escape, parts)), text, re.S) is not None


def texts(found):
    return [f"{message.kind}: {message.text}" for message in found.messages]


def test_prompts_that_fit_are_nothing_to_report(examined):
    found = examined(LENGTHS, "data.max_prompt_length=10")
    assert found.problems == [] and found.messages == []


def test_a_prompt_that_is_too_long_is_an_error_by_default(examined):
    found = examined(["1+1=", "12+12=", "123+123="], "data.max_prompt_length=7", test=["12345+12345="])
    assert found.messages == []
    train, test = found.problems
    assert mentions(train, "data.train_files=", "train.parquet: 2 of 3 prompts", "data.max_prompt_length=7")
    assert mentions(train, "longest", "10", "row 1 (counted from 0)", "8")
    assert mentions(test, "test.parquet: 1 of 1 prompts")
    for problem in found.problems:  # one value for both
        assert mentions(problem, "Set data.max_prompt_length=14", "data.filter_overlong_prompts=true")


@pytest.mark.parametrize(
    ("truncation", "side"), [("left", "on the left"), ("right", "on the right"), ("middle", "in the middle")]
)
def test_prompts_that_will_be_cut_are_a_warning(examined, truncation, side):
    found = examined(LENGTHS, "data.max_prompt_length=7", f"data.truncation={truncation}")
    assert found.problems == []
    (warning,) = texts(found)
    assert mentions(warning, "warning: data.train_files=", "2 of 3 prompts", "data.max_prompt_length=7", "10", side)


@pytest.mark.parametrize("truncation", ["error", "right"])
def test_under_a_trainer_mode_of_verls_prompts_are_cut_on_the_left_whatever_the_key_says(examined, truncation):
    words = ["data.max_prompt_length=7", f"data.truncation={truncation}", "trainer.v1.trainer_mode=sync"]
    found = examined(LENGTHS, *words)
    assert found.problems == []
    (warning,) = texts(found)
    assert mentions(warning, "warning: data.train_files=", "2 of 3 prompts", "on the left", "trainer_mode=sync")
    assert mentions(warning, f"data.truncation={truncation}", "Set data.max_prompt_length=10")
    assert mentions(warning, "Set data.max_prompt_length=10", "data.filter_overlong_prompts=true")
    assert examined(LENGTHS, *words, "data.filter_overlong_prompts=true").problems == []


def test_prompts_that_verl_drops_are_counted(examined, tiny_task, tmp_path):
    found = examined(LENGTHS, "data.max_prompt_length=7", "data.filter_overlong_prompts=true")
    assert found.problems == []
    (warning,) = texts(found)
    assert mentions(warning, "2 of 3 prompts", "data.max_prompt_length=7", "10", "verl drops")
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    settings = {"filter_overlong_prompts": True, "max_prompt_length": 7}
    assert len(RLHFDataset(str(tmp_path / "train.parquet"), tokenizer, settings)) == 1


@pytest.mark.parametrize(
    ("train", "test", "batch", "named"),
    [
        (["12+12="], ["1+1="], 1, ("data.train_files", "no prompt is left", "7")),
        (["1+1="], ["12+12="], 1, ("data.val_files", "no prompt is left", "7")),
        (["1+1=", "12+12="], ["1+1="], 2, ("data.train_batch_size=2", "data.train_files", "1 prompts")),
    ],
)
def test_too_few_prompts_left_is_an_error(examined, train, test, batch, named):
    words = ["data.max_prompt_length=7", "data.filter_overlong_prompts=true", f"data.train_batch_size={batch}"]
    (problem,) = examined(train, *words, test=test).problems
    assert mentions(problem, *named)


def test_a_limit_of_the_rollout_alone_is_named(examined):
    (problem,) = examined(LENGTHS, "actor_rollout_ref.rollout.prompt_length=9", "data.max_prompt_length=20").problems
    key = "actor_rollout_ref.rollout.prompt_length"
    assert mentions(problem, "1 of 3 prompts", f"{key}=9", f"Set {key}=10")


def test_json_lines_and_a_batch_larger_than_they_are(examined, tmp_path):
    file = jsonl(tmp_path, [row(prompt=ask(text)) for text in LENGTHS])
    words = [f"data.train_files={file}", "data.train_batch_size=4", "data.max_prompt_length=9"]
    batch, long = sorted(examined(LENGTHS, *words).problems)
    assert mentions(batch, "data.train_batch_size=4", "data.train_files", "3 prompts", "Set it to 3")
    assert mentions(long, "mine.jsonl: 1 of 3 prompts", "row 2")


@pytest.mark.parametrize("shuffle", [True, False])
def test_of_a_sample_the_rows_that_verl_draws_are_counted(examined, tiny_task, tmp_path, shuffle):
    train = [("1+1=", "123+123=")[number % 3 == 0] for number in range(30)]
    words = ["data.max_prompt_length=7", "data.train_max_samples=11", "data.seed=3", f"data.shuffle={shuffle}"]
    (problem,) = examined(train, *words).problems
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    settings = {"filter_overlong_prompts": False, "shuffle": shuffle, "seed": 3}
    drawn = RLHFDataset(str(tmp_path / "train.parquet"), tokenizer, settings, max_samples=11)
    long = sum(drawn[place]["raw_prompt"][0]["content"] == "123+123=" for place in range(11))
    assert f"train.parquet: {long} of 11 prompts" in problem
    first = int(re.search(r"the first is row (\d+)", problem)[1])
    assert train[first] == "123+123=" and (first == 0 or shuffle)


def test_a_sample_that_nobody_can_foresee_is_counted_whole(examined):
    words = ["data.max_prompt_length=7", "data.train_max_samples=2", "data.seed=null", "data.shuffle=true"]
    (problem,) = examined(LENGTHS, *words).problems
    assert "2 of 3 prompts" in problem


def test_prompts_that_the_template_rejects(examined, tmp_path):
    model = save(tmp_path / "model")
    words = [f"actor_rollout_ref.model.path={model}", "data.max_prompt_length=100"]
    file = parquet(tmp_path, [row(), row(prompt=ask("x", "me"))], name="roles.parquet")
    (problem,) = examined(["1+1="], *words, f"data.train_files={file}").problems
    assert mentions(problem, "roles.parquet", "chat template", "1 of 2 prompts", "row 1", "TemplateError: no such role")
    assert mentions(problem, "actor_rollout_ref.model.custom_chat_template")
    found = examined(["1+1="], *words, f"data.train_files={file}", "data.filter_overlong_prompts=true")
    (warning,) = texts(found)
    assert found.problems == [] and "verl drops them" in warning


def test_the_runs_own_chat_template_and_tokenizer_are_used(examined, tmp_path):
    words = ["data.max_prompt_length=6", f"actor_rollout_ref.model.tokenizer_path={save(tmp_path / 'model')}"]
    template = "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'"
    (long,) = (problem for problem in examined(["1+1="], *words).problems if "train.parquet" in problem)
    assert "1 of 1 prompts" in long
    assert examined(["1+1="], *words, template).problems == []


@pytest.fixture
def tools_file(tmp_path, monkeypatch):
    monkeypatch.delitem(FUNCTION_TOOL_REGISTRY, "add", raising=False)  # of another test
    (tmp_path / "tools.py").write_text(
        "from verl.tools.function_tool import function_tool\n\n"
        "@function_tool\ndef add(a: int, b: int) -> int:\n"
        '    """Add two numbers.\n\n    Args:\n        a: one\n        b: other\n    """\n    return a + b\n'
    )
    return tmp_path / "tools.py"


def test_tools_count_in_the_tool_agents_prompts_alone(examined, tmp_path, tools_file):
    words = [
        f"actor_rollout_ref.model.path={save(tmp_path / 'model')}",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tools_file}",
        f"data.function_tool_path={tools_file}",
        "data.max_prompt_length=70",
    ]
    assert examined(["1+1="], *words).problems == []
    by_tool_agent = examined(["1+1="], *words, "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent")
    assert len(by_tool_agent.problems) == 2
    dropped = examined(["1+1="], *words, "data.filter_overlong_prompts=true")
    assert len(dropped.problems) == 2 and all("no prompt is left" in problem for problem in dropped.problems)


def test_what_is_not_counted_is_said(examined, tmp_path):
    with_images = parquet(tmp_path, [row(images=["x.png"])], name="images.parquet")
    parts = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]}]
    in_parts = parquet(tmp_path, [row(prompt=parts)], name="parts.parquet")
    loops = parquet(tmp_path, [row(agent_name="mine"), row(agent_name="single_turn_agent")], name="loops.parquet")
    nothing = parquet(tmp_path, [row(images=None)], name="null.parquet")
    (images,) = texts(examined(["1+1="], f"data.train_files={with_images}"))
    assert images.startswith("note: ") and mentions(images, "not counted", "images")
    (parts,) = texts(examined(["1+1="], f"data.train_files={in_parts}"))
    assert mentions(parts, "1 of 1 prompts", "not counted", "images")
    (loops,) = texts(examined(["1+1="], f"data.train_files={loops}"))
    assert mentions(loops, "1 of 2 prompts", "not counted")
    assert texts(examined(["1+1="], f"data.train_files={nothing}")) == []


def test_a_remote_file_is_left_to_the_trainer(examined):
    words = ["data.val_files=s3://bucket/test.parquet", "data.max_prompt_length=7"]
    found = examined(["1+1="], *words, remote=False)
    (note,) = texts(found)
    assert found.problems == [] and mentions(note, "note: data.val_files=s3://bucket/test.parquet")
    assert examined(["123+123="], "data.max_prompt_length=7", remote=True).problems == []


def test_a_model_without_a_tokenizer_is_a_warning(examined, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (warning,) = texts(examined(["1+1="], f"actor_rollout_ref.model.path={tmp_path}/model"))
    assert mentions(warning, "warning: ", "not counted", "data.max_prompt_length", "tokenizer")


def test_a_trainer_brings_its_own_tokenizer(examined, tmp_path):
    words = [f"actor_rollout_ref.model.path={save(tmp_path / 'model')}", "data.max_prompt_length=39"]
    assert examined(["1+1="], *words).problems == []
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ 'x' * 40 }}"
    assert len(examined(["1+1="], *words, tokenizer=tokenizer).problems) == 2


def test_verls_own_command_counts_in_the_trainer_and_ours_before_it(compose_fast, tiny_task, tmp_path, monkeypatch):
    from verl_gsd.trainer.trainer import GroupTrainer, GSDTrainerSync

    groups = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
    config, _ = compose_fast(*groups, "data.max_prompt_length=10")
    messages = MessageWriter(tmp_path / "messages.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    trainer = SimpleNamespace(config=config, tokenizer=tokenizer, processor=None, messages=messages)
    monkeypatch.delenv("VERL_GSD_ATTEMPT", raising=False)
    with pytest.raises(
        RunStoppedError, match=r"data\.train_files=.*\n.*data\.val_files=.*Set data\.max_prompt_length=18"
    ):
        GroupTrainer._examine_prompts(trainer)
    config.data.truncation = "right"
    GroupTrainer._examine_prompts(trainer)
    assert [message.kind for message in read_messages(tmp_path / "messages.jsonl")] == ["warning", "warning"]
    config.data.truncation = "error"
    config.trainer.v1.trainer_mode = GSDTrainerSync.verl_mode  # as a trainer of ours sets it
    obey_truncation(config)
    with pytest.raises(RunStoppedError, match=r"data\.max_prompt_length=10"):
        GroupTrainer._examine_prompts(trainer)
    monkeypatch.setenv("VERL_GSD_ATTEMPT", "1")
    GroupTrainer._examine_prompts(trainer)


def test_a_model_without_a_chat_template_is_one_problem(examined, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    path = save(tmp_path / "base", tokenizer)
    words = (f"actor_rollout_ref.model.path={path}", "data.filter_overlong_prompts=true")
    (problem,) = examined(["1+1="], *words).problems
    assert mentions(problem, "no chat template", "Use a model with", "model.custom_chat_template")


@pytest.mark.usefixtures("composing_is_fast")
@pytest.mark.parametrize(("truncation", "code"), [("middle", 0), ("error", 2)])
def test_a_dry_run_counts(tiny_task, truncation, code):
    line = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", "data.max_prompt_length=10"]
    done = CliRunner().invoke(app, ["train", *line, f"data.truncation={truncation}", "--dry-run"])
    said = " ".join(done.stderr.split())
    assert done.exit_code == code, done.output
    if truncation == "error":
        assert mentions(said, "Set data.max_prompt_length=18")
    else:
        assert mentions(said, "warning: data.val_files=", "in the middle", "data.truncation=middle")
        assert yaml.safe_load(done.stdout)["data"]["truncation"] == "middle"


# What ``prompt_lengths.py`` relies on


@pytest.mark.parametrize("truncation", ["error", "left", "no such word"])
def test_verls_data_set_ignores_the_truncation_and_filters_by_the_template_without_a_builder(
    tokenizer, tmp_path, monkeypatch, truncation
):
    def no_builder(*_, **__):
        pytest.fail("verl's data set builds prompts as agent loops do")

    monkeypatch.setattr(continuous_token_wiring, "create_continuous_token_builder", no_builder)
    chats = [ask("what"), ask("a longer question about the sum of the numbers")]
    file = parquet(tmp_path, [row(prompt=chat) for chat in chats], name="train.parquet")
    shorter = len(tokenizer.apply_chat_template(chats[0], add_generation_prompt=True, return_dict=False))
    settings = {"filter_overlong_prompts": True, "max_prompt_length": shorter, "truncation": truncation}
    assert len(RLHFDataset(str(file), tokenizer, settings)) == 1
    kept = RLHFDataset(str(file), tokenizer, settings | {"filter_overlong_prompts": False})
    assert [kept[number]["raw_prompt"] for number in range(2)] == chats, "whole"


class Server:
    """Stands for vLLM at its client's one method: keeps the prompts it is given."""

    def __init__(self):
        self.prompts = []

    async def generate(self, prompt_ids, **_):
        self.prompts.append(list(prompt_ids))
        return TokenOutput(token_ids=[1], log_probs=None)


def prompt_built(kind, tokenizer, tools, **columns):
    """The number of tokens of the prompt that one of verl's agent loops sends to vLLM."""
    multi_turn = {"max_user_turns": 1, "max_assistant_turns": 1, "max_parallel_calls": 1, "format": "hermes"}
    multi_turn |= {"max_tool_response_length": 1, "tool_response_truncate_side": "left"}
    rollout = {"prompt_length": 999, "response_length": 4, "full_determinism": False, "multi_turn": multi_turn}
    config, server = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "trainer": {"v1": {}}}), Server()

    async def run():  # an agent loop keeps the event loop in which it is made
        loop = kind(
            trainer_config=SimpleNamespace(config=config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=SimpleNamespace(config=OmegaConf.create({})),
            hf_model_type="llama",
            tools=SimpleNamespace(tools=tools),
        )
        await loop.run({}, raw_prompt=ask("what is the sum"), **columns)

    asyncio.run(run())
    return len(server.prompts[0])


def test_agent_loops_build_prompts_by_the_builder_and_the_tool_agent_alone_puts_tools_into_them(tokenizer, tools_file):
    tools = load_all_tools(tool_config_path=None, function_tool_path=str(tools_file))
    schemas = [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools]
    (without,) = verls_lengths(tokenizer, [ask("what is the sum")])
    (with_tools,) = verls_lengths(tokenizer, [ask("what is the sum")], schemas)
    assert prompt_built(SingleTurnAgentLoop, tokenizer, tools) == without != with_tools
    assert prompt_built(ToolAgentLoop, tokenizer, tools) == with_tools
    chosen, other = ({"tool_selection": [name]} for name in ("add", "no such tool"))
    assert prompt_built(ToolAgentLoop, tokenizer, tools, extra_info=chosen) == with_tools
    assert prompt_built(ToolAgentLoop, tokenizer, tools, extra_info=other) == without, "a row selects its own tools"
