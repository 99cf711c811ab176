"""The registry, the order of extensions, what they may not share, and whom an error names."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from verl_gsd import extension
from verl_gsd.bernoulli import Algorithm, SameAlgorithm
from verl_gsd.extension import (
    ROLLOUTS,
    Conflict,
    Declaration,
    Extension,
    ExtensionError,
    RecordColumn,
    ReportChart,
    ReportSection,
    StepFigure,
    Visits,
    active,
    build,
    build_problems,
    merged,
    register,
    run_hook,
)
from verl_gsd.settings import SectionSettings


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))


def declared(name, order=100, **hooks):
    """Register an extension with these hooks."""
    kind = type(name, (Extension,), hooks)
    register(Declaration(name, kind, order=order))
    return kind


def test_ours_are_known_without_torch_and_verl():
    script = (
        "import sys; from verl_gsd.extension import declarations, load\n"
        "for declaration in declarations(): load(declaration.settings)\n"
        "print(*[declaration.name for declaration in declarations()])\n"
        "print(*sorted({'torch', 'verl', 'ray', 'vllm'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    names, heavy = found.split("\n")[:2]
    assert names.split() == [
        *("budget", "sampler", "silent_groups", "gvpo"),
        *("dagrpo", "dagrpo.judge", "dagrpo.demonstrations", "hadw"),
    ]
    assert heavy == ""


def test_everything_that_a_declaration_names_is_there():
    for declaration in extension.declarations():
        assert issubclass(extension.load(declaration.runtime), Extension)
        assert issubclass(extension.load(declaration.settings), SectionSettings)
        assert (
            declaration.longest_wait is None
            or declaration.longest_wait in extension.load(declaration.settings).model_fields
        )
        if declaration.check is not None:
            assert callable(extension.load(declaration.check))
        if declaration.findings is not None:
            assert all(callable(finder) for finder in extension.load(declaration.findings))
        if declaration.lab is not None:
            assert all(isinstance(row, Algorithm | SameAlgorithm) for row in extension.load(declaration.lab)().values())
        assert all(callable(extension.load(place)) for place in declaration.commands.values())
        saved = extension.overrides(extension.load(declaration.runtime), "state_dict")
        assert declaration.saves == saved, "what has a state is saved, and nothing else"


def test_an_extension_takes_part_where_the_config_has_its_section_nested_ones_too():
    assert [of.name for of in active({"hadw": {}, "budget": {}, "gvpo": None, "alpha": 1.0})] == ["budget", "hadw"]
    assert [of.name for of in active({"dagrpo": {"judge": {"scorer": "openai"}, "demonstrations": None}})] == [
        "dagrpo",
        "dagrpo.judge",
    ]
    assert active(None) == active({}) == []


def test_they_are_called_in_the_order_they_state_and_equal_ones_by_name():
    called = []
    for name, order in (("late", 9), ("b", 5), ("a", 5), ("early", 1)):
        declared(name, order, poll=lambda self, now, name=name: called.append((name, now)))
    declared("silent", 2)
    built = build({name: {} for name in ("late", "b", "a", "early", "silent")})
    assert [name for name, _ in run_hook(built, "poll", 7.0)] == ["early", "a", "b", "late"], "not who has no such hook"
    assert called == [("early", 7.0), ("a", 7.0), ("b", 7.0), ("late", 7.0)]


@pytest.mark.parametrize("hook", ["centre", "place", "draw_prompts"])
def test_two_owners_of_what_one_alone_may_do_are_named_before_anything_is_built_for_a_run(hook):
    declared("one", **{hook: lambda self, *arguments: None})
    declared("two", **{hook: lambda self, *arguments: None})
    ((_, problem),) = build_problems({"one": {}, "two": {}})
    assert "one and two" in problem and "algorithm.gsd" in problem
    with pytest.raises(ValueError, match="one and two"):
        build({"one": {}, "two": {}})
    assert list(build_problems({"one": {}, "two": None})) == []


def test_every_wrong_section_is_named():
    found = dict(build_problems({"hadw": {"preset": "haard"}, "dagrpo": {"delta": "x"}, "sampler": 3}))
    assert found.keys() == {"hadw", "dagrpo", "sampler"}
    for name, what in (("hadw", ".preset=haard"), ("dagrpo", ".delta=x"), ("sampler", "=3")):
        assert f"algorithm.gsd.{name}{what}" in found[name]


def test_a_declaration_that_contradicts_its_class_is_named():
    register(Declaration("keeping", type("Keeping", (Extension,), {"state_dict": lambda self: {}})))
    register(Declaration("forgetting", Extension, saves=True))
    found = dict(build_problems({"keeping": {}, "forgetting": {}}))
    assert found.keys() == {"keeping", "forgetting"} and all("state_dict" in line for line in found.values())


def test_a_constructor_that_needs_services_to_check_its_section_is_named():
    class Needy(Extension):
        def __init__(self, section, services=None):
            super().__init__(section, services)
            self.size = services.config.actor_rollout_ref.rollout.n

    register(Declaration("needy", Needy))
    ((name, problem),) = build_problems({"needy": {}})
    assert name == "needy" and "algorithm.gsd.needy" in problem and "AttributeError" in problem


def test_without_a_run_there_are_no_services_and_that_is_said():
    with pytest.raises(RuntimeError, match="no services"):
        _ = Extension({}).services
    services = object()
    assert Extension({}, services).services is services


def test_an_error_names_the_extension_and_the_hook_and_keeps_its_cause():
    def raising(self, now):
        raise KeyError("uid0")

    declared("careless", poll=raising)
    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.careless\b.*\bpoll\b.*KeyError.*uid0") as caught:
        list(run_hook(build({"careless": {}}), "poll", 0.0))
    assert isinstance(caught.value.__cause__, KeyError)
    brought = pickle.loads(pickle.dumps(caught.value))
    assert (type(brought), str(brought)) == (ExtensionError, str(caught.value)), "Ray brings it from a worker"


def test_one_name_of_two_extensions_is_an_error_that_names_both():
    assert merged([("a", {"x": 1}), ("b", {"y": 2})]) == {"x": 1, "y": 2}
    with pytest.raises(ValueError, match=r"\ba and b\b.*\bx\b"):
        merged([("a", {"x": 1}), ("b", {"x": 2})])


def test_a_name_is_registered_once():
    declared("mine")
    with pytest.raises(ValueError, match="'mine'"):
        declared("mine")
    for name in ("limits", "prompts"):
        with pytest.raises(ValueError, match=rf"algorithm\.gsd\.{name}\b"):
            declared(name)


SECTION = ReportSection("mine", "Mine", "", (ReportChart("a", "A", {"a": "a"}, "groups"),))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"record_columns": (RecordColumn("size"),)}, r"record column size\b.*\bverl-gsd\b"),
        ({"record_columns": (RecordColumn("hadw_anchor"),)}, r"record column hadw_anchor\b.*'hadw'"),
        ({"record_columns": (RecordColumn("mine"), RecordColumn("mine"))}, r"record column mine\b.*'mine'"),
        ({"step_figures": (StepFigure("accuracy", "correct", over="total"),)}, r"accuracy\b.*\bverl-gsd\b"),
        ({"step_figures": (StepFigure("judge_score", "mean"),)}, r"judge_score\b.*'dagrpo'"),
        ({"step_figures": (StepFigure("mine", "sise"),)}, r"mine\b.*record column sise\b.*Declare"),
        ({"step_figures": (StepFigure("mine", "std", over="hadw_anchor"),)}, r"record column hadw_anchor\b.*Declare"),
        ({"step_figures": (StepFigure("mine", "fate"),)}, r"record column fate\b.*numbers"),
        ({"report": replace(SECTION, name="waste")}, r"report section waste\b.*\bverl-gsd\b"),
        ({"report": replace(SECTION, name="gvpo")}, r"report section gvpo\b.*'gvpo'"),
        ({"histograms": {"sigma": "std"}}, r"histogram sigma\b.*\bverl-gsd\b"),
        ({"histograms": {"mine": "mine"}}, r"histogram mine\b.*record column mine\b.*Declare"),
        ({"histograms": {"mine": "kind"}}, r"record column kind\b.*numbers"),
    ],
)
def test_a_name_that_is_taken_and_a_column_that_is_not_there_are_named_before_a_run(monkeypatch, declared, said):
    monkeypatch.setattr(extension, "_REJECTED", [])
    with pytest.raises(ValueError, match=rf"'mine'.*{said}"):
        register(Declaration("mine", Extension, **declared))
    assert len(extension.rejected()) == 1 and extension.declared("mine") is None


def test_the_same_declaration_may_be_registered_again():
    mine = Declaration("mine", Extension, record_columns=(RecordColumn("mine"),), report=SECTION)
    register(mine)
    register(replace(mine))
    assert extension.declared("mine") == mine


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RecordColumn("mine", "float32"), r"mine\b.*'float32'.*float64"),
        (lambda: ReportChart("a b", "A", {"a": "a"}, "groups"), "chart 'a b'.*hyphens"),
        (lambda: ReportChart("a", "A", {}, "groups"), "chart a: 0 lines"),
        (lambda: ReportChart("a", "A", dict.fromkeys("abcd", "a"), "groups"), "chart a: 4 lines"),
        (lambda: ReportChart("a", "A", {"a": "a"}, "groups", values="percent"), "chart a: .*'percent'.*share"),
        (lambda: ReportSection("../a", "A", "", ()), r"report section '\.\./a'.*hyphens"),
        (lambda: Declaration("mine", Extension, remedies={"silence": "x=1"}), "'mine'.*'silence'.*silent"),
    ],
)
def test_a_part_of_a_declaration_that_cannot_be_used_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_another_package_that_takes_a_name_of_ours_is_the_one_that_hears_of_it():
    script = (
        "from verl_gsd.extension import Declaration, declarations, register\n"
        "try: register(Declaration('gvpo', 'theirs.gvpo:Theirs'))\n"
        "except ValueError as error: print(error)\n"
        "print(*[declaration.runtime for declaration in declarations() if declaration.name == 'gvpo'])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    refused, kept = found.splitlines()
    assert "'gvpo'" in refused and kept == "verl_gsd.algorithms.gvpo.extension:Gvpo"


def test_a_package_whose_extension_is_refused_is_named_once(monkeypatch):
    class Point:
        name, module, dist = "theirs", "theirs.extension", None

    def register_taken(module):
        register(Declaration("hadw", "theirs.extension:Theirs"))

    monkeypatch.setattr(extension, "_entry_points", lambda: [Point])
    monkeypatch.setattr(extension.importlib, "import_module", register_taken)
    before = extension.rejected()
    extension._register_all.__wrapped__()
    (problem,) = (one for one in extension.rejected() if one not in before)
    assert "package theirs" in problem and "'hadw'" in problem


def test_rollouts_have_one_owner():
    visits = Visits(["u0", "u1"], [("maths", 0), ("maths", 1)], {}, 8)
    assert visits.rollouts.tolist() == [8, 8] and not visits.has_own_rollouts
    visits.request([3, 13])
    assert visits.requested.tolist() == [3, 13]
    with pytest.raises(ValueError, match="another extension"):
        visits.request([8, 8])


def test_visits_know_the_datas_own_rollouts_and_what_was_noted_before_a_restart():
    columns = {ROLLOUTS: torch.tensor([4, 6]), "__mine__": torch.tensor([1, 0])}
    visits = Visits(["u0", "u1"], [("maths", 0), ("maths", 1)], columns, 8)
    assert visits.has_own_rollouts and visits.rollouts.tolist() == [4, 6]
    assert visits.noted("__mine__") == [1, 0] and visits.noted("__other__") is None
    visits.note("__other__", np.array([2, 2]))
    assert visits.notes["__other__"].tolist() == [2, 2]


def test_names_in_users_files_lead_to_what_moved():
    from verl_gsd.algorithms.chain import Rows, register_stage
    from verl_gsd.algorithms.dagrpo import rectified_advantage
    from verl_gsd.algorithms.dial import dial_advantage
    from verl_gsd.algorithms.gvpo import gvpo_loss
    from verl_gsd.algorithms.hadw import FixedAnchor, HardAnchor, SoftAnchor, hadw_factor

    found = (Rows, register_stage, rectified_advantage, dial_advantage, gvpo_loss, hadw_factor)
    assert {of.__module__ for of in found} == {
        "verl_gsd.chain",
        "verl_gsd.dial",
        "verl_gsd.algorithms.dagrpo.pairs",
        "verl_gsd.algorithms.gvpo.maths",
        "verl_gsd.algorithms.hadw.factor",
    }
    assert {of.__module__ for of in (FixedAnchor, HardAnchor, SoftAnchor)} == {"verl_gsd.algorithms.hadw.anchors"}
    with pytest.raises(ImportError):
        from verl_gsd.algorithms.hadw import no_such_name  # noqa: F401


@pytest.mark.parametrize("setting", ["a.b==1", "a.b=[1", "a b", "=1"])
def test_a_conflict_that_is_no_condition_is_rejected_where_it_is_declared(setting):
    with pytest.raises(ValueError, match="not a condition"):
        Conflict(setting, "it does not work", "Set another value.")
    Conflict("a.b!=1|null", "it does not work", "Set another value.", when="a.c")


def test_names_of_charts_and_sections_that_would_meet_on_a_page_are_rejected():
    chart = ReportChart("a", "A", {"a": "mine/a"}, "number")
    with pytest.raises(ValueError, match="two charts are called a"):
        ReportSection("mine", "Mine", "Text.", (chart, chart))
    with pytest.raises(ValueError, match=r"policy-entropy .*policy"):
        register(Declaration("mine", Extension, report=ReportSection("policy-entropy", "M", "Text.", (chart,))))


def test_a_package_that_asks_for_the_registry_while_it_is_loaded_changes_nothing(monkeypatch):
    imported = []

    class Point:
        dist = None

        def __init__(self, name):
            self.name = self.module = name

    def import_module(module):
        imported.append(module)
        extension.declared("hadw")
        if module == "zzz":
            raise SystemExit(3)

    monkeypatch.setattr(extension, "_entry_points", lambda: [Point("aaa"), Point("zzz")])
    monkeypatch.setattr(extension.importlib, "import_module", import_module)
    monkeypatch.setattr(extension, "_REJECTED", [])
    extension._register_ours()
    extension._register_all.cache_clear()
    try:
        assert [("zzz" in problem) for problem in extension.rejected()] == [True]
        assert imported == ["aaa", "zzz"]
    finally:
        extension._register_all.cache_clear()
        monkeypatch.undo()
        extension._register_all()
