"""Histograms and tables in real TensorBoard files and a real offline run of wandb, read back."""

import json
import logging
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from canaries import CANARIES, files_with_a_canary

pytest.importorskip("verl")
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from verl.utils.tracking import Tracking
from verl_parts import fit, names_of_calls

from verl_gsd import records
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptStore
from verl_gsd.trainer.histograms import TABLE_ROWS, Histograms, markdown, prompt_rows, table_is_due, values_shown

NASTY = "set|a`<script>alert(1)</script>\n# head"


def group(index, outcomes, scores=None, source="arithmetic"):
    outcomes = np.array(outcomes, dtype=float)
    tokens = np.ones(len(outcomes), np.int64)
    return Group(f"uid{index}", source, index, outcomes, outcomes, tokens, scores=scores)


def step_of(groups, step=3, **further):
    left = [records.LeftGroup(group, "filtered" if group.index == 1 else "trained", further) for group in groups]
    return records.step_records(left, step=step, attempt=1, alpha=1.0)


GROUPS = [
    group(0, [0, 1, 0, 1], np.array([3.0, np.nan, 5.0, 5.0])),
    group(1, [1, 1, 1, 1], source=NASTY),
    group(2, [], np.zeros(0)),
    group(3, [0, 0, 0, 1]),
]


def test_a_histogram_is_of_what_there_is():
    plain = values_shown(step_of(GROUPS), GROUPS[1:])
    assert plain.keys() == {"sigma", "accuracy"}, "nobody judged, and there is no HA-DW"
    assert plain["sigma"].tolist() == [0.5, 0.0, pytest.approx(np.sqrt(3) / 4)], "the failed group has none"
    assert plain["accuracy"].tolist() == [0.5, 1.0, 0.25]
    table = step_of(GROUPS, hadw_factor_right=1.2, hadw_factor_wrong=None)
    shown = values_shown(table, GROUPS)
    assert shown["judge_score"].tolist() == [3, 5, 5] and shown["hadw_factor_right"].tolist() == [1.2] * 4
    assert "hadw_factor_wrong" not in shown
    assert values_shown(step_of([]), []) == {}


def test_a_row_says_what_is_known_of_a_prompt_and_what_became_of_its_group():
    prompts = PromptStore(half_life=2)
    prompts.observe(("arithmetic", 0), 4, 4, step=1)
    prompts.observe(("arithmetic", 0), 2, 4, step=3)
    rows = prompt_rows(step_of(GROUPS), prompts, 3, prior=(1.0, 3.0))
    assert rows[0] == ("arithmetic", 0, 2, pytest.approx((1 + 2 + 2) / (4 + 4 + 2)), "mixed", "trained")
    assert rows[1] == (NASTY, 1, 0, None, "all_right", "filtered"), "no prior that looks like a solve rate"
    assert rows[2][4] is None, "a group without responses has no kind"
    prompts.leave_out(NASTY)
    rows = prompt_rows(step_of(GROUPS), prompts, 3, prior=(1.0, 3.0))
    assert rows[0][3] > 0 and rows[1][3] is None, "a source with verdicts outside [0, 1] has no solve rates"
    assert "None" not in markdown(rows)


def test_a_table_is_bounded_and_spread_over_the_step():
    rows = prompt_rows(step_of([group(index, [0, 1]) for index in range(1000)]), PromptStore(), 1, (1.0, 1.0))
    indices = [row[1] for row in rows]
    assert len(indices) == TABLE_ROWS == 200 and indices[0] == 0 and indices[-1] == 999
    assert max(np.diff(indices)) <= 6
    assert prompt_rows(step_of([]), PromptStore(), 1, (1.0, 1.0)) == []


@pytest.mark.parametrize(
    ("test_freq", "save_freq", "due"), [(4, -1, [4, 8, 10]), (-1, -1, [10]), (4, 6, [4, 6, 8, 10]), (0, 5, [5, 10])]
)
def test_a_table_is_drawn_where_verl_validates_or_saves_and_at_the_end(test_freq, save_freq, due):
    config = OmegaConf.create({"trainer": {"test_freq": test_freq, "save_freq": save_freq}})
    assert [step for step in range(1, 11) if table_is_due(config, step, last=10)] == due


