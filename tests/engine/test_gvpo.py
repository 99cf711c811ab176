"""GVPO's gradient on verl's FSDP2 engine: the same for every division of the rows, and the one it should be."""

import pytest
from gvpo_cases import ExpectedGradients, configured, distance, labelled, prepared, with_log_probs

DYNAMIC = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
#: name -> (workers, words of the config, what is done to the rows)
CASES = {
    "prepass, all rows at once": (1, ["grouping=prepass"], {}),
    "prepass, packed into 64 tokens": (1, ["grouping=prepass", f"{DYNAMIC}=64"], {}),
    "prepass, rows one by one": (1, ["grouping=prepass", "rows=1"], {}),
    "prepass, rows by eight": (1, ["grouping=prepass", "rows=8"], {}),
    "whole, a group at a time": (1, ["grouping=whole", "rows=4"], {}),
    "whole, two groups at a time": (1, ["grouping=whole", "rows=8"], {}),
    "whole, packed into 160 tokens": (1, ["grouping=whole", f"{DYNAMIC}=160"], {}),
    "two workers, prepass": (2, ["grouping=prepass"], {}),
    "two workers, prepass, packed into 64 tokens": (2, ["grouping=prepass", f"{DYNAMIC}=64"], {}),
    "two workers, prepass, rows two by two": (2, ["grouping=prepass", "rows=2"], {}),
    "two workers, whole, a group at a time": (2, ["grouping=whole", "rows=4"], {}),
    "two workers, whole, packed into 160 tokens": (2, ["grouping=whole", f"{DYNAMIC}=160"], {}),
}
#: Others, each compared with what it should be.
FURTHER = {
    "a fixed reference, prepass": (1, ["grouping=prepass", "reference=ref"], {}),
    "a fixed reference, whole": (1, ["grouping=whole", "reference=ref", "rows=4"], {}),
    "two epochs, prepass": (1, ["grouping=prepass"], {"epochs": 2}),
    "two epochs, whole": (1, ["grouping=whole", "rows=4"], {"epochs": 2}),
    "without Var, prepass": (1, ["grouping=prepass", "var=false"], {}),
    "without Cov, whole": (1, ["grouping=whole", "rows=4", "cov=false"], {}),
    "sessions missing, prepass": (2, ["grouping=prepass"], {"without": [0, 1, 2, 9, 13]}),
    "sessions missing, whole": (2, ["grouping=whole", "rows=4"], {"without": [0, 1, 2, 9, 13]}),
    "two outputs in a session": (2, ["grouping=prepass"], {"joined": [5, 6]}),
    "a group of 16 among groups of 4": (2, ["grouping=prepass"], {"merged": 4}),
    "a group of 16 among groups of 4, rows two by two": (2, ["grouping=prepass", "rows=2"], {"merged": 4}),
    "demonstrations, prepass": (2, ["grouping=prepass"], {"demonstrated": [3, 13]}),
    "demonstrations, whole": (2, ["grouping=whole", "rows=4"], {"demonstrated": [3, 13]}),
    "rows rearranged behind our back": (2, ["grouping=whole", "rows=4"], {"rearranged": True, "fails": True}),
}


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast, engine_workers):
    """Every case on the engine: {name: (what it found, what it should have)}."""
    folder, rows = tmp_path_factory.mktemp("gvpo"), with_log_probs(tiny_task)
    cases, to_expect = {1: {}, 2: {}}, {}
    for name, (workers, words, extra) in (CASES | FURTHER).items():
        config = configured(compose_fast, tiny_task, ["hardware=cpu", *words], extra)
        present = labelled(rows, extra)
        cases[workers][name], mini_batches = prepared(config, present, workers, extra)
        if not extra.get("fails"):
            to_expect[name] = (present, mini_batches, config)
    find = engine_workers.begin(folder, cases)
    expected = ExpectedGradients(tiny_task)
    wanted = {name: expected.of(*case) for name, case in to_expect.items()}
    found = find()
    return {name: (found[name], wanted.get(name)) for name in found}


@pytest.mark.parametrize("name", [name for name in CASES | FURTHER if "fails" not in (CASES | FURTHER)[name][2]])
def test_the_engines_gradients_are_those_of_the_paper(runs, name):
    found, wanted = runs[name]
    assert len(found["gradients"]) == len(wanted) > 1
    for update, of_update in enumerate(wanted):
        assert distance(found["gradients"][update], of_update) < 1e-5


def test_every_division_of_the_rows_gives_the_same_gradients(runs):
    first = runs["prepass, all rows at once"][0]["gradients"]
    for name in CASES:
        for mine, others in zip(runs[name][0]["gradients"], first, strict=True):
            assert distance(mine, others) < 1e-5


def test_the_second_update_is_none_of_reinforces(runs):
    """Otherwise the equalities above would say nothing of log-ratios."""
    metrics = runs["prepass, all rows at once"][0]["metrics"]
    assert len(metrics["gvpo/mse"]) == 2
    assert len(metrics["gvpo/s_std"]) == 1 and metrics["gvpo/s_std"][0] > 0.1, "the first one's is 0 by construction"


def test_figures_are_those_of_the_whole_mini_batch_on_every_route(runs):
    first = runs["prepass, all rows at once"][0]["metrics"]
    for name in CASES:
        mine = runs[name][0]["metrics"]
        assert mine.keys() == first.keys()
        for figure in mine.keys() - {"gvpo/split_groups"}:
            assert mine[figure] == pytest.approx(first[figure], rel=1e-3, abs=1e-6)
        if "whole" in name:
            assert mine["gvpo/split_groups"] == [0, 0]
    assert min(runs["two workers, prepass, packed into 64 tokens"][0]["metrics"]["gvpo/split_groups"]) > 0


def test_a_split_group_is_a_loud_error_under_whole(runs):
    error = runs["rows rearranged behind our back"][0]["error"]
    assert "of the 4 responses of group" in error and "grouping=prepass" in error
