"""The metrics of a step that was checkpointed and not logged: added once, never twice."""

import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from checkpoint_files import write_checkpoint

from verl_gsd.report.reading import read_run
from verl_gsd.rundir import TRAINED, RunDirectory, read_metrics
from verl_gsd.trainer import lost_metrics

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
def test_a_missing_line_is_added_once_and_a_line_that_was_cut_off_goes(run, end):
    run.metrics(2).write_text(line(0, a=1.0) + trained(1) + end)
    assert lost_metrics.restore(run) == 2
    steps = list(read_metrics(run.metrics(2)))
    assert [step for step, _ in steps] == [0, 1, 2]
    assert steps[-1][1] == {TRAINED: 2, "critic/score/mean": 0.25, "actor/lr": 0.5, "timing_s/step": 1e-6}
    content = run.metrics(2).read_bytes()
    assert content.endswith(b"}}\n") and lost_metrics.restore(run) is None
    assert run.metrics(2).read_bytes() == content and run.metrics(1).read_text() == trained(1) + trained(2)


def test_a_line_that_is_there_stays_alone_and_so_does_what_follows_it(run):
    content = trained(1) + trained(2) + trained(3) + trained(4)[:30]
    run.metrics(2).write_text(content)
    assert lost_metrics.restore(run) is None and run.metrics(2).read_text() == content


def test_a_validation_before_training_is_no_line_of_the_step(run):
    run.metrics(2).write_text(line(2, **{"val-core/arithmetic/acc/mean@1": 0.5}))
    assert lost_metrics.restore(run) == 2 and len(list(read_metrics(run.metrics(2)))) == 2


def test_an_attempt_without_any_line_has_this_one(run):
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


def test_the_file_is_like_one_of_verls_own_logger(run, monkeypatch):
    """What follows a restored line was written by verl, and both are read alike."""
    from verl.utils.tracking import FileLogger

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(run.path / "verls.jsonl"))
    logger = FileLogger("project", "experiment")
    logger.log(DATA | {"actor/lr": 0.5, "nan": math.nan}, step=2)
    logger.finish()
    lost_metrics.save(run.checkpoint(2), attempt=2, step=2, metrics=DATA | {"nan": math.nan})
    lost_metrics.restore(run)
    ours, verls = (json.loads(path.read_text()) for path in (run.metrics(2), run.path / "verls.jsonl"))
    assert ours == verls and run.metrics(2).read_bytes()[:20] == (run.path / "verls.jsonl").read_bytes()[:20]


def test_verl_logs_a_step_after_its_checkpoint_its_weight_transfer_and_its_validation():
    """``GroupTrainer`` calls verl's ``_compute_metrics`` once more, before the checkpoint, with the time so far."""
    from verl.trainer.ppo.metric_utils import compute_throughout_metrics
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    text = inspect.getsource(PPOTrainer.fit)
    calls = (
        "batch = self.step(",
        "self._save_checkpoint()",
        "self.on_step_end()",
        "val_metrics: dict = self._validate()",
    )
    order = [text.index(call) for call in (*calls, "self._compute_metrics(", "tq.kv_clear(")]
    assert order == sorted(order)
    assert "epoch=current_epoch" in text and "(self.global_steps - 1) // self.steps_per_epoch" in text
    assert 'timing_raw["step"]' in inspect.getsource(compute_throughout_metrics)
    computed = inspect.getsource(PPOTrainer._compute_metrics)
    assert f'"{TRAINED}": global_steps' in computed
    kept = set(re.findall(r"self\.(_\w+)", computed)) - {"_get_n_gpus_for_throughput"}
    assert kept == {"_rollout_moe_lb_metrics_accumulator"}, "the only state that a second call would change"
