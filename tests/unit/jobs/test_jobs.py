"""Jobs without a cluster: what would be sent, and what is said where that fails."""

import importlib.metadata
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.jobs import cluster, package
from verl_gsd.jobs.submission import SEED_KEYS, new_runs, resumed_run
from verl_gsd.trainer.config import ConfigError, parse_line

NOW = datetime(2026, 11, 25, 10, 30)
LINE = ["algo=gsd", "task=arithmetic", "hardware=cpu"]


def test_a_job_runs_train_on_the_cluster_in_a_folder_of_its_own():
    (one,) = new_runs(LINE, "/shared/runs/", NOW)
    assert one.identifier == "arithmetic-gsd-20261125-103000"
    assert one.run == f"/shared/runs/{one.identifier}"
    (recipe,) = new_runs(["recipe=gvpo/qwen2.5_math_7b"], "~/runs", NOW)
    assert recipe.run == "~/runs/gvpo-qwen2.5_math_7b-20261125-103000"
    assert shlex.split(one.entrypoint) == [
        *("python", "-m", "verl_gsd.cli", "train", *LINE),
        f"trainer.default_local_dir={one.run}",
    ]


def test_a_sweep_is_every_combination_once_and_each_sets_every_seed():
    jobs = new_runs(LINE, "/runs", NOW, seeds="1,2,3", sweeps=["algorithm.gsd.alpha=0,0.5,1"])
    assert len({job.identifier for job in jobs}) == len({job.run for job in jobs}) == 9
    seen = set()
    for job in jobs:
        values = dict(word.split("=", 1) for word in job.words)
        (seed,) = {values[key] for key in SEED_KEYS}
        seen.add((values["algorithm.gsd.alpha"], seed))
        assert f"-alpha_{values['algorithm.gsd.alpha']}-seed_{seed}" in job.identifier
    assert seen == {(alpha, seed) for alpha in ("0", "0.5", "1") for seed in "123"}


def test_values_that_an_identifier_cannot_tell_apart_are_numbered():
    jobs = new_runs(LINE, "/r", NOW, sweeps=["trainer.project_name=a/b,a-b"])
    assert jobs[0].identifier.endswith("project_name_a-b") and jobs[1].identifier.endswith("project_name_a-b-2")
    assert jobs[0].run != jobs[1].run


def test_a_group_can_be_swept_and_so_can_a_range():
    assert [job.words[-2] for job in new_runs(["task=arithmetic"], "/r", NOW, sweeps=["algo=grpo,gvpo"])] == [
        "algo=grpo",
        "algo=gvpo",
    ]
    assert len(new_runs(LINE, "/r", NOW, sweeps=["data.seed=range(0,4)"])) == 4
    assert len(new_runs(LINE, "/r", NOW, sweeps=["algorithm.gsd.alpha=0,1", "trainer.total_epochs=1,2,3"])) == 6


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ([], {"runs": "runs"}, "--runs runs: a folder on the cluster"),
        (["trainer.default_local_dir=runs/a"], {}, "trainer.default_local_dir=runs/a: a folder on the cluster"),
        (["trainer.default_local_dir=/a"], {"seeds": "1,2"}, "every job of a sweep needs its own folder"),
        (["data.seed=3"], {"seeds": "1,2"}, "data.seed=3: a sweep sets data.seed"),
        (["algorithm.gsd.alpha=1"], {"sweeps": ["algorithm.gsd.alpha=0,1"]}, "a sweep sets algorithm.gsd.alpha"),
        ([], {"runs": "/a$b"}, "--runs /a$b: '$' means something to Hydra"),
        ([], {"seeds": "1,x"}, "write whole numbers"),
        ([], {"seeds": "1,"}, "write whole numbers"),
        ([], {"seeds": "1,2", "sweeps": ["data.seed=1,2"]}, "data.seed: swept twice"),
        ([], {"seeds": "1,1"}, "a value is there twice"),
        ([], {"sweeps": ["alpha"]}, "write KEY=VALUE,VALUE"),
        ([], {"sweeps": ["~algorithm.gsd.alpha"]}, "write KEY=VALUE,VALUE"),
    ],
)
def test_a_contradiction_names_the_key_and_says_what_to_write(words, options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        new_runs([*LINE, *words], **{"runs": "/runs", "now": NOW, **options})


FOLDERS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters='"\\$'), min_size=1
)


