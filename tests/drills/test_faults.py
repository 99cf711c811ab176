"""Real runs with injected faults: each ends or continues as docs/faults.md says, without a hang or a silent loss.

Two runs are killed ten times each: another kind of process each time, at a random moment. They are resumed after each
kill. At their end every step must be there once, whole, and the memories must be what the records replay to. Further
runs meet full disks, a judge that hangs, rewards that misbehave and a clock that jumps.

VERL_GSD_FAULTS names a file to which a line of JSON per fault is appended: fault, what happened, seconds.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hostile_server import HostileServer, hang, http
from places import SUPPORT
from running import BINARIES, Started, metrics, remembered, replayed, replayed_anchors, verl_gsd

from verl_gsd.checkpoints import step_of
from verl_gsd.records import read_records
from verl_gsd.run.launch import MARK
from verl_gsd.run.messages import read_messages
from verl_gsd.rundir import RunDirectory

#: Seconds for a run to end after a fault. A run that hangs fails the test.
PATIENCE = 180
#: Seconds within which the death of a process must have ended the run: the promise of docs/faults.md.
PROMISED = 30
#: So that a failure can be repeated.
SEED = int(os.environ.get("VERL_GSD_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
LINE = (
    *("task=arithmetic", "hardware=cpu", "data.train_batch_size=8", "trainer.total_training_steps=200"),
    *("trainer.save_freq=1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    "trainer.max_actor_ckpt_to_keep=2",
)
PROMPTS, SIZE = 8, 8


class Run:
    """``verl-gsd train`` as a process whose output is read as it comes."""

    def __init__(self, *words, prefix=(), **environment):
        self.printed, self.steps, self._changed = "", 0, threading.Condition()
        self.process = subprocess.Popen(
            [*prefix, BINARIES / "verl-gsd", "train", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"COLUMNS": "80"} | environment,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.printed += line
                self.steps += bool(re.match(r"step +\d+/", line))
                self._changed.notify_all()
        with self._changed:
            self.steps = None  # it has ended
            self._changed.notify_all()

    def await_steps(self, count):
        """Wait until the run has printed ``count`` steps."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.steps is None or self.steps >= count, 600), self.printed
            assert self.steps is not None, self.printed

    def await_process(self, kind):
        """The id of the first process of the run whose command line has ``kind``, as soon as there is one."""
        for _ in range(6000):
            with suppress(ValueError, psutil.Error):  # no job yet
                for pid, line in self.processes().items():
                    if kind in line:
                        return pid
            assert self.process.poll() is None, self.printed
            threading.Event().wait(0.1)  # between two looks at the process table
        raise AssertionError(f"no {kind}")

    def processes(self):
        """{pid: command line} of every process of the run, the launcher included."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        (job,) = (process for process in family if "verl_gsd.run.job" in process.cmdline())
        mark, found = job.environ()[MARK], {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == mark or process.pid == self.process.pid:
                    for member in (process, *process.children(recursive=True)):
                        with suppress(psutil.Error):
                            found[member.pid] = " ".join(member.cmdline())
        return found

    def end(self, patience=PATIENCE):
        """Wait for the end: (exit code, seconds it took). It must come: nobody else ends the run."""
        start = time.monotonic()
        code = self.process.wait(patience)
        seconds = time.monotonic() - start
        with self._changed:
            assert self._changed.wait_for(lambda: self.steps is None, 60)
        return code, seconds


def log(fault, happened, seconds):
    if path := os.environ.get("VERL_GSD_FAULTS"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"fault": fault, "happened": happened, "seconds": round(seconds, 1)}) + "\n")


_SOCKET = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # what vLLM names its own


def left_behind():
    """Files that runs put into temporary places. The logs of Ray's sessions, which Ray keeps, are not counted."""
    temporary = {path.name for path in Path("/tmp").iterdir()}
    ours = {name for name in temporary if name.startswith("verl_gsd_") or _SOCKET.fullmatch(name)}
    return ours | {path.name for path in Path("/dev/shm").iterdir() if "verl" in path.name}


def resume_line(printed):
    """The one line of the output that resumes the run, as a shell would have its words."""
    (line,) = (line.strip() for line in printed.splitlines() if line.strip().startswith("verl-gsd train resume="))
    return line.split()[2:]


