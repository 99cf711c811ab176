"""The tiny model of a rehearsal."""

import chat_model
import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from verl_gsd.errors import ConfigError
from verl_gsd.run.rehearsal.model import opens_assistant_turn, shrink, write_tiny_model


def config_of(path, **model):
    return OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(path), **model}}})


@pytest.fixture(autouse=True)
def _without_a_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_architecture_vocabulary_head_size_and_positions_stay():
    original = Qwen3Config(
        num_hidden_layers=36,
        hidden_size=2560,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    tiny = shrink(original)
    for name in ("model_type", "vocab_size", "head_dim", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(tiny, name) == getattr(original, name), name
    assert (tiny.num_hidden_layers, len(tiny.layer_types)) == (2, 2)
    assert (tiny.hidden_size, tiny.num_attention_heads, tiny.num_key_value_heads) == (256, 2, 1)
    assert original.num_hidden_layers == 36, "the original is untouched"


def test_a_model_in_a_folder_keeps_its_tokenizer_and_template(tmp_path):
    source = chat_model.save(tmp_path / "source")
    tiny = write_tiny_model(config_of(source), tmp_path / "tiny")
    assert tiny.stand_ins == () and "512 tokens" in tiny.architecture
    assert AutoTokenizer.from_pretrained(tiny.folder).chat_template == chat_model.TEMPLATE
    assert AutoModelForCausalLM.from_pretrained(tiny.folder).config.vocab_size == 512


@pytest.mark.parametrize(
    ("name", "kind", "head"),
    [
        ("Qwen/Qwen2.5-Math-7B", "qwen2", 128),
        ("meta-llama/Llama-3.2-3B-Instruct", "llama", 128),
        ("somebody/unknown", "llama", 64),
        ("s3://bucket/Qwen3-1B", "qwen3", 64),
    ],
)
def test_a_model_that_cannot_be_had_is_replaced_by_stand_ins_that_are_named(tmp_path, name, kind, head):
    tiny = write_tiny_model(config_of(name), tmp_path / "tiny")
    config = AutoConfig.from_pretrained(tiny.folder)
    assert (config.model_type, config.vocab_size) == (kind, 288)
    assert (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) == head
    said = "\n".join(tiny.stand_ins)
    for part in (name, "tokenizer is a stand-in", "chat template is a stand-in", f"architecture is {kind}"):
        assert part in said
    assert config.eos_token_id == AutoTokenizer.from_pretrained(tiny.folder).eos_token_id


def test_a_template_of_the_config_is_no_stand_in(tmp_path):
    tiny = write_tiny_model(config_of("somebody/unknown", custom_chat_template="{{ messages }}"), tmp_path / "tiny")
    assert not any("chat template" in text for text in tiny.stand_ins)


def test_a_template_without_a_generation_prompt_is_found():
    tokenizer = chat_model.build_tokenizer()
    assert opens_assistant_turn(tokenizer, {})
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert not opens_assistant_turn(tokenizer, {})


def test_an_architecture_that_cannot_be_made_tiny_is_rejected_by_its_key(tmp_path):
    from transformers import T5Config

    T5Config(num_layers=1, d_model=8).save_pretrained(tmp_path / "source")
    chat_model.build_tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(ConfigError, match=r"actor_rollout_ref\.model\.path=.*without --rehearse"):
        write_tiny_model(config_of(tmp_path / "source"), tmp_path / "tiny")
