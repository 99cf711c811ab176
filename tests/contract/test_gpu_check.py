"""``scripts/gpu_check.sh`` and its parts, on a CPU: what it checks, and what it leaves where a part does not pass."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from places import BINARIES, ROOT

pytest.importorskip("verl")
sys.path.append(str(ROOT / "benchmarks"))  # as the script has it

from gpu_check import device, record, tensors, training, updates
from gpu_check.__main__ import main
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from verl_gsd.extension import declarations, load, overrides
from verl_gsd.run.checks import validate as validation
from verl_gsd.run.compose import parse_line

CPU = torch.device("cpu")


def gpu_check(results, *words, **environment):
    """(exit status, what it printed, {part: content of its file})."""
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"RESULTS": str(results), "VERL_GSD_CPU": "1", "VENV": str(BINARIES.parent)} | environment,
    )
    files = {file.stem: json.loads(file.read_text()) for file in results.iterdir()}
    return done.returncode, done.stdout + done.stderr, files


class TestTheScript:
    def test_shellcheck_finds_nothing(self):
        done = subprocess.run([BINARIES / "shellcheck", ROOT / "scripts/gpu_check.sh"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_a_part_that_fails_says_why_and_the_next_one_runs(self, tmp_path):
        status, printed, files = gpu_check(tmp_path, "tensor", "tensors")
        assert status == 1
        assert files["tensor"]["state"] == "failed" and "no such part" in files["tensor"]["reason"]
        assert files["tensors"]["state"] == "passed", files["tensors"]
        assert set(files["tensors"]["machine"]) >= {"machine", "gpus", "driver", "versions", "commit"}
        assert files["tensors"]["date"] and files["tensors"]["seconds"] > 0
        for part, state in (("tensor", "failed"), ("tensors", "passed")):
            assert sum(line.startswith(f"gpu_check: {part} {state}") for line in printed.splitlines()) == 1

    def test_a_part_that_runs_out_of_time_says_so(self, tmp_path):
        status, printed, files = gpu_check(tmp_path, "tensors", LIMIT="1")
        assert status == 1 and files["tensors"]["state"] == "failed"
        assert "out of time" in files["tensors"]["reason"] and "LIMIT" in files["tensors"]["reason"]
        assert "gpu_check: tensors failed" in printed

    def test_every_part_can_be_imported_on_the_scripts_path(self):
        text = (ROOT / "scripts/gpu_check.sh").read_text()
        (export,) = (line for line in text.splitlines() if line.startswith("export PYTHONPATH="))
        parts = [f"gpu_check.{path.stem}" for path in (ROOT / "benchmarks/gpu_check").glob("[!_]*.py")]
        done = subprocess.run(
            ["bash", "-c", f'root=$1; {export}; "$2" -c "import $3"', "-", ROOT, BINARIES / "python", ", ".join(parts)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr

    def test_an_unknown_option_is_rejected(self, tmp_path):
        status, printed, files = gpu_check(tmp_path, "--engines")
        assert status == 2 and "--engines" in printed and files == {}


class TestTheRecord:
    @pytest.fixture
    def log(self, tmp_path):
        (tmp_path / "log").write_text("".join(f"line {n}\n" for n in range(100)))
        return tmp_path / "log"

    @pytest.mark.parametrize("status", [124, 137])
    def test_results_so_far_outlive_a_part_that_was_killed(self, tmp_path, log, status):
        record.Report(tmp_path / "updates.json").write({"rounds": 2})
        found = record.ended(tmp_path / "updates.json", status, 60, log)
        assert found["state"] == "failed" and "60 s" in found["reason"]
        assert found["results"] == {"rounds": 2}
        assert found["log"][-1] == "line 99" and len(found["log"]) < 100

    def test_a_crash_before_any_result_has_a_record_too(self, tmp_path, log):
        found = record.ended(tmp_path / "updates.json", 139, 60, log)
        assert found["part"] == "updates" and "139" in found["reason"] and found["log"][-1] == "line 99"

    def test_the_reason_that_a_part_gave_stays(self, tmp_path, log):
        report = record.Report(tmp_path / "tensors.json")
        report.write({"wrong": {"a": "b"}})
        report.end("failed", reason="1 of 2 cases is wrong")
        found = record.ended(tmp_path / "tensors.json", 1, 60, log)
        assert found["reason"] == "1 of 2 cases is wrong" and found["results"] == {"wrong": {"a": "b"}}

    def test_a_part_that_ended_well_without_a_verdict_did_not_pass(self, tmp_path, log):
        record.Report(tmp_path / "tensors.json").write({})
        assert record.ended(tmp_path / "tensors.json", 0, 60, log)["state"] == "failed"


@pytest.fixture(scope="module")
def cases():
    return tensors.cases()


class TestTensors:
    def test_every_stage_and_every_loss_has_a_case(self, cases):
        names, known = " ".join(cases), declarations()
        losses = [name for name, of in POLICY_LOSS_REGISTRY.items() if of.__module__.startswith("verl_gsd.")]
        stages = [of.name for of in known if any(overrides(load(of.runtime), hook) for hook in ("centre", "weight"))]
        assert {"gvpo", "dagrpo"} <= set(losses) and {"budget", "dagrpo", "hadw"} <= set(stages)
        assert [name for name in stages if f"estimator, {name}" not in names] == []
        assert [name for name in losses if f"policy loss {name}" not in names] == []

    @pytest.mark.parametrize("name", tensors.cases())
    def test_a_case_is_finite_moves_something_and_repeats_itself(self, cases, name):
        first, second = cases[name](CPU), cases[name](CPU)
        assert tensors.difference(first, second) == 0
        values = [torch.as_tensor(value).double() for value in first.values()]
        assert any(bool(value.isfinite().all() & value.any()) for value in values)
        if "gradient" in first:
            assert first["gradient"].any()

    @pytest.mark.parametrize(
        "found",
        [
            {"a": torch.tensor([1.0, math.nan])},
            {"a": torch.tensor([1.0, math.inf])},
            {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
            {"a": torch.tensor([1.0])},
            {"b": torch.tensor([1.0, 2.0])},
        ],
    )
    def test_what_is_of_another_kind_is_an_error(self, found):
        with pytest.raises(record.CheckFailedError):
            tensors.difference({"a": torch.tensor([1.0, 2.0])}, found)

    def test_a_whole_number_must_be_the_same(self):
        with pytest.raises(record.CheckFailedError, match="a: 1 of 2"):
            tensors.difference({"a": torch.tensor([1, 2])}, {"a": torch.tensor([1, 3])})

    def test_a_difference_is_a_share_of_the_largest_entry(self):
        one = {"a": torch.tensor([1.0, -4.0, math.inf])}
        assert tensors.difference(one, {"a": torch.tensor([1.5, -4.0, math.inf])}) == pytest.approx(0.125)
        assert tensors.difference({"a": torch.zeros(2)}, {"a": torch.full((2,), 0.5)}) == 0.5


class TestUpdates:
    def test_a_ratio_is_to_verls_loss_in_the_same_round(self):
        rounds = [{updates.BASE: base, "gvpo, whole": ours} for base, ours in ((1, 2), (10, 10), (2, 3))]
        found = updates.summarised(rounds, {"gvpo, whole": 3.0, updates.BASE: 2.0})
        assert (found["rounds"], found["seconds"], found["seconds_of_verl"]) == (3, 3, 2)
        assert (found["of_verl"], found["of_verl_range"]) == (1.5, [1, 2])
        assert (found["update_peak_gib"], found["update_peak_gib_of_verl"]) == (3.0, 2.0)

    def test_the_model_has_the_shape_of_qwen(self):
        sizes = updates.GPU
        assert (sizes.layers, sizes.hidden, sizes.intermediate) == (24, 896, 4864)
        assert (sizes.heads, sizes.kv_heads, sizes.vocabulary, sizes.tokens) == (14, 2, 151936, 1024)


class TestTraining:
    @pytest.mark.parametrize(
        ("name", "memory"), [*((name, 23.5) for name in training.RUNS), ("gvpo", 79.1), ("gvpo", 139.8)]
    )
    def test_a_run_on_a_gpu_passes_the_checks(self, compose_fast, tmp_path, name, memory):
        words = [*training.RUNS[name], *training.shared_words(tmp_path / "run", memory)]
        config, line = compose_fast(*words)
        validation.validate(config, line, leave_out=validation.OF_THIS_MACHINE)
        fsdp, rollout = config.actor_rollout_ref.actor.fsdp_config, config.actor_rollout_ref.rollout
        assert not (fsdp.offload_policy or fsdp.param_offload or fsdp.optimizer_offload)
        assert config.ray_kwargs.ray_init.address == "local"
        assert rollout.gpu_memory_utilization * memory == pytest.approx(5, abs=0.1)

    def test_a_run_that_fails_says_why(self, tmp_path):
        run = training.Run("bad", tmp_path / "bad", ["algo=grpo", "task=arithmetic", "hardware=cpu", "data.nokey=1"])
        run.start()
        run.process.wait()
        run.end()
        found = run.found(64)
        assert found["state"] == "failed" and found["steps"] == 0 and found["accuracy"] == []
        assert "data.nokey" in found["reason"] and found["log"]

    def test_a_run_that_did_not_start_or_goes_on_is_neither_passed_nor_failed(self, tmp_path):
        run = training.Run("grpo", tmp_path / "grpo", ["--help"])
        assert run.found(64)["state"] == "not started"
        run.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        run.started = time.monotonic()
        assert run.found(64)["state"] == "running"
        run.end()
        assert run.process.returncode != 0

    def test_accuracies_have_intervals(self, tmp_path):
        run = training.Run("grpo", tmp_path / "grpo", [])
        name = "val-core/arithmetic/acc/mean@1"
        run.metrics = [
            (0, {name: 0.25}),
            (1, {"timing_s/step": 2.0, "actor/perf/max_memory_allocated_gb": 1.5}),
            (1, {name: 0.5}),
        ]
        found = run.found(1024)
        assert [of["step"] for of in found["accuracy"]] == [0, 1]
        first = found["accuracy"][0]
        assert first["low"] < 0.25 < first["high"] and first["n"] == 1024
        assert found["peak_gib"] == {"allocated": 1.5, "reserved": None}
        assert "0.250" in training.described(found) and "0.500" in training.described(found)
        assert not training.has_fallen(found)
        assert training.has_fallen(found | {"accuracy": found["accuracy"][::-1]})


class TestTheDevice:
    def test_a_machine_without_a_gpu_is_told_so(self, tmp_path, monkeypatch, capfd):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        monkeypatch.setenv("VERL_GSD_CPU", "0")
        assert main("advantages", tmp_path / "advantages.json") == 1
        found = json.loads((tmp_path / "advantages.json").read_text())
        assert found["state"] == "failed"
        assert "no GPU" in found["reason"] and "VERL_GSD_CPU=1" in found["reason"]
        assert "Traceback" in capfd.readouterr().err, "which the script puts into the file"

    def test_a_drill_is_on_the_cpu_and_anything_else_needs_a_gpu(self, monkeypatch):
        assert device.device() == CPU and device.hardware(device.gpu_gib(CPU)) == ["hardware=cpu"]
        monkeypatch.delenv("VERL_GSD_CPU")
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="VERL_GSD_CPU=1"):
                device.device()

    @pytest.mark.parametrize("is_packed", [True, False])
    def test_gradients_are_computed_in_float32_and_packed_as_asked(self, compose_fast, is_packed):
        words = [*device.hardware(79.0), *device.in_float32(), *device.packed(is_packed)]
        config, _ = compose_fast("algo=gvpo", "task=arithmetic", *words)
        model, fsdp = config.actor_rollout_ref.model, config.actor_rollout_ref.actor.fsdp_config
        assert model.use_remove_padding is is_packed and model.override_config.attn_implementation == "sdpa"
        assert fsdp.dtype == "float32" and set(fsdp.mixed_precision.values()) == {"fp32"}
        assert parse_line(["algo=gvpo", "task=arithmetic", *words]).choices["hardware"] == "1xh200"