def test_a_name_in_the_data_is_no_markup():
    text = markdown([(NASTY, 1, 0, 0.25, "mixed", "trained")])
    assert len(text.splitlines()) == 3
    assert text.splitlines()[2].count("|") == 7 and not set("<>`#") & set(text.replace("&#", ""))
    assert text.splitlines()[2].endswith("| 1 | 0 | 0.250 | mixed | trained |")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of verl's own loggers: a validation before step 1, then three steps as its trainer has them."""
    import wandb

    folder = tmp_path_factory.mktemp("tracked")
    places = {"TENSORBOARD_DIR": str(folder / "tensorboard"), "WANDB_DIR": str(folder), "WANDB_MODE": "offline"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (CANARIES | places).items():
            environment.setenv(name, value)
        tracking = Tracking("project", "experiment", ["wandb", "tensorboard"], {"trainer": {}})
    prompts = PromptStore()
    histograms = Histograms(prompts, (1.0, 1.0))
    tracking.log({"val/accuracy": 0.1}, step=0)
    for step in (1, 2, 3):
        table = step_of(GROUPS, step)
        prompts.observe(("arithmetic", 0), 2, 4, step)
        histograms.show(tracking.logger, step, table, GROUPS, prompts_too=step == 3)
        tracking.log({"group/std/mean": 0.5}, step=step)
    tracking.finish()
    wandb.teardown()
    return folder


def test_tensorboard_has_them_at_the_steps_they_are_of(tracked):
    events = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"tensors": 0, "histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("histogram/sigma")] == [1, 2, 3]
    assert events.Histograms("histogram/accuracy")[0].histogram_value.num == 3
    assert events.Histograms("histogram/judge_score")[0].histogram_value.sum == 13
    (table,) = events.Tensors("table/prompts/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert table.step == 3 and "| arithmetic | 0 | 3 | 0.500 | mixed | trained |" in text and "<script>" not in text


def test_wandb_and_tensorboard_write_no_secret_of_the_environment(tracked):
    assert list(tracked.glob("wandb/offline-run-*/*.wandb")) and list(tracked.glob("tensorboard/**/*tfevents*"))
    assert files_with_a_canary(tracked) == []


def test_wandb_has_them_beside_the_numbers_of_their_steps(tracked):
    steps = dict(wandb_history(next(tracked.glob("wandb/offline-run-*/*.wandb"))))
    assert sorted(steps) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        assert steps[step]["group/std/mean"] == 0.5
        assert steps[step]["histogram/sigma._type"] == "histogram"
        assert sum(steps[step]["histogram/sigma.values"]) == 3
    assert "table/prompts._type" not in steps[1] and steps[3]["table/prompts.nrows"] == 4
    (run,) = tracked.glob("wandb/offline-run-*")
    table = json.loads((run / "files" / steps[3]["table/prompts.path"]).read_text())
    assert table["columns"] == ["data_source", "index", "visits", "solve_rate", "kind", "fate"]
    assert table["data"][:2] == [
        ["arithmetic", 0, 3, 0.5, "mixed", "trained"],
        [NASTY, 1, 0, None, "all_right", "filtered"],
    ]


def wandb_history(path):
    """(step, {key: value}) of a file of wandb's: LevelDB's log format, a protocol buffer a record."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no header fits at the end of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield (
                    record.history.step.num,
                    {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items},
                )


class Broken:
    @property
    def writer(self):
        raise OSError("no space left on device")


def test_a_logger_that_fails_ends_no_run_and_is_mentioned_once(caplog):
    seen = []
    fine = SimpleNamespace(
        Histogram=lambda values: len(values), Table=lambda **_: None, log=lambda data, step: seen.append((step, data))
    )
    histograms = Histograms(PromptStore(), (1.0, 1.0))
    with caplog.at_level(logging.ERROR):
        for step in (1, 2):
            loggers = {"tensorboard": Broken(), "wandb": fine, "console": None}
            histograms.show(loggers, step, step_of(GROUPS, step), GROUPS, prompts_too=False)
    assert caplog.text.count("OSError: no space left on device") == 1 and "tensorboard" in caplog.text
    assert seen == [
        (step, {"histogram/sigma": 3, "histogram/accuracy": 3, "histogram/judge_score": 3}) for step in (1, 2)
    ]


def test_records_that_cannot_be_drawn_end_no_run_either(caplog):
    histograms = Histograms(PromptStore(), (1.0, 1.0))
    histograms.show({"tensorboard": Broken()}, 1, step_of(GROUPS).drop_columns(["std"]), GROUPS, prompts_too=True)
    assert "KeyError" in caplog.text


def test_verl_makes_its_loggers_before_the_first_step_and_logs_each_step_after_it_under_its_number(monkeypatch):
    """That ``Tracking`` hands its loggers out by name is what the runs above show."""
    ran = fit(monkeypatch, steps=2)
    of_interest = ("Tracking", "step", "Tracking().log")
    order = [name for name in names_of_calls(ran.calls) if name in of_interest]
    assert order == ["Tracking", *2 * ["step", "Tracking().log"]]
    assert [call.kwargs["step"] for call in ran.calls.Tracking().log.call_args_list] == [1, 2]
