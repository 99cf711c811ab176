"""Short recorded runs give the numbers, records and checkpoints that they gave when they were kept.

``tests/support/golden/make.py`` says what is recorded, what is kept, and when to make it anew.
"""

import copy
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from golden import driver, traces

RUNS = sorted(path.parent.name for path in traces.DATA.glob("*/steps.jsonl"))
#: Memories in a checkpoint. The sampler's place in the data stands in verl's own file beside them.
MEMORIES = {
    "grpo": {"prompts"},
    "hadw_dapo": {"prompts", "hadw"},
    "dagrpo": {"prompts", "dagrpo"},
    "gvpo_whole": {"prompts"},
    "gvpo_prepass": {"prompts"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gave_and_resumes_from_the_checkpoint_it_wrote_then(name, tmp_path):
    wanted = traces.kept(name)
    found = driver.replay(name, tmp_path, traces.DATA / name / "saved")
    different = traces.differences(name, wanted, found)
    assert not different, "\n".join([f"{len(different)} differences:", *different[:40]])


def test_every_kind_of_run_is_kept():
    assert set(MEMORIES) == set(RUNS)
    for name, memories in MEMORIES.items():
        for state in traces.kept(name).states.values():
            assert set(state["values"]) == memories


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("state", ["saved", "ended"])
def test_a_checkpoint_has_every_visit_that_the_records_tell_of(name, state):
    kept = traces.kept(name)
    arrays = kept.states[state]["arrays"]
    sources = kept.states[state]["values"]["prompts"]["sources"]
    prompts = zip(arrays["prompts/source"], arrays["prompts/index"], strict=True)
    keys = [(sources[source], index) for source, index in prompts]
    visits, correct, total, last = Counter(), Counter(), Counter(), {}
    for group in groups_until(kept, state):
        key = group["data_source"], group["index"]
        visits[key] += 1
        correct[key] += group["correct"]
        total[key] += group["total"]
        last[key] = group["step"]
    for column, counted in (("visits", visits), ("correct", correct), ("total", total), ("last_step", last)):
        assert dict(zip(keys, arrays[f"prompts/{column}"].tolist(), strict=True)) == dict(counted)


@pytest.mark.parametrize("state", ["saved", "ended"])
def test_hadws_anchors_have_seen_every_group_evicted_ones_too(state):
    kept = traces.kept("hadw_dapo")
    bank = kept.states[state]["values"]["hadw"]["bank"]
    groups = groups_until(kept, state)
    assert {group["fate"] for group in groups} >= {"trained", "filtered", "surplus"}
    steps, shown = defaultdict(lambda: [0.0, 0]), Counter()
    for group in groups:
        steps[group["step"]][0] += group["correct"]
        steps[group["step"]][1] += group["total"]
        shown[group["data_source"]] += group["total"]
    assert bank["shown"] == dict(shown)
    accuracies = [correct / total for correct, total in steps.values()]
    path, rate = bank["overall"]["path"], bank["overall"]["rate"]
    assert len(path) == bank["overall"]["seen"] == len(accuracies) and path[0] == accuracies[0]
    assert path[-1] == pytest.approx((1 - rate) * path[-2] + rate * accuracies[-1], rel=1e-12)


def test_a_checkpoint_has_the_responses_that_an_algorithm_remembers():
    def remembered(name):
        state = traces.kept(name).states["saved"]
        values, arrays = state["values"]["prompts"], state["arrays"]
        names, verdicts = values["response_verdict_names"], arrays["prompts/response_verdict"]
        sources = values["response_sources"]
        return [
            {
                "key": (sources[arrays["prompts/response_source"][row]], int(arrays["prompts/response_index"][row])),
                "step": int(arrays["prompts/response_step"][row]),
                "accuracy": float(verdicts[row][names.index("acc")]),
                "length": int(arrays["prompts/response_length"][row]),
            }
            for row in range(len(arrays["prompts/response_step"]))
        ]

    assert remembered("grpo") == remembered("hadw_dapo") == []
    successes = remembered("dagrpo")
    assert successes and all(response["accuracy"] > 0.5 for response in successes)
    assert max(Counter(response["key"] for response in successes).values()) == 1, "per_group=1"
    history = remembered("gvpo_whole")
    assert history == remembered("gvpo_prepass"), "how groups are cut into micro-batches changes no memory"
    assert set(Counter(response["key"] for response in history).values()) == {2}, "a third of six responses"
    visited = {
        (group["data_source"], group["index"]): group["step"]
        for group in groups_until(traces.kept("gvpo_whole"), "saved")
    }
    assert all(response["step"] == visited[response["key"]] for response in history), "of the latest visit"
    dagrpo = traces.kept("dagrpo").states["saved"]["values"]["dagrpo"]
    assert dagrpo["steps"] == driver.SAVED


def test_a_checkpoint_has_the_samplers_place():
    place = torch.load(traces.DATA / "grpo" / "saved" / "data.pt", weights_only=False)
    assert place["_sampler_iter_state"]["sampler_state"] == {"rows": 12, "draws": driver.SAVED, "waiting": []}


def test_both_groupings_of_gvpo_give_the_same_gradients_and_are_both_there():
    """Not the same losses: of a share of the rows a loss means nothing (``algorithms/gvpo/maths.py``)."""
    whole, prepass = traces.kept("gvpo_whole"), traces.kept("gvpo_prepass")
    cut = [[[sorted(of["rows"]) for of in update] for update in run.updates[3]] for run in (whole, prepass)]
    assert cut[0] != cut[1]
    for step in whole.updates:
        norms = [run.metrics[step]["actor/grad_norm"] for run in (whole, prepass)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
        assert [run.metrics[step]["gvpo/route_whole"] for run in (whole, prepass)] == [1.0, 0.0]
        shares = [run.metrics[step]["gvpo/history/share"] for run in (whole, prepass)]
        assert shares[0] == shares[1] and (shares[0] > 0.3) == (step > 2)


def groups_until(kept, state):
    last = driver.SAVED if state == "saved" else driver.STEPS
    return [group for group in kept.records.to_pylist() if group["step"] <= last]


# The comparison itself: each of these changes is found, and named by run, step and quantity.


def changed(change):
    found = copy.deepcopy(traces.kept("hadw_dapo"))
    change(found)
    return traces.differences("hadw_dapo", traces.kept("hadw_dapo"), found)


def test_a_trace_is_like_itself():
    assert changed(lambda found: None) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda found: found.updates[2][1][0].update(loss=found.updates[2][1][0]["loss"] + 1e-5),
            "step 2, updates, 1, 0, loss",
        ),
        (lambda found: found.updates[2][1][0]["rows"].reverse(), "step 2, updates, 1, 0, rows, 0"),
        (lambda found: found.updates[2].pop(), "step 2, updates: 2 entries are 1"),
        (lambda found: found.updates.pop(5), "step 5, updates"),
        (lambda found: found.metrics[4].update({"hadw/accuracy": 0.5}), "step 4, metrics, hadw/accuracy"),
        (lambda found: found.metrics[4].pop("hadw/accuracy"), "step 4, metrics, hadw/accuracy: is missing"),
        (lambda found: found.metrics[4].update({"hadw/other": 0.5}), "step 4, metrics, hadw/other: is new"),
        (lambda found: found.metrics[4].update({"hadw/accuracy": None}), "step 4, metrics, hadw/accuracy"),
    ],
)
def test_a_change_is_named(change, named):
    assert changed(change)[0].startswith(f"hadw_dapo, {named}")


