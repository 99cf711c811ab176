"""The metrics of a step that was checkpointed and not logged are those that verl would have logged."""

import json
import math

from checkpoint_files import write_checkpoint
from memory_queue import MemoryQueue
from verl.utils.tracking import FileLogger
from verl_parts import compute_metrics, fit, names_of_calls

from verl_gsd.run import lost_metrics
from verl_gsd.rundir import TRAINED, RunDirectory

DATA = {TRAINED: 2, "critic/score/mean": 0.25, "actor/lr": 0.5, "timing_s/step": 1e-6, "nan": math.nan}


def test_the_file_is_like_one_of_verls_own_logger(tmp_path, monkeypatch):
    """What follows a restored line was written by verl, and both are read alike."""
    run = RunDirectory(tmp_path)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(run.path / "verls.jsonl"))
    logger = FileLogger("project", "experiment")
    logger.log(DATA, step=2)
    logger.finish()
    lost_metrics.save(write_checkpoint(tmp_path, 2), attempt=2, step=2, metrics=DATA)
    run.metrics(2).parent.mkdir()
    lost_metrics.restore(run)
    ours, verls = (json.loads(path.read_text()) for path in (run.metrics(2), run.path / "verls.jsonl"))
    assert ours == verls and run.metrics(2).read_bytes()[:20] == (run.path / "verls.jsonl").read_bytes()[:20]


def test_verl_logs_a_step_after_its_checkpoint_its_weight_transfer_and_its_validation(monkeypatch):
    """``GroupTrainer`` calls verl's ``_compute_metrics`` once more, before the checkpoint, with the time so far."""
    ran = fit(monkeypatch, steps=4, steps_per_epoch=2)
    order = ["step", "_save_checkpoint", "checkpoint_manager.update_weights", "_validate", "_compute_metrics"]
    order += ["tq.kv_clear", "Tracking().log"]
    assert [name for name in names_of_calls(ran.calls) if name in order] == 4 * order
    told = [call.kwargs for call in ran.calls._compute_metrics.call_args_list]
    assert [(of["global_steps"], of["epoch"]) for of in told] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_metrics_can_be_computed_twice(monkeypatch):
    """The accumulator is the only state that a second call would change."""
    queue = MemoryQueue.installed(monkeypatch)
    metrics, trainer = compute_metrics(queue, [1.0, 0.0], used=2, global_steps=3)
    assert metrics[TRAINED] == 3 and metrics["perf/time_per_step"] == metrics["timing_s/step"] == 2
    further = {"trainer_mode", "global_steps", "use_critic", "config", "_get_n_gpus_for_throughput"}
    assert vars(trainer).keys() - further == {"_rollout_moe_lb_metrics_accumulator"}
    assert compute_metrics(queue, [1.0, 0.0], used=2, global_steps=3, times=2)[0] == metrics
