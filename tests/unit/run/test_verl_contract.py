"""What we assume of verl: how the assumptions are read from our source, and which changes of verl they find."""

import ast

import pytest

from verl_gsd.run import verl_contract, verl_hooks
from verl_gsd.run.verl_contract import Assumption, check
from verl_gsd.run.verl_source import Module, PackageSource, Parameters

BASE = "verl.trainer"
FILES = {
    "__init__.py": "",
    "trainer.py": """
from abc import ABC, abstractmethod
from verl.parts import Mixin, LIMIT as MOST
from verl.names import *
from elsewhere import Foreign

class Trainer(Mixin, ABC):
    width: int = 3
    def __init__(self):
        self.tokenizer, (self.step, self.rest) = None, (0, 1)
    @abstractmethod
    def on_end(self): ...
    async def score(self, data, *, limit=None): ...
    @classmethod
    def build(cls, config, **options): ...

class Odd(Foreign): ...

if MOST:
    def chosen(first, /, second): ...
else:
    chosen = None
""",
    "parts.py": "LIMIT = 3\nclass Mixin:\n    def balance(self, batch, metrics): ...\n",
    "names.py": "class Starred: ...\n",
    "nested/__init__.py": "from .deep import inner\n",
    "nested/deep.py": "from ..parts import Mixin\ndef inner(a): ...\n",
}


@pytest.fixture
def verl(tmp_path):
    """The source of a small package, and a function that changes it."""
    for name, text in FILES.items():
        (tmp_path / "verl" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "verl" / name).write_text(text)

    def changed(name="__init__.py", old="", new=""):
        text = FILES[name]
        assert old in text
        (tmp_path / "verl" / name).write_text(text.replace(old, new) if old else text)
        return PackageSource({"verl": tmp_path / "verl"})

    return changed


@pytest.mark.parametrize(
    ("module", "path"),
    [
        *((BASE, f"Trainer.{name}") for name in ("width", "tokenizer", "step", "rest", "on_end", "balance", "score")),
        *((BASE, name) for name in ("Mixin", "Mixin.balance", "MOST", "Starred", "chosen", "ABC", "Odd.anything")),
        ("verl", "parts"),
        ("verl", "parts.LIMIT"),
        ("verl.nested", "inner"),
        ("verl.nested.deep", "Mixin.balance"),
    ],
)
def test_names_are_found_through_imports_bases_and_assignments(verl, module, path):
    assert verl().find(module, path) is not None


@pytest.mark.parametrize(
    ("module", "path"), [(BASE, "Trainer.gone"), (BASE, "gone"), ("verl", "gone"), ("verl.x", "y")]
)
def test_names_that_do_not_exist_are_not_found(verl, module, path):
    assert verl().find(module, path) is None


def function(text):
    return Parameters.of(ast.parse(f"def f({text}): ...").body[0])


@pytest.mark.parametrize(
    ("ours", "theirs", "matches"),
    [
        ("self, batch, metrics", "self, batch, metrics", True),
        ("self, batch", "self, batch, metrics=None", False),
        ("self, batch, metrics", "self, batch", False),
        ("self, metrics, batch", "self, batch, metrics", False),
        ("self, batch, **rest", "self, batch, metrics=None", True),
        ("self, *args, counts=None, **rest", "self, sources, counts=None", True),
        ("self, *args, counts=None, **rest", "self, sources", False),
        ("*, a, b", "*, b, a", True),
    ],
)
def test_parameters_match_if_ours_can_stand_for_theirs(ours, theirs, matches):
    assert function(ours).matches(function(theirs)) is matches


OURS = """
import verl.nested.deep as deep
from verl.trainer import Trainer

class Middle(Trainer):
    mine = 1
    def __init__(self):
        self.own = self.tokenizer
    def balance(self, batch, metrics):
        return super().balance(batch, metrics) + self.mine + self.own

class Last(Middle):
    pass

def use():
    when_imported("verl.parts", deep.inner)
"""