LAUNCHER = "verl-gsd train"
#: What is killed, by its command line, and what the console must say of it.
SERVERS = {
    "VLLM::EngineCore": r"The engine of vLLM server \S+ \(.*\) died\. EngineCore was killed by SIGKILL",
    "ray::vLLMHttpServer": r"The vLLM server \S+ \(.*\) died",
    "ray::AgentLoopWorkerTQ": r"The agent worker \S+ \(.*\) died",
    "ray::RewardLoopWorker": r"The reward worker \S+ \(.*\) died",
    "ray::SimpleStorageUnit": r"The storage unit of verl's queue.* died",
    "ray::WorkerDict": r"The training worker \S+ \(.*\) died",
}
KILLED = {
    "gsd_sync": SERVERS
    | {
        "ray::TransferQueueController": r"The controller of verl's queue.* died",
        "ray::TaskRunnerV1": "A process of the run died without a Python error",
        "verl_gsd.run.job": r"killed by SIGKILL",
        LAUNCHER: "",
    },
    "gsd_colocate_async": SERVERS
    | {
        "ray::GlobalRequestLoadBalancer": r"The load balancer of .* died",
        "ray::TaskRunnerV1": "A process of the run died without a Python error",
        "raylet/raylet": r"\(raylet\) died",
        "gcs/gcs_server": r"\(gcs_server\) died",
    },
}


