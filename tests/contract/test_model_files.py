"""A model of somebody else cannot make transformers, verl or vLLM read private files of the user."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from verl.utils.tokenizer import hf_tokenizer

import verl_gsd
from verl_gsd import model_files
from verl_gsd.model_files import ModelFileError, check_model_folder

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"
#: Where this process has the package from.
ROOT = str(Path(verl_gsd.__file__).parents[1])
#: Somebody else, who makes links.
MALLORY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")


@pytest.fixture(autouse=True, scope="module")
def _protected():
    model_files.protect()


@pytest.fixture
def private(tmp_path):
    """A private file of the user, outside the model."""
    file = tmp_path / "private" / "id_rsa"
    file.parent.mkdir()
    file.write_text(f"{SECRET}\nb3BlbnNzaC1rZXktdjEA\n[UNK]\n")
    return file


@pytest.fixture
def model(tiny_task, tmp_path):
    """The folder of a model."""
    return Path(shutil.copytree(f"{tiny_task}/model", tmp_path / "model"))


def change(file, **values):
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | values))


def only_settings(model, **values):
    """Leave the tokenizer's settings as its only file."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps(values))


def link_of_mallory(link, target):
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    os.lchown(link, MALLORY, MALLORY)


#: Class of the tokenizer, and the settings in which PRIVATE is the private file.
NAMES = [
    ("BertTokenizer", {"vocab_file": "PRIVATE"}),
    ("BertTokenizer", {"vocab": "PRIVATE"}),
    ("BertTokenizer", {"init_inputs": ["PRIVATE"]}),
    ("PreTrainedTokenizerFast", {"tokenizer_file": "PRIVATE"}),
    ("GPT2Tokenizer", {"vocab_file": "PRIVATE", "merges_file": "PRIVATE"}),
    ("EsmTokenizer", {"vocab_file": "PRIVATE"}),
    ("SiglipTokenizer", {"sp_model_kwargs": {"model_file": "PRIVATE"}, "vocab_file": "PRIVATE"}),
]


@pytest.mark.parametrize(("kind", "settings"), NAMES, ids=lambda value: str(value))
@pytest.mark.parametrize("load", [AutoTokenizer.from_pretrained, hf_tokenizer])
def test_settings_of_a_tokenizer_name_no_file_outside_the_model(model, private, kind, settings, load):
    text = json.dumps(settings).replace("PRIVATE", str(private))
    only_settings(model, tokenizer_class=kind, unk_token="[UNK]", **json.loads(text))
    with pytest.raises(ModelFileError, match=r"tokenizer_config.json .*sets .*It was not read|init_inputs"):
        load(str(model))


def test_other_files_of_a_tokenizer_name_none_either(model, private):
    only_settings(model, tokenizer_class="BertTokenizer")
    change(model / "special_tokens_map.json", vocab_file=str(private), unk_token="[UNK]")
    with pytest.raises(ModelFileError, match=r"special_tokens_map.json sets vocab_file to"):
        AutoTokenizer.from_pretrained(str(model))


def test_vllm_loads_no_such_tokenizer(model, private):
    from vllm.tokenizers import get_tokenizer

    only_settings(model, tokenizer_class="BertTokenizer", unk_token="[UNK]", vocab_file=str(private))
    with pytest.raises(ModelFileError, match="sets vocab_file to"):
        get_tokenizer(str(model))


def test_names_that_harm_nobody_are_accepted(model, private):
    """The folder's own file by its bare name, a key that nothing reads, and files that the caller chose."""
    text = AutoTokenizer.from_pretrained(str(model)).encode("1+1")
    change(model / "tokenizer_config.json", tokenizer_file="tokenizer.json", special_tokens_map_file="/home/author/map")
    assert AutoTokenizer.from_pretrained(str(model)).encode("1+1") == text
    only_settings(model, tokenizer_class="BertTokenizer", unk_token="[UNK]")
    assert SECRET in AutoTokenizer.from_pretrained(str(model), vocab_file=str(private)).get_vocab()


LINKS = ["tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"]


@needs_root
@pytest.mark.parametrize("name", LINKS)
def test_a_link_of_another_user_that_leads_out_of_the_model_is_not_followed(model, private, name):
    target = private.with_name("copy")
    shutil.copyfile(model / name, target) if (model / name).exists() else target.write_text(SECRET)
    (model / name).parent.mkdir(exist_ok=True)
    link_of_mallory(model / name, target)
    with pytest.raises(ModelFileError, match=rf"{name} is a link .* belongs to user id {MALLORY}"):
        AutoTokenizer.from_pretrained(str(model))
    with pytest.raises(ModelFileError, match="is a link that leads out"):
        check_model_folder(model)