@pytest.fixture
def collected(tmp_path):
    path = tmp_path / "ours.py"
    path.write_text(OURS)
    return list(dict.fromkeys(verl_contract._of_module("ours.py", Module("ours", path))))


def test_imports_overrides_attributes_and_hooks_of_our_source_are_assumptions(collected):
    assert {(str(one), str(one.parameters or "")) for one in collected} == {
        ("verl.nested.deep", ""),
        ("verl.nested.deep.inner", ""),
        ("verl.trainer.Trainer", ""),
        ("verl.trainer.Trainer.tokenizer", ""),
        ("verl.trainer.Trainer.balance", "(batch, metrics)"),
        ("verl.parts", ""),
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("trainer.py", "self.tokenizer, (", "self.reader, (", "Trainer.tokenizer: this name does not exist"),
        ("trainer.py", "class Trainer", "class NewTrainer", "verl.trainer.Trainer: this name does not exist"),
        ("parts.py", "batch, metrics", "batch", "Trainer.balance: it takes (batch), and we assume (batch, metrics)"),
        ("nested/deep.py", "inner", "outer", "verl.nested.deep.inner: this name does not exist"),
    ],
)
def test_a_change_of_verl_is_found(verl, collected, file, old, new, problem):
    assert check(verl(), collected) == []
    found = [f"{one.assumption}: {one.problem}" for one in check(verl(file, old, new), collected)]
    assert any(text.endswith(problem) for text in found)


def test_a_new_abstract_method_and_a_module_that_is_gone_are_found(verl):
    whole = Assumption("ours.py", BASE, "Trainer", implemented=frozenset({"on_end"}))
    lacking = Assumption("ours.py", BASE, "Trainer", implemented=frozenset())
    gone = Assumption("ours.py", "verl.gone")
    found = {one.assumption: one.problem for one in check(verl(), [whole, lacking, gone])}
    assert found == {
        lacking: "it has abstract methods that our class lacks: on_end",
        gone: "this module does not exist",
    }


def test_a_file_that_cannot_be_parsed_breaks_what_comes_from_it_and_nothing_else(verl):
    names = ("Trainer.on_end", "Trainer.balance", "Starred")
    expected = [*(Assumption("ours.py", BASE, name) for name in names), Assumption("ours.py", "verl.parts")]
    source = verl("parts.py", "LIMIT = 3", "LIMIT =")
    found = {one.assumption.path: one.problem for one in check(source, expected)}
    assert set(found) == {"Trainer.balance", ""}, "a member of a base class in that file, and the file itself"
    assert all("parts.py, line 1, cannot be parsed by this Python: invalid syntax" in one for one in found.values())
    source.path("verl.parts").write_bytes(b"LIMIT = '\xff'\n")
    assert len(check(source, expected)) == 2, "also if the file is no UTF-8"


def test_a_patched_method_must_be_the_classs_own(verl):
    """The base class may have a method of the same name, which nobody calls on this class any more."""
    expected = Assumption("trainer/some_patch.py", BASE, "Trainer.score", own=True)
    inherited = "LIMIT = 3\nclass Mixin:\n    def balance(self, batch, metrics): ...\n    def score(self): ...\n"
    verl("parts.py", FILES["parts.py"], inherited)
    assert check(verl("trainer.py"), [expected]) == []
    (broken,) = check(verl("trainer.py", "async def score", "async def score_all"), [expected])
    assert broken.problem == "the class does not define this method itself"


def test_every_patched_method_is_expected_in_its_class():
    source = verl_contract.source_of()
    members = [one for one in verl_contract.PATCHED if "." in one.path and source.is_read(one.module)]
    own = {one for one in members if source.is_own(one.module, one.path)}
    assert own and own == {one for one in members if one.own}


