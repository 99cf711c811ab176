"""Models of other people: transformers runs no code of theirs, and does not ask whether it may."""

import ast
import builtins
import json

import pytest
from places import ROOT

from verl_gsd.preparation.chats import ChatTemplate

#: Classes of transformers that look up a class by the model's config, which can name code of its own.
LOADERS = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor"}


def undecided(source):
    """The lines that load a model or a part of it without saying whether its code may run."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = (
            node.func.value.attr if isinstance(node.func.value, ast.Attribute) else getattr(node.func.value, "id", "")
        )
        names = {keyword.arg for keyword in node.keywords}
        if node.func.attr == "from_pretrained" and owner in LOADERS and not names & {"trust_remote_code", None}:
            yield node.lineno


def test_whether_code_of_a_model_may_run_is_always_said():
    assert list(undecided("AutoConfig.from_pretrained(a)\ntransformers.AutoTokenizer.from_pretrained(a, b=1)")) == [
        1,
        2,
    ]
    assert list(undecided("AutoConfig.from_pretrained(a, trust_remote_code=False)")) == []
    files = (ROOT / "verl_gsd").rglob("*.py")
    found = [f"{path}:{line}" for path in files for line in undecided(path.read_text(encoding="utf-8"))]
    assert found == [], "without it, transformers asks the user y/N"


def test_a_tokenizer_with_code_of_its_own_is_an_error_and_nobody_is_asked(tmp_path, monkeypatch):
    """The user would answer y."""
    owned = tmp_path / "owned"
    (tmp_path / "own.py").write_text(
        f"from transformers import PreTrainedTokenizerFast\nopen({str(owned)!r}, 'w')\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    with pytest.raises(ValueError, match="tokenizer cannot be loaded"):
        ChatTemplate(str(tmp_path))
    assert not owned.exists()
