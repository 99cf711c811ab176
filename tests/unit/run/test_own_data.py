"""Lines with ``data=`` and ``model=``: the values that follow from them, and the sizes that fit the data."""

import json
import re

import chat_model
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.preparation.manifest import FORMAT
from verl_gsd.preparation.reading import sha256
from verl_gsd.run import own_data
from verl_gsd.run.compose import compose_config, parse_line, resolve

pytestmark = pytest.mark.usefixtures("configs_parsed_once")

MATHS, CHOICE = "verl_gsd.tasks.maths", "verl_gsd.tasks.choice"


def rows(*texts, source="mine"):
    return pa.Table.from_pylist(
        [
            {
                "data_source": source,
                "prompt": [{"role": "user", "content": text}],
                "reward_model": {"style": "rule", "ground_truth": "1"},
                "extra_info": {"index": number, "split": "train"},
            }
            for number, text in enumerate(texts)
        ]
    )


def prepared(folder, *, train=("1+1?",) * 40, test=("1+2?",) * 4, verifiers=(MATHS, MATHS), version=FORMAT, **entry):
    """A folder as ``verl-gsd prepare`` leaves it."""
    folder.mkdir(parents=True)
    splits = {}
    for split, texts, verifier in zip(("train", "test"), (train, test), verifiers, strict=True):
        if texts is not None:
            pq.write_table(rows(*texts), file := folder / f"{split}.parquet")
            splits[split] = {"rows": len(texts), "verifier": verifier, "sha256": sha256(file), **entry}
    (folder / "manifest.json").write_text(json.dumps({"format": version, "name": folder.name, "splits": splits}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model.save(tmp_path_factory.mktemp("model"))


def composed(*words):
    config, lines = own_data.compose_here(parse_line(["algo=grpo", "hardware=cpu", *map(str, words)]))
    return resolve(config), lines


def test_a_folder_gives_files_verifier_model_and_sizes(tmp_path, model):
    folder = prepared(tmp_path / "mine")
    config, lines = composed(f"data={folder}", f"model={model}")
    assert config.data.train_files == f"{folder}/train.parquet" and config.data.val_files == f"{folder}/test.parquet"
    assert config.reward.custom_reward_function == {"path": f"pkg://{MATHS}", "name": "compute_score"}
    assert config.actor_rollout_ref.model.path == str(model)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (64, 1024)
    assert config.data.train_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size == 8
    assert config.data.filter_overlong_prompts and config.actor_rollout_ref.rollout.n == 8
    printed = "\n".join(lines)
    assert re.search(rf"data: {folder}: train 40 rows, test 4 rows; verified by {MATHS}", printed)
    assert re.search(r"data\.max_prompt_length=64: the longest of 44 prompts has \d+ tokens \(counted with", printed)
    assert re.search(r"data\.train_batch_size=8: 40 training prompts make 5 steps per epoch", printed)
    assert "actor_rollout_ref.actor.optim.lr=1e-06" in printed and "trainer.total_epochs=3" in printed


def test_keys_on_the_line_win_and_are_not_listed_as_chosen(tmp_path, model):
    words = (
        "data.train_batch_size=4",
        "data.max_prompt_length=99",
        "trainer.total_epochs=7",
        "data.val_files=/v.parquet",
    )
    config, lines = composed(f"data={prepared(tmp_path / 'mine', test=None)}", f"model={model}", *words)
    assert (config.data.train_batch_size, config.data.max_prompt_length, config.trainer.total_epochs) == (4, 99, 7)
    assert config.data.val_files == "/v.parquet"
    assert not re.search(r"train_batch_size|max_prompt_length|total_epochs", "\n".join(lines))
    whole = composed(
        f"data={tmp_path}/mine", f"model={model}", *words, "reward.custom_reward_function={path:/r.py,name:f}"
    )[0]
    assert whole.reward.custom_reward_function == {"path": "/r.py", "name": "f"}


def test_an_algorithm_keeps_its_updates_per_step(tmp_path, model):
    folder = prepared(tmp_path / "mine", train=["1?"] * 300)
    config, _ = composed("algo=gvpo", f"data={folder}", f"model={model}")
    assert (config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size) == (32, 8)


@pytest.mark.parametrize("words", [["recipe=gvpo/summarisation"], ["task=arithmetic"]])
def test_data_and_model_replace_those_of_a_recipe_or_task_but_not_its_sizes(tmp_path, words):
    folder = prepared(tmp_path / "mine")
    without, _ = composed(*words)
    config, lines = composed(*words, f"data={folder}", "model=me/model")
    assert config.data.train_files == f"{folder}/train.parquet"
    assert config.reward.custom_reward_function.path == f"pkg://{MATHS}"
    assert config.reward.reward_model.enable is False
    assert config.actor_rollout_ref.model.path == "me/model"
    for key in ("data.train_batch_size", "data.max_prompt_length", "actor_rollout_ref.rollout.n"):
        assert OmegaConf.select(config, key) == OmegaConf.select(without, key)
    assert len(lines) == 1


def test_data_for_a_reward_model_has_no_reward_function(tmp_path, model):
    folder = prepared(tmp_path / "mine", verifiers=(None, None))
    words = ("reward.reward_model.enable=true", "recipe=gsd/qwen2.5_math_1.5b")
    config, _ = composed(f"data={folder}", *words)
    assert config.reward.custom_reward_function.path is None and config.reward.reward_model.enable is True


def test_data_without_a_verifier_needs_a_reward_of_the_line(tmp_path, model):
    """Otherwise verl would choose the reward by a name in the data, and some of its functions run texts as code."""
    folder = prepared(tmp_path / "mine", verifiers=(None, None))
    for words in ((f"model={model}",), ("recipe=gsd/qwen2.5_math_1.5b",)):
        with pytest.raises(ConfigError, match=r"data=.*without a verifier.*reward_model\.enable=true.*function\.path="):
            composed(f"data={folder}", *words)
    own = "reward.custom_reward_function.path=/mine.py"
    assert composed(f"data={folder}", f"model={model}", own)[0].reward.custom_reward_function.path == "/mine.py"


def test_own_files_get_sizes_without_data(tmp_path, model):
    folder = prepared(tmp_path / "mine")
    files = (f"data.train_files={folder}/train.parquet", f"data.val_files=['{folder}/test.parquet']")
    config, lines = composed(*files, f"model={model}", "data.train_max_samples=20")
    assert (config.data.train_batch_size, config.data.max_prompt_length) == (8, 64)
    assert config.reward.custom_reward_function.path is None
    assert "20 training prompts make 2 steps" in "\n".join(lines)
    elsewhere, lines = composed("data.train_files=s3://b/a.parquet", "data.val_files=/b.parquet", f"model={model}")
    assert (elsewhere.data.train_batch_size, elsewhere.data.max_prompt_length) == (128, 1024)
    assert len(re.findall("the default, because", "\n".join(lines))) == 2


@pytest.mark.parametrize(
    ("prompts", "batch"), [(1, 1), (7, 4), (9, 8), (100, 8), (130, 16), (1023, 64), (1024, 128), (7473, 128)]
)
def test_the_batch_fits_the_number_of_prompts(prompts, batch):
    assert own_data.batch_size(prompts) == batch


def lengths(config, folder=None):
    dataset = None if folder is None else own_data.read_manifest(folder)
    return own_data.prompt_lengths(config, dataset)


def test_an_outlier_does_not_set_the_limit_and_is_named(tmp_path, model):
    texts = [f"What is {number}?" for number in range(400)]
    folder = prepared(tmp_path / "mine", train=[*texts, "x" * 700])
    config, lines = composed(f"data={folder}", f"model={model}")
    assert config.data.max_prompt_length == 64
    assert re.search(
        r"99% of 405 prompts have at most \d\d tokens, and the longest has 7\d\d; verl leaves out", lines[1]
    )


def test_a_sample_contains_the_longest_prompt(tmp_path, model, monkeypatch):
    monkeypatch.setattr(own_data, "SAMPLED", 30)
    texts = [f"{'y' * (number % 50)}?" for number in range(300)]
    _, lines = composed(f"data={prepared(tmp_path / 'mine', train=texts)}", f"model={model}")
    assert "30 prompts counted with" in lines[1]
    exact = max(len(chat_model.build_tokenizer().encode(text)) for text in texts)
    assert re.search(rf"the longest of 304 prompts has {exact + lengths_of_template()} tokens", lines[1])


def lengths_of_template():
    tokenizer = chat_model.build_tokenizer()
    text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True)
    return len(tokenizer.encode(text))


def test_the_manifest_counts_only_for_the_same_model_or_without_a_tokenizer(tmp_path, model):
    counted = {"prompt_tokens": {"median": 9, "p99": 150, "longest": 200}}
    folder = prepared(tmp_path / "mine", model=str(model), **counted)
    assert composed(f"data={folder}", f"model={model}")[0].data.max_prompt_length == 256
    other = prepared(tmp_path / "other", model="me/another", **counted)
    assert composed(f"data={other}", f"model={model}")[0].data.max_prompt_length == 64
    config, lines = composed(f"data={other}", "model=me/unknown")
    assert config.data.max_prompt_length == 256
    assert "counted by verl-gsd prepare with the tokenizer of me/another" in lines[1]


def test_without_a_tokenizer_the_length_is_an_estimate_and_says_so(tmp_path):
    folder = prepared(tmp_path / "mine", train=["x" * 400] * 20)
    config, lines = composed(f"data={folder}", "model=me/unknown")
    assert config.data.max_prompt_length == 320  # 400 / 2 + 64, rounded up
    assert "estimated as bytes / 2 + 64, because the tokenizer of me/unknown is not on this machine" in lines[1]


def test_responses_end_at_the_models_positions(tmp_path, model):
    folder = prepared(tmp_path / "mine")
    short = tmp_path / "short"
    chat_model.save(short)
    written = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(written | {"max_position_embeddings": 100}))
    config, lines = composed(f"data={folder}", f"model={short}")
    assert config.data.max_response_length == 36 and "the rest of the model's 100 positions" in lines[2]
    (short / "config.json").write_text(json.dumps(written | {"max_position_embeddings": 64}))
    with pytest.raises(ConfigError, match=r"data\.max_prompt_length=64: .*64 positions.*Set a smaller"):
        composed(f"data={folder}", f"model={short}")