@pytest.fixture
def configs(tmp_path):
    """A package with a config of two files, and the folder of the files."""
    folder = tmp_path / "verl" / "trainer" / "config"
    (folder / "actor").mkdir(parents=True)
    for name, text in (("verl", ""), ("verl/trainer", "")):
        (tmp_path / name / "__init__.py").write_text(text)
    (folder / "ppo_trainer.yaml").write_text("defaults: [actor: dp_actor, _self_]\nmode: 1\n")
    (folder / "actor" / "dp_actor.yaml").write_text("lr: 0.1\n")
    return PackageSource({"verl": tmp_path / "verl"}), folder


def check_keys(source):
    keys = [Assumption("config/x.yaml", verl_contract.CONFIG, key) for key in ("mode", "actor.lr", "actor.gone")]
    return verl_contract.check_config(source, keys)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "ppo_trainer.yaml").rename(folder / "x.yaml"), "'ppo_trainer'"),
        (lambda folder: (folder / "actor").rename(folder / "policy"), "'actor/dp_actor'"),
        (lambda folder: (folder / "ppo_trainer.yaml").write_text("a: [1\n"), "expected"),
        (lambda folder: folder.rename(folder.with_name("configs")), "verl has no folder with configs"),
    ],
)
def test_a_config_that_cannot_be_composed_is_one_broken_assumption(configs, change, problem):
    source, folder = configs
    assert [one.assumption.path for one in check_keys(source)] == ["actor.gone"]
    change(folder)
    (broken,) = check_keys(source)
    assert broken.assumption == verl_contract.WHOLE_CONFIG and broken.assumption.stops_runs
    assert problem in broken.problem and "\n" not in broken.problem
    assert "cannot be composed" in broken.problem or "no folder" in broken.problem


def test_the_version_is_known_of_a_package_that_cannot_be_parsed(verl):
    source = verl("__init__.py")
    source.path("verl").write_text("x =\n")
    (source.path("verl").parent / "version").mkdir()
    (source.path("verl").parent / "version" / "version").write_text("9.9\n")
    assert verl_contract.version_in(source) == "9.9"


def test_what_the_trainer_needs_is_among_all_assumptions():
    everything = verl_contract.assumptions()
    needed = verl_contract.assumptions("trainer")
    assert set(needed) < set(everything) and all(one.stops_runs for one in needed)
    names = {str(one) for one in needed}
    assert "verl.trainer.ppo.padding_utils.SYNTHETIC_PADDING_SEQ_LEN" in names
    assert "verl.trainer.ppo.v1.trainer_base.PPOTrainer._balance_batch" in names


@pytest.fixture
def patch(verl, monkeypatch):
    """Makes the only patch that is known assume ``Trainer.score(data, limit)``; ours runs only if that holds."""
    expected = Assumption("trainer/some_patch.py", BASE, "Trainer.score", Parameters(("data",), keywords=("limit",)))
    monkeypatch.setattr(verl_contract, "PATCHED", (expected,))
    monkeypatch.setattr(verl_hooks, "_failures", {})
    verl_hooks.patch_problem.cache_clear()
    yield lambda source: monkeypatch.setattr(verl_contract, "source_of", lambda: source)
    verl_hooks.patch_problem.cache_clear()


@pytest.mark.parametrize(("new", "runs"), [("data, *, limit=None", True), ("data, more, *, limit=None", False)])
def test_a_patch_changes_nothing_unless_all_that_it_assumes_holds(patch, verl, tmp_path, monkeypatch, new, runs):
    import importlib

    patch(verl("trainer.py", "data, *, limit=None", new))
    monkeypatch.syspath_prepend(tmp_path)
    name, seen = f"contract_host_{runs}".lower(), []
    (tmp_path / f"{name}.py").write_text("")
    verl_hooks.when_imported(name, seen.append, patch="trainer/some_patch.py")
    importlib.import_module(name)
    assert bool(seen) is runs and bool(verl_hooks.failures()) is not runs