@needs_root
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_nor_in_the_place_of_other_files(model, private, name):
    target = private.with_name("copy")
    shutil.copyfile(model / name, target)
    link_of_mallory(model / name, target)
    load = GenerationConfig if name == "generation_config.json" else AutoModelForCausalLM
    with pytest.raises(ModelFileError, match=rf"{name} is a link"):
        load.from_pretrained(model)


@needs_root
def test_links_inside_the_model_and_links_of_the_user_are_followed(model, private):
    (model / "config.json").rename(model / "its_config.json")
    link_of_mallory(model / "config.json", "its_config.json")
    shutil.move(model / "tokenizer.json", private.with_name("tokenizer.json"))
    (model / "tokenizer.json").symlink_to(private.with_name("tokenizer.json"))
    check_model_folder(model)
    assert AutoTokenizer.from_pretrained(model).encode("1+1")


@pytest.fixture
def private_weights(model, private):
    """Weights of the user, for the same architecture."""
    file = private.with_name("model.safetensors")
    weights = {name: torch.full_like(value, 7) for name, value in load_file(model / "model.safetensors").items()}
    save_file(weights, file, {"format": "pt"})
    return file


@pytest.mark.parametrize("name", ["{file}", "../private/model.safetensors", "x/../../private/model.safetensors"])
def test_an_index_names_no_weights_outside_the_model(model, private_weights, name):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / "x").mkdir()
    names = {one: name.format(file=private_weights) for one in weights}
    change(model / "model.safetensors.index.json", metadata={}, weight_map=names)
    with pytest.raises(ModelFileError, match=r"names .*model.safetensors, which is outside it"):
        AutoModelForCausalLM.from_pretrained(model)
    with pytest.raises(ModelFileError, match="which is outside it"):
        check_model_folder(model)


def test_a_config_names_no_weights_outside_the_model(model, private_weights):
    change(model / "config.json", transformers_weights=str(private_weights))
    with pytest.raises(ModelFileError, match="which is outside it"):
        AutoModelForCausalLM.from_pretrained(model)


def test_an_index_of_the_models_own_weights_is_read(model):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    change(model / "model.safetensors.index.json", metadata={}, weight_map=names)
    check_model_folder(model)
    assert AutoModelForCausalLM.from_pretrained(model).config.architectures


def test_an_adapter_brings_no_base_model(model, private_weights, tmp_path):
    base = Path(shutil.copytree(model, tmp_path / "base"))
    shutil.copyfile(private_weights, base / "model.safetensors")
    config = AutoConfig.from_pretrained(model)
    (model / "config.json").unlink()
    change(model / "adapter_config.json", base_model_name_or_path=str(base), peft_type="LORA")
    for load in (AutoModelForCausalLM, transformers.LlamaForCausalLM):
        with pytest.raises(ModelFileError, match=rf"this is a LoRA adapter, .* names the base model {base}\."):
            load.from_pretrained(model)
        with pytest.raises(ModelFileError, match="this is a LoRA adapter"):
            load.from_pretrained(model, config=config)


@pytest.fixture
def cached(model, tmp_path):
    """(the cache of the hub with the model a/b, the folder of its revision). Files are links to blobs."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
        os.lchown(snapshot / file.name, MALLORY, MALLORY) if os.geteuid() == 0 else None
    return repository.parent, snapshot


def test_a_model_in_the_cache_of_the_hub_is_read(cached):
    cache, snapshot = cached
    options = {"cache_dir": cache, "local_files_only": True}
    text = AutoTokenizer.from_pretrained("a/b", **options).encode("1+1")
    assert AutoTokenizer.from_pretrained(snapshot).encode("1+1") == text
    assert AutoModelForCausalLM.from_pretrained("a/b", **options).config.architectures
    check_model_folder(snapshot)


def test_an_index_from_the_hub_names_no_other_files(private_weights, cached):
    cache, snapshot = cached
    weights = load_file(snapshot / "model.safetensors")
    (snapshot / "model.safetensors").unlink()
    name = os.path.relpath(private_weights, snapshot)
    change(snapshot / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(weights, name))
    with pytest.raises(ModelFileError, match="which is outside it"):
        AutoModelForCausalLM.from_pretrained("a/b", cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize(
    ("imported", "is_protected"),
    [("verl", True), ("verl_gsd.cli.main", True), ("transformers", False)],
    ids=["a process of verl", "a command", "without us, so that it is still needed"],
)
def test_a_process_is_protected_by_what_it_imports(model, private, imported, is_protected):
    only_settings(model, tokenizer_class="BertTokenizer", unk_token="[UNK]", vocab_file=str(private))
    load = "from transformers import AutoTokenizer; print([*AutoTokenizer.from_pretrained(sys.argv[1]).get_vocab()])"
    words = [sys.executable, "-c", f"import sys, {imported}; {load}", str(model)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ROOT})
    assert (done.returncode != 0, SECRET in done.stdout) == (is_protected, not is_protected), done.stderr[-5000:]
    assert ("ModelFileError" in done.stderr) == is_protected