@pytest.mark.parametrize("mode", KILLED)
def test_a_run_survives_the_death_of_every_kind_of_its_processes(mode, tmp_path):
    chance = random.Random(SEED)
    print(f"VERL_GSD_FAULT_SEED={SEED}")
    run, before = tmp_path / "run", left_behind()
    algorithm = ("algo=hadw", "algorithm.gsd.hadw.preset=hard")
    words = (*algorithm, f"trainer.default_local_dir={run}", f"trainer.v1.trainer_mode={mode}", *LINE)
    kinds = list(KILLED[mode].items())
    chance.shuffle(kinds)
    for kind, expected in kinds:
        started = Run(*words)
        started.await_steps(2)
        threading.Event().wait(chance.uniform(0, 8))  # any moment of a step
        processes = started.processes()
        victim = next(pid for pid, line in processes.items() if kind in line)
        os.kill(victim, signal.SIGKILL)
        code, seconds = started.end()
        words = (f"resume={run}",)
        if kind == LAUNCHER:  # nobody is left to say anything
            _, alive = psutil.wait_procs([psutil.Process(pid) for pid in processes if psutil.pid_exists(pid)], PATIENCE)
            assert not alive
            log(f"kill -9 {kind}, {mode}", "ends", seconds)
            continue
        assert code == 1, started.printed
        assert re.search(expected, started.printed), (kind, started.printed)
        assert seconds <= PROMISED, kind
        log(f"kill -9 {kind}, {mode}", started.printed.partition("error ")[2].splitlines()[0], seconds)
        assert resume_line(started.printed) == list(words)
    last = RunDirectory(run).latest_checkpoint() + 2
    done = verl_gsd("train", f"resume={run}", f"trainer.total_training_steps={last}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_behind() <= before
    whole(run, last, mode)


@pytest.mark.minutes(3)
@pytest.mark.parametrize("kind", ["VLLM::EngineCore", "ray::WorkerDict"])
def test_a_death_while_the_run_starts_is_explained(kind, tmp_path):
    started = Run("algo=grpo", *LINE, f"trainer.default_local_dir={tmp_path / 'run'}")
    victim = started.await_process(kind)
    os.kill(victim, signal.SIGKILL)
    code, seconds = started.end()
    assert code == 1 and "no checkpoint was saved yet" in started.printed, started.printed
    assert re.search("died|killed", started.printed.partition("error ")[2]), started.printed
    log(f"kill -9 {kind} during the start", started.printed.partition("error ")[2].splitlines()[0], seconds)


def main_ppo(run, *words):
    """verl's own command as a process."""
    line = ("+algo=hadw", "++algorithm.gsd.hadw.preset=hard", "trainer.v1.trainer_mode=gsd_sync", *LINE)
    groups = ("task=", "hardware=")
    return Started(
        [
            *(sys.executable, "-m", "verl.trainer.main_ppo", "trainer.logger=[console]"),
            *(f"+{word}" if word.startswith(groups) else word for word in (*line, *words)),
            *(f"trainer.default_local_dir={run}", f"hydra.run.dir={run.parent}/hydra"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=run.parent,
        env=os.environ | {"VERL_GSD_CPU": "1"},
    )


@pytest.mark.minutes(5)
def test_under_verls_own_command_a_death_ends_the_run_and_the_same_command_resumes_it(tmp_path):
    run = tmp_path / "run"
    with main_ppo(run) as training:
        printed = ""
        for line in training.stdout:
            printed += line
            if "step:2 -" in line:
                break
        family = psutil.Process(training.pid).children(recursive=True)
        (engine,) = (process for process in family if "VLLM::EngineCore" in process.cmdline())
        engine.kill()
        start = time.monotonic()
        printed += training.stdout.read()
        code, seconds = training.wait(PATIENCE), time.monotonic() - start
    assert code != 0 and re.search(SERVERS["VLLM::EngineCore"], printed), printed[-8000:]
    _, alive = psutil.wait_procs(family, PATIENCE)
    assert not alive and seconds <= PROMISED
    log("kill -9 VLLM::EngineCore, main_ppo", "The engine died", seconds)
    last = RunDirectory(run).latest_checkpoint() + 2
    with main_ppo(run, f"trainer.total_training_steps={last}") as resumed:
        printed = resumed.stdout.read()
    assert resumed.returncode == 0, printed[-8000:]
    whole(run, last, "gsd_sync")


def whole(run, last, mode):
    """Every step is there once, with all its responses; memories and metrics are those of the steps that count."""
    records = read_records(run)
    rows = records.to_pylist()
    assert sorted({row["step"] for row in rows}) == list(range(1, last + 1))
    for step in range(1, last + 1):
        trained = [row for row in rows if row["step"] == step and row["fate"] == "trained"]
        assert [row["size"] for row in trained] == [SIZE] * PROMPTS, f"step {step} was trained on what was left"
    kept = [folder.parent for folder in run.glob("global_step_*/gsd")]
    assert run / f"global_step_{last}" in kept
    for checkpoint in kept:
        assert remembered(checkpoint) == replayed(records, step_of(checkpoint))
    if mode == "gsd_sync":  # where prompts of one source alone meet the anchor of the step before
        replayed_anchors(run, records, last, preset="hard")
    directory = RunDirectory(run)
    attempts = [attempt for attempt in directory.attempts() if directory.metrics(attempt).is_file()]
    known = set().union(*(metrics(run, attempt) for attempt in attempts))
    assert set(range(1, last + 1)) <= known, "a step that was checkpointed has no metrics"


# Full disks


class SmallDisk:
    """A file system of its own, seen only by the processes that are started with ``prefix``.

    Attributes:
        path: where those processes find it.
    """

    def __init__(self, path, size):
        self.path = path
        path.mkdir()
        mount = f"mount -t tmpfs -o size={size} none '{path}' && echo mounted && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", mount], stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout.readline() == "mounted\n"
        self.prefix = ("nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials")

    def seen(self, path):
        """``path`` on the disk, as this process reaches it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def fill(self, spare):
        """Leave ``spare`` bytes."""
        free = os.statvfs(self.seen(self.path)).f_bavail * os.statvfs(self.seen(self.path)).f_bsize
        file = os.open(self.seen(self.path / "filler"), os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(file, 0, max(free - spare, 1))
        os.close(file)

    def free(self):
        self.seen(self.path / "filler").unlink()

    def end(self):
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def disk(tmp_path, request):
    made = SmallDisk(tmp_path / "disk", getattr(request, "param", "2g"))
    yield made
    made.end()


@pytest.mark.parametrize(("spare", "saves"), [(2 << 20, 1), (0, 100)], ids=["a checkpoint", "records"])
def test_a_disk_that_is_full_ends_a_run_and_spoils_nothing(disk, spare, saves):
    run = disk.path / "run"
    all_kept = "trainer.max_actor_ckpt_to_keep=null"  # removing an old checkpoint would make room for the next
    words = ("algo=hadw", "algorithm.gsd.hadw.preset=hard", f"trainer.default_local_dir={run}", *LINE, all_kept)
    started = Run(*words, prefix=disk.prefix)
    started.await_steps(2)
    if saves > 1:  # from here on without checkpoints, so that something else meets the full disk
        started.process.send_signal(signal.SIGTERM)
        started.end()
        started = Run(f"resume={run}", f"trainer.save_freq={saves}", prefix=disk.prefix)
        started.await_steps(2)
    disk.fill(spare)
    code, seconds = started.end()
    assert code == 1 and re.search("disk.*full|full.*disk", started.printed), started.printed
    log(f"disk full, {spare} bytes left", started.printed.partition("error ")[2].splitlines()[0], seconds)
    disk.free()
    assert resume_line(started.printed) == [f"resume={run}"]
    last = RunDirectory(disk.seen(run)).latest_checkpoint() + 2
    steps = f"trainer.total_training_steps={last}"
    resumed = Run(f"resume={run}", steps, "trainer.save_freq=1", prefix=disk.prefix)
    assert resumed.end(600)[0] == 0, resumed.printed
    whole(disk.seen(run), last, "gsd_sync")


@pytest.mark.parametrize("disk", ["50m"], indirect=True)
def test_a_full_disk_under_the_judges_cache_costs_calls_and_nothing_else(disk, tmp_path):
    steps = 20  # so that some are left when the disk is full
    cache = "algorithm.gsd.dagrpo.judge.cache"
    words = ("algo=dagrpo_mask", "algorithm.gsd.dagrpo.judge.scorer=stub", f"{cache}={disk.path / 'scores'}", *LINE)
    run = tmp_path / "run"
    started = Run(
        *words, f"trainer.default_local_dir={run}", f"trainer.total_training_steps={steps}", prefix=disk.prefix
    )
    started.await_steps(2)
    disk.fill(0)
    code, _ = started.end()
    assert code == 0, started.printed
    assert "scores" in RunDirectory(run).log(1).read_text() and "full" in RunDirectory(run).log(1).read_text()
    pairs = [row["dagrpo_pairs_kept"] for row in read_records(run).to_pylist() if row["step"] == steps]
    assert any(pairs), "nobody judged"
    log("disk full under the judge's cache", "continues; every score is asked for again", 0)


# A judge that hangs


@pytest.mark.minutes(4)
def test_a_judge_that_hangs_leaves_groups_unjudged_and_is_named(tmp_path):
    async def answer(writer):
        """The list of models at once, and nothing that is asked."""
        if server.requests[-1] is None:
            writer.write(http(404))
        else:
            await hang(writer)

    with HostileServer(answer) as server:
        judge = "algorithm.gsd.dagrpo.judge"
        words = (
            f"{judge}.base_url={server.url}",
            f"{judge}.model=judge",
            f"{judge}.timeout_s=2",
            f"{judge}.budget_s=5",
        )
        run = tmp_path / "run"
        done = verl_gsd(
            *("train", "algo=dagrpo_mask", *words, *LINE, f"trainer.default_local_dir={run}"),
            "trainer.total_training_steps=3",
        )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in read_records(run).to_pylist() if row["judge_failed"] is not None]
    assert rows and all(row["judge_failed"] == row["size"] for row in rows if row["kind"] == "mixed")
    log("judge hangs", "continues; groups are unjudged", 0)


# Rewards that misbehave


REWARDS = SUPPORT / "failing_rewards.py"


def reward(name):
    key = "reward.custom_reward_function"
    return (f"{key}.path={REWARDS}", f"{key}.name=compute_score_{name}")


@pytest.mark.minutes(5)
@pytest.mark.parametrize("mode", ["gsd_sync", "gsd_colocate_async"])
@pytest.mark.parametrize("name", ["in_every_way", "hangs"])
def test_responses_whose_reward_fails_leave_their_groups_and_are_counted(name, mode, tmp_path):
    run = tmp_path / name
    limits = ("algorithm.gsd.limits.failed_rewards=1", "algorithm.gsd.limits.reward_seconds=5")
    words = ("algo=grpo", *LINE, *reward(name), *limits, f"trainer.v1.trainer_mode={mode}")
    done = verl_gsd("train", *words, f"trainer.default_local_dir={run}", "trainer.total_training_steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in read_records(run).to_pylist() if row["fate"] in ("trained", "failed")]
    lost = sum(row["failed_rewards"] for row in rows)
    assert lost and all(row["size"] + row["failed_rewards"] == SIZE for row in rows)
    told = [metrics(run, 1)[step] for step in (1, 2, 3)]
    # A failed reward counts when it is read. Groups that still wait when training ends, as an asynchronous mode leaves
    # them, are in no record.
    waiting = told[-1]["group/count/waiting"]
    assert waiting == 0 or mode != "gsd_sync"
    assert 0 <= sum(step["reward/failed"] for step in told) - lost <= SIZE * waiting
    warnings = [message.text for message in read_messages(RunDirectory(run).messages(1)) if message.kind == "warning"]
    assert any(f"compute_score_{name}" in text for text in warnings)
    assert f"compute_score_{name}" in done.stdout + done.stderr
    log(f"reward {name}, {mode}", f"continues; {lost} responses left their groups", 0)


@pytest.mark.minutes(3)
def test_a_run_stops_with_the_traceback_when_too_many_rewards_fail(tmp_path):
    started = Run("algo=grpo", *LINE, *reward("raises"), f"trainer.default_local_dir={tmp_path / 'run'}")
    code, _ = started.end(600)
    assert code == 1 and not list((tmp_path / "run").glob("global_step_*"))
    for expected in (
        "compute_score_raises",
        "KeyError",
        "algorithm.gsd.limits.failed_rewards",
        "data_source=arithmetic",
    ):
        assert expected in started.printed, started.printed
    log("reward raises always", "ends before the first step", 0)


@pytest.mark.minutes(4)
def test_a_slow_reward_is_named_as_what_a_step_waits_for(tmp_path):
    words = ("algo=grpo", *LINE, *reward("is_slow"), f"trainer.default_local_dir={tmp_path / 'run'}")
    done = verl_gsd("train", *words, "trainer.total_training_steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compute_score_is_slow" in done.stderr and "reward.num_workers" in done.stderr
    log("reward takes 2 s", "continues; the console names the function", 0)


# Engines that are stuck, clocks that jump


@pytest.mark.minutes(4)
def test_an_engine_that_is_stuck_ends_the_run(tmp_path):
    run = tmp_path / "run"
    limits = ("algorithm.gsd.limits.quiet_seconds=40", "algorithm.gsd.limits.reward_seconds=20")
    started = Run("algo=grpo", *LINE, *limits, f"trainer.default_local_dir={run}")
    started.await_steps(2)
    engine = next(pid for pid, line in started.processes().items() if "VLLM::EngineCore" in line)
    os.kill(engine, signal.SIGSTOP)
    code, seconds = started.end()
    assert code == 1 and re.search(r"made no progress for \d+ s", started.printed), started.printed
    assert not psutil.pid_exists(engine)
    assert resume_line(started.printed) == [f"resume={run}"]
    log("engine stopped (SIGSTOP), limit 40 s", started.printed.partition("error ")[2].splitlines()[0], seconds)


def test_a_clock_that_jumps_changes_nothing(tmp_path):
    library, offset, run = tmp_path / "clock.so", tmp_path / "offset", tmp_path / "run"
    source = SUPPORT / "clock_that_jumps.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    clock = {"LD_PRELOAD": str(library), "VERL_GSD_CLOCK_OFFSET": str(offset)}
    words = ("algo=hadw", "algorithm.gsd.hadw.preset=hard", *LINE, f"trainer.default_local_dir={run}")
    started = Run(*words, "trainer.total_training_steps=8", **clock)
    for steps, seconds in ((2, 86_400), (4, -86_400), (6, 0)):  # a day ahead, a day behind, right
        started.await_steps(steps)
        offset.write_text(str(seconds))
    code, _ = started.end()
    assert code == 0, started.printed
    assert {message.kind for message in read_messages(RunDirectory(run).messages(1))} == {"steps"}
    whole(run, 8, "gsd_sync")
    log("clock jumps by a day, twice", "continues", 0)