@given(FOLDERS.filter(lambda name: name.strip("/")))
def test_any_folder_survives_the_shell_and_hydras_grammar(name):
    """The entrypoint passes a shell and then Hydra; what comes out is the folder that was written."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (one,) = new_runs(LINE, f"/runs/{name}", NOW)
    word = shlex.split(one.entrypoint)[-1]
    assert OverridesParser.create().parse_override(word).value() == one.run


def test_a_resume_names_the_run_and_leaves_its_words_to_the_cluster():
    job = resumed_run("/runs/my run", ["trainer.total_training_steps=9"], NOW)
    words = shlex.split(job.entrypoint)[4:]
    assert words == ["trainer.total_training_steps=9", "resume=/runs/my run"]
    assert str(parse_line(words).resume) == job.run == "/runs/my run"
    assert re.fullmatch(r"[\w.+-]+", job.identifier)
    with pytest.raises(ConfigError, match="--resume goes on where the run is"):
        resumed_run("/runs/a", ["trainer.default_local_dir=/b"], NOW)
    with pytest.raises(ConfigError, match="absolute path"):
        resumed_run("runs/a", [], NOW)


def submit(*words, **environment):
    return CliRunner().invoke(app, ["submit", *words], env=environment)


def test_a_dry_run_prints_what_would_be_sent_and_no_secret(monkeypatch):
    token = "0123456789abcdef" * 4
    done = submit(
        *(*LINE, "--seeds", "1,2", "--dry-run", "--runs", "~/runs"),
        **{"RAY_AUTH_TOKEN": token, "WANDB_API_KEY": token, "HF_TOKEN": token},
    )
    assert done.exit_code == 0, done.output
    jobs = list(yaml.safe_load_all(done.stdout))
    assert [set(job) for job in jobs] == [{"submission_id", "run", "entrypoint", "runtime_env", "metadata"}] * 2
    version = importlib.metadata.version("verl-gsd")
    assert jobs[0]["runtime_env"] == {"working_dir": f"verl_gsd-{version}, unpacked"}
    assert 'trainer.default_local_dir="~/runs/' in jobs[0]["entrypoint"]
    assert token not in done.output
    assert "sigma" in done.stderr, "the audit, as train has it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm.gsd.alpa=1"], "no such key. Did you mean algorithm.gsd.alpha"),
        (["algo=nope"], "algo=nope: no such choice"),
        (["algorithm.adv_estimator=gae2"], "adv_estimator=gae2: no such name"),
        (["data.train_files=relative.parquet"], "data.train_files=relative.parquet: a file on the cluster"),
        (["data.seed=1,2"], "several values. Write one; verl-gsd submit --sweep"),
        (["+trainer.api_key=abc"], "looks like a secret"),
        (["resume=/runs/a"], "write --resume /runs/a"),
        (["--resume", "/runs/a", "+trainer.api_key=abc"], "looks like a secret"),
        (["--resume", "/runs/a", "--seeds", "1,2"], "Leave --seeds and --sweep out"),
        ([], "which cluster? Write --address http://HEAD:8265"),
        (["--address", "head:8265"], "write that of the job server"),
    ],
)
def test_a_mistake_is_refused_here_before_anything_is_sent(words, said, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    line = [] if "--resume" in words else LINE
    done = submit(*line, *words)
    assert done.exit_code == 2 and said in re.sub(r"\s+", " ", done.output), done.output


def test_files_and_checkpoints_of_the_cluster_are_not_looked_for_here():
    checkpoint = ("trainer.resume_mode=resume_path", "trainer.resume_from_path=/only/there/run/global_step_40")
    done = submit(*LINE, "data.train_files=/only/on/the/cluster.parquet", *checkpoint, "--dry-run")
    assert done.exit_code == 0, done.output


def test_nobody_at_the_address_is_said_so(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would prefer them to what it is told
        monkeypatch.setenv(name, "http://another.invalid:1")
    done = CliRunner().invoke(app, ["status", "--address", "http://127.0.0.1:9"])
    assert done.exit_code == 2 and "http://127.0.0.1:9: no job server answers" in re.sub(r"\s+", " ", done.output)


class ServerStub(BaseHTTPRequestHandler):
    """A job server that is what it says it is, and fails at all else."""

    def do_GET(self):
        version = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        self.send_response(200 if self.path == "/api/version" else 500)
        self.end_headers()
        self.wfile.write(version.encode() if self.path == "/api/version" else b"the disk is full")

    do_POST = do_PUT = do_GET  # noqa: N815  # names that http.server looks for

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("words", [["status"], ["status", "a"], ["logs", "a"], ["stop", "a"], ["submit", *LINE]])
def test_a_server_that_fails_is_named_with_what_it_says(words, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), ServerStub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = CliRunner().invoke(app, [*words, "--address", address])
        server.shutdown()
    said = re.sub(r"\s+", " ", done.output)
    assert done.exit_code == 2 and f"{address}: Request failed with status code 500" in said, done.output
    assert "no such job" not in said


def test_a_server_that_accepts_and_says_nothing_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = CliRunner().invoke(app, ["status", "--address", f"http://127.0.0.1:{server.getsockname()[1]}"])
    assert done.exit_code == 2 and "no job server answers there" in re.sub(r"\s+", " ", done.output)


@pytest.fixture(scope="module")
def shipped():
    with package.unpacked_wheel() as folder:
        yield folder


def test_what_is_shipped_is_the_wheel_and_verl_can_find_its_plugin_in_it(shipped):
    names = {path.name for path in shipped.iterdir()}
    assert names == {"verl_gsd", f"verl_gsd-{importlib.metadata.version('verl-gsd')}.dist-info"}
    assert (shipped / "verl_gsd/config/algo/gsd.yaml").is_file() and (shipped / "verl_gsd/recipes").is_dir()
    (distribution,) = importlib.metadata.distributions(path=[str(shipped)])
    assert [point.value for point in distribution.entry_points if point.group == "verl.plugins"] == [
        "verl_gsd.trainer.plugin"
    ]
    assert not list(shipped.rglob("__pycache__"))


def test_in_front_of_an_installed_copy_the_shipped_one_is_imported_and_found(shipped, tmp_path):
    """As on a node whose image has another version of ours: Ray puts the job's folder first."""
    code = (
        "import importlib.metadata as m, verl_gsd, json;"
        "print(json.dumps([verl_gsd.__file__, *(str(p.dist.locate_file('')) "
        "for p in m.entry_points(group='verl.plugins') if p.name == 'verl_gsd')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(shipped)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [str(shipped / "verl_gsd/__init__.py"), str(shipped)], done.stderr


def test_an_installation_ships_the_same_files_as_a_checkout(shipped, tmp_path):
    """In a process that runs from an unpacked copy, which is what an installation is."""
    code = (
        "import sys, shutil; from verl_gsd.jobs.package import unpacked_wheel\n"
        "with unpacked_wheel() as folder: shutil.copytree(folder, sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "copy")],
        env={"PYTHONPATH": str(shipped)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (
            shipped,
            tmp_path / "copy",
        )
    ]
    assert listed[1] == {name: content for name, content in listed[0].items() if "__pycache__" not in name.parts}


def test_a_wheel_that_does_not_build_says_why(tmp_path):
    with pytest.raises(package.PackagingError, match=r"could not be built:\n(.|\n)+"):
        package._built(tmp_path, tmp_path / "wheel")
    assert not list(tmp_path.rglob("*.whl"))


def test_a_job_joins_its_cluster_whatever_the_config_says_of_one_of_its_own(compose_fast, monkeypatch):
    from verl_gsd.trainer import cluster

    config, _ = compose_fast(*LINE)
    assert config.ray_kwargs.ray_init.address == "local" and config.ray_kwargs.ray_init.num_gpus == 1
    cluster.join(config)
    init = config.ray_kwargs.ray_init
    assert (init.address, init.num_gpus, init.num_cpus) == ("auto", None, None)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert not cluster.is_job()


def test_a_training_process_whose_launcher_is_killed_ends():
    """It has left the launcher's session, so that nothing else would end it, on a cluster least of all."""
    child = (
        "import os; from verl_gsd.trainer.job import end_with; end_with(os.getppid()); "
        "print('ready', flush=True); input()"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    with subprocess.Popen(
        [sys.executable, "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "", "the end of the file: nobody holds the other end any more"


def test_a_training_process_whose_launcher_ended_before_it_looked_does_not_begin():
    code = "from verl_gsd.trainer.job import main; main('no such file', 1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "the launcher has ended"


def test_ray_names_what_we_rely_on_as_we_do():
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    from verl_gsd.trainer import cluster

    assert cluster._JOB == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert set(cluster._LOCK) == {HEAD_NODE_RESOURCE_NAME}
