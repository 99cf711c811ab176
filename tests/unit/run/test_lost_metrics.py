"""The metrics of a step that was checkpointed but not logged are added once."""

import json
import math

import numpy as np
import pytest
import torch
from checkpoint_files import write_checkpoint

from verl_gsd.report.reading import read_run
from verl_gsd.run import lost_metrics
from verl_gsd.rundir import TRAINED, RunDirectory, read_metrics

DATA = {TRAINED: 2, "critic/score/mean": 0.25, "actor/lr": np.float32(0.5), "timing_s/step": 1e-6}


def line(step, **data):
    return json.dumps({"step": step, "data": data}) + "\n"


def trained(step):
    return line(step, **{TRAINED: step, "critic/score/mean": 0.5})


@pytest.fixture
def run(tmp_path):
    """A run whose second attempt saved a checkpoint of step 2, with the metrics of step 2."""
    run = RunDirectory(tmp_path)
    lost_metrics.save(write_checkpoint(tmp_path, 2), attempt=2, step=2, metrics=DATA)
    run.metrics(2).parent.mkdir()
    run.metrics(1).write_text(trained(1) + trained(2))  # of an attempt that was undone
    return run


@pytest.mark.parametrize("end", ["", trained(2)[:-1], trained(2)[:20], '{"step":2,"data":{"training/global_step":2}}'])
def test_missing_line_is_added_once_and_an_incomplete_line_is_removed(run, end):
    run.metrics(2).write_text(line(0, a=1.0) + trained(1) + end)
    assert lost_metrics.restore(run) == 2
    steps = list(read_metrics(run.metrics(2)))
    assert [step for step, _ in steps] == [0, 1, 2]
    assert steps[-1][1] == {TRAINED: 2, "critic/score/mean": 0.25, "actor/lr": 0.5, "timing_s/step": 1e-6}
    content = run.metrics(2).read_bytes()
    assert content.endswith(b"}}\n") and lost_metrics.restore(run) is None
    assert run.metrics(2).read_bytes() == content and run.metrics(1).read_text() == trained(1) + trained(2)


def test_existing_lines_are_not_changed(run):
    content = trained(1) + trained(2) + trained(3) + trained(4)[:30]
    run.metrics(2).write_text(content)
    assert lost_metrics.restore(run) is None and run.metrics(2).read_text() == content


def test_validation_before_training_does_not_count_as_the_steps_line(run):
    run.metrics(2).write_text(line(2, **{"val-core/arithmetic/acc/mean@1": 0.5}))
    assert lost_metrics.restore(run) == 2 and len(list(read_metrics(run.metrics(2)))) == 2


def test_line_is_added_to_an_attempt_without_metrics(run):
    assert lost_metrics.restore(run) == 2
    assert [step for step, _ in read_metrics(run.metrics(2))] == [2]


def test_the_report_reads_the_line(run):
    run.metrics(2).write_text(trained(1))
    lost_metrics.restore(run)
    read = read_run(run.path, "run")
    assert list(read.metrics["step"]) == [1, 2] and list(read.metrics["critic/score/mean"]) == [0.5, 0.25]
    assert not read.skipped


def test_numbers_of_every_kind_are_kept_and_other_values_are_not(tmp_path):
    run = RunDirectory(tmp_path)
    metrics = DATA | {"nan": math.nan, "inf": np.float64(math.inf), "text": "x", "table": {"a": 1}, "row": [1, 2]}
    metrics |= {"integer": np.int64(3), "flag": True, "tensor": torch.tensor(0.5), "rows": np.ones(2)}
    lost_metrics.save(write_checkpoint(tmp_path, 2), attempt=1, step=2, metrics=metrics)
    assert lost_metrics.restore(run) == 2
    ((_, data),) = read_metrics(run.metrics(1))
    assert math.isnan(data.pop("nan")) and math.isnan(data.pop("inf"))
    assert data.pop("integer") == 3 and data.pop("flag") == 1 and data.pop("tensor") == 0.5
    assert data.keys() == DATA.keys()


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"attempt": "x", "step": 2, "data": {}}', b'{"attempt": 2'])
def test_a_checkpoint_without_metrics_or_with_damaged_ones_changes_nothing(run, content):
    file = run.checkpoint(2) / "gsd" / "metrics.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert lost_metrics.restore(run) is None and not run.metrics(2).exists()