def test_a_changed_advantage_record_and_memory_are_named():
    def change(found):
        row, values = next(iter(found.advantages[1].items()))
        found.advantages[1][row] = np.nextafter(values * np.float32(1.00001), np.float32(9))
        fate = found.records.column("fate").to_pylist()
        place = found.records.schema.get_field_index("fate")
        found.records = found.records.set_column(place, "fate", [["stale", *fate[1:]]])
        found.states["ended"]["arrays"]["prompts/recent_correct"][0] += 1e-12
        found.states["ended"]["values"]["hadw"]["bank"]["overall"]["path"][-1] += 1e-12
        found.states["ended"]["arrays"]["prompts/visits"] = found.states["ended"]["arrays"]["prompts/visits"].astype(
            np.int64
        )

    lines = changed(change)
    for named in (
        "step 1, advantages, u",
        "records, fate, 0: 'filtered' is 'stale'",
        "state ended, arrays, prompts/recent_correct, 0:",
        "state ended, values, hadw, bank, overall, path, 4:",
        "state ended, arrays, prompts/visits: int32(12,) is int64(12,)",
    ):
        assert any(line.startswith(f"hadw_dapo, {named}") for line in lines), (named, lines)


def test_rounding_of_float32_is_no_change():
    def change(found):
        for step in found.advantages:
            found.advantages[step] = {
                row: np.nextafter(of, np.float32(9)) for row, of in found.advantages[step].items()
            }
        found.updates[1][0][0]["loss"] += 1e-7

    assert changed(change) == []