def test_a_model_without_a_chat_template_is_rejected(tmp_path):
    tokenizer = chat_model.build_tokenizer()
    tokenizer.chat_template = None
    base = chat_model.save(tmp_path / "base", tokenizer)
    folder = prepared(tmp_path / "mine")
    with pytest.raises(ConfigError, match=rf"model={base}: .*no chat template.*Use a model with a chat template"):
        composed(f"data={folder}", f"model={base}")
    own = "actor_rollout_ref.model.custom_chat_template='{{ messages }}'"
    assert composed(f"data={folder}", f"model={base}", own)[0].data.max_prompt_length == 128  # an estimate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"the folder does not exist. Run `verl-gsd prepare mine --data .* --input FILE`"),
        (lambda folder: folder.touch(), r"this is a file\. Run `verl-gsd prepare NAME --input .*/mine`"),
        (lambda folder: folder.mkdir(), r"no manifest\.json.*data\.train_files="),
        (lambda folder: prepared(folder, test=None), r"no test split, only train.*data\.val_files=.*--split test`"),
        (lambda folder: prepared(folder, train=None), r"no train split, only test.*data\.train_files="),
        (lambda folder: prepared(folder, test=()), r"the test split has no rows.*data\.val_files="),
        (lambda folder: prepared(folder, train=()), r"the train split has no rows"),
        (lambda folder: prepared(folder, version=FORMAT + 1), r"format \d+.*install the latest verl-gsd"),
        (lambda folder: prepared(folder, version=FORMAT - 1), r"format \d+.*older.*prepare"),
        (lambda folder: prepared(folder, verifiers=(MATHS, CHOICE)), r"different verifiers.*maths.*choice.*data\.val"),
        (lambda folder: (prepared(folder) / "train.parquet").unlink(), r"train\.parquet: the file is missing"),
        (lambda folder: (prepared(folder) / "manifest.json").write_text("{}"), r"not a manifest of verl-gsd prepare"),
    ],
)
def test_a_folder_that_cannot_be_used_is_rejected_with_the_fix(tmp_path, make, message):
    make(tmp_path / "mine")
    with pytest.raises(ConfigError, match=rf"(?s)data={tmp_path}/mine: .*{message}"):
        composed(f"data={tmp_path}/mine", "model=me/unknown")


def test_a_bare_name_is_looked_up_in_the_folder_of_data_sets(tmp_path, monkeypatch):
    folder = prepared(tmp_path / "data" / "mine")
    monkeypatch.setenv("VERL_GSD_DATA", str(folder.parent))
    with pytest.raises(ConfigError, match=rf"data=.*mine: the folder does not exist\. Did you mean data={folder}\?"):
        composed("data=mine", "model=me/unknown")


@pytest.mark.parametrize(
    "verifier",
    ["os", "mine.evil", "verl_gsd.tasks", "verl_gsd.tasks.maths.x", "verl_gsd.tasks.${oc.env:HOME}", ["a"], ""],
)
def test_a_manifest_cannot_name_code_or_read_the_environment(tmp_path, model, verifier):
    folder = prepared(tmp_path / "mine", verifiers=(verifier, verifier))
    with pytest.raises(ConfigError) as caught:
        composed(f"data={folder}", f"model={model}")
    assert re.search(
        r"manifest\.json: the verifier of the train split.*custom_reward_function\.path=", str(caught.value)
    )
    own = "reward.custom_reward_function.path=/mine.py"
    config, lines = composed(f"data={folder}", f"model={model}", own)
    assert config.reward.custom_reward_function == {"path": "/mine.py", "name": "compute_score"}
    assert config.reward.reward_model.enable is False
    assert "verified by reward.custom_reward_function.path of the command" in lines[0]


def test_a_known_data_set_without_a_test_split_is_not_said_to_get_one(tmp_path):
    folder = prepared(tmp_path / "dapo17k", test=None)
    with pytest.raises(ConfigError, match=r"no test split.*data\.val_files=") as caught:
        composed(f"data={folder}", "model=me/unknown")
    assert "verl-gsd prepare" not in str(caught.value)


def test_elsewhere_nothing_is_read_here(tmp_path):
    line = parse_line(["algo=grpo", "hardware=8xa100_80g", "data=/cluster/mine", "model=me/model"])
    config, lines = own_data.compose_elsewhere(line)
    resolved = resolve(config)
    assert resolved.data.train_files == "/cluster/mine/train.parquet"
    assert resolved.actor_rollout_ref.model.path == "me/model"
    assert lines == ["data: sizes that fit /cluster/mine are chosen where the run starts"]


def test_the_words_are_kept_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "my model").mkdir()
    line = parse_line(["algo=grpo", "data=a, b", "model=my model", "data.seed=3"])
    kept = ["algo=grpo", "logger=console", f"data={tmp_path}/a, b", f"model={tmp_path}/my model", "data.seed=3"]
    assert line.words == kept and line.words_given == [kept[0], *kept[2:]]
    again = parse_line([*line.words, "resume=/r"])
    assert (again.data, again.model, str(again.resume)) == (line.data, line.model, "/r")
    assert parse_line(["algo=grpo", "data=~/d", "model=~/m"]).data == "/home/me/d"
    assert parse_line(["algo=grpo", "data=~/d", "model=~/m"]).model == "/home/me/m"
    assert parse_line(["algo=grpo", "data=/d", "model=Qwen/Qwen3-8B"]).model == "Qwen/Qwen3-8B"
    assert line.title == "a, b-grpo"
    assert parse_line(["algo=grpo", "data.train_files=/a.parquet", "model=a/b"]).title == "own_data-grpo"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=grpo"], r"task is missing\..*data=FOLDER.*model="),
        (["algo=grpo", "model=a/b"], r"task is missing\."),
        (["data=/d", "model=a/b"], r"algo is missing\."),
        (["algo=grpo", "data=/d"], r"model is missing\. Add model="),
        (["algo=grpo", "data.train_files=/a.parquet"], r"model is missing\."),
        (["algo=grpo", "data=", "model=a/b"], r"data=: the value is empty"),
        (["algo=grpo", "modle=a/b"], r"modle=a/b: .*model=\?"),
    ],
)
def test_an_incomplete_line_says_what_is_missing(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_line(words)


def test_a_line_without_own_data_has_no_defaults_of_own_data():
    config = compose_config(parse_line(["algo=grpo", "task=arithmetic", "data.train_files=/a.parquet"]))
    assert config.trainer.total_epochs == 1000
