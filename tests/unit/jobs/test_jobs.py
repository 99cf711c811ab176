"""Jobs without a cluster: what would be submitted, and the error messages."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from datetime import datetime

import pytest
import recipe_configs
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from typer.testing import CliRunner

import verl_gsd
from verl_gsd.cli import jobs as job_commands
from verl_gsd.cli.main import app
from verl_gsd.cli.submit import _relative_keys
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.jobs import package
from verl_gsd.jobs.submission import SEED_KEYS, new_runs, resumed_run
from verl_gsd.run.compose import parse_line
from verl_gsd.run.remote_paths import FILE_KEYS, MODEL_KEYS

NOW = datetime(2026, 11, 25, 10, 30)
LINE = ["algo=gsd", "task=arithmetic", "hardware=cpu"]


def test_job_runs_train_on_the_cluster_in_its_own_folder():
    (one,) = new_runs(LINE, "/shared/runs/", NOW)
    assert one.identifier == "arithmetic-gsd-20261125-103000"
    assert one.run == f"/shared/runs/{one.identifier}"
    (recipe,) = new_runs(["recipe=gvpo/qwen2.5_math_7b"], "~/runs", NOW)
    assert recipe.run == "~/runs/gvpo-qwen2.5_math_7b-20261125-103000"
    assert shlex.split(one.entrypoint) == [
        *("python", "-m", "verl_gsd.cli", "train", *LINE),
        f"trainer.default_local_dir={one.run}",
    ]


def test_sweep_has_every_combination_once_and_sets_every_seed_key():
    jobs = new_runs(LINE, "/runs", NOW, seeds="1,2,3", sweeps=["algorithm.gsd.alpha=0,0.5,1"])
    assert len({job.identifier for job in jobs}) == len({job.run for job in jobs}) == 9
    seen = set()
    for job in jobs:
        values = dict(word.split("=", 1) for word in job.words)
        (seed,) = {values[key] for key in SEED_KEYS}
        seen.add((values["algorithm.gsd.alpha"], seed))
        assert f"-alpha_{values['algorithm.gsd.alpha']}-seed_{seed}" in job.identifier
    assert seen == {(alpha, seed) for alpha in ("0", "0.5", "1") for seed in "123"}


def test_values_with_the_same_safe_name_are_numbered():
    jobs = new_runs(LINE, "/r", NOW, sweeps=["trainer.project_name=a/b,a-b"])
    assert jobs[0].identifier.endswith("project_name_a-b") and jobs[1].identifier.endswith("project_name_a-b-2")
    assert jobs[0].run != jobs[1].run


def test_config_groups_and_ranges_can_be_swept():
    assert [job.words[-2] for job in new_runs(["task=arithmetic"], "/r", NOW, sweeps=["algo=grpo,gvpo"])] == [
        "algo=grpo",
        "algo=gvpo",
    ]
    assert len(new_runs(LINE, "/r", NOW, sweeps=["data.seed=range(0,4)"])) == 4
    assert len(new_runs(LINE, "/r", NOW, sweeps=["algorithm.gsd.alpha=0,1", "trainer.total_epochs=1,2,3"])) == 6


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ([], {"runs": "runs"}, "--runs runs: "),
        (["trainer.default_local_dir=runs/a"], {}, "trainer.default_local_dir=runs/a: "),
        (["trainer.default_local_dir=/a"], {"seeds": "1,2"}, "trainer.default_local_dir=/a: .*--runs FOLDER"),
        (["data.seed=3"], {"seeds": "1,2"}, "data.seed=3: .*data.seed"),
        (
            ["algorithm.gsd.alpha=1"],
            {"sweeps": ["algorithm.gsd.alpha=0,1"]},
            "algorithm.gsd.alpha=1: .*algorithm.gsd.alpha",
        ),
        ([], {"runs": "/a$b"}, r"--runs /a\$b: '\$'"),
        ([], {"seeds": "1,x"}, "--seeds 1,x: "),
        ([], {"seeds": "1,"}, "--seeds 1,: "),
        ([], {"seeds": "1,2", "sweeps": ["data.seed=1,2"]}, "data.seed: .*--sweep"),
        ([], {"seeds": "1,1"}, "--seeds, --sweep: "),
        ([], {"sweeps": ["alpha"]}, "--sweep alpha: "),
        ([], {"sweeps": ["~algorithm.gsd.alpha"]}, "--sweep ~algorithm.gsd.alpha: "),
    ],
)
def test_contradictions_name_the_key_and_the_fix(words, options, said):
    with pytest.raises(ConfigError, match=said):
        new_runs([*LINE, *words], **{"runs": "/runs", "now": NOW, **options})


FOLDERS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters='"\\$'), min_size=1
)


@given(FOLDERS.filter(lambda name: name.strip("/")))
def test_any_folder_survives_the_shell_and_hydras_grammar(name):
    """The entrypoint is parsed by a shell and then by Hydra, which must yield the same folder."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (one,) = new_runs(LINE, f"/runs/{name}", NOW)
    word = shlex.split(one.entrypoint)[-1]
    assert OverridesParser.create().parse_override(word).value() == one.run


def test_resume_names_the_run_and_the_cluster_reads_its_overrides():
    job = resumed_run("/runs/my run", ["trainer.total_training_steps=9"], NOW)
    words = shlex.split(job.entrypoint)[4:]
    assert words == ["trainer.total_training_steps=9", "resume=/runs/my run"]
    assert str(parse_line(words).resume) == job.run == "/runs/my run"
    assert re.fullmatch(r"[\w.+-]+", job.identifier)
    with pytest.raises(ConfigError, match=r"trainer.default_local_dir=/b: .*--resume"):
        resumed_run("/runs/a", ["trainer.default_local_dir=/b"], NOW)
    with pytest.raises(ConfigError, match="runs/a: "):
        resumed_run("runs/a", [], NOW)


def submit(*words):
    return CliRunner().invoke(app, ["submit", *words], env={"COLUMNS": "300"})


@pytest.mark.usefixtures("configs_parsed_once")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm.gsd.alpa=1"], r"algorithm\.gsd\.alpa\b.*algorithm\.gsd\.alpha\b"),
        (["algo=nope"], "algo=nope: .*grpo"),
        (["data.seed=1,2"], "data.seed=1,2.*verl-gsd submit --sweep"),
        (["+trainer.api_key=abc"], "trainer.api_key.*secret"),
        (["resume=/runs/a"], "resume=/runs/a: .*--resume /runs/a"),
        (["--resume", "/runs/a", "+trainer.api_key=abc"], "trainer.api_key.*secret"),
        (["--resume", "/runs/a", "data=mine"], "data=mine: this folder on the cluster is relative"),
        (["--resume", "/runs/a", "data.val_files=[/a.parquet,b.parquet]"], "data.val_files=b.parquet: .* is relative"),
        (["--sweep", "data.train_files=/a.parquet,b.parquet"], "data.train_files=b.parquet: .* is relative"),
        (["--sweep", "data=/a,b"], "data=b: this folder on the cluster is relative"),
        (["actor_rollout_ref.model.path=../model"], "model.path=../model: this folder on the cluster is relative"),
        (["reward.custom_reward_function.path=mine.py"], "reward.custom_reward_function.path=mine.py: .* is relative"),
        (["--resume", "/runs/a", "--seeds", "1,2"], "--resume: .*--seeds.*--sweep"),
    ],
)
def test_mistakes_are_rejected_before_verl_and_the_cluster_are_asked(words, said):
    line = [] if "--resume" in words else LINE
    done = submit(*line, *words)
    assert done.exit_code == 2 and re.search(said, re.sub(r"\s+", " ", done.output)), done.output


def test_progress_bars_and_lines_of_windows_are_lines_of_a_log(capsys):
    """Also if a piece of the log ends between the two characters that end a line."""
    log = job_commands._LogPrinter()
    for piece in ("one\r\ntwo\r", "\n 0%|  |\r50%|# |\r99%|##|\nthree\x1b[2J\n", "four\r"):
        log.print(piece)
    log.print_end()
    assert capsys.readouterr().out == "one\ntwo\n 0%|  |\n50%|# |\n99%|##|\nthree\\x1b[2J\nfour\n"


@pytest.mark.parametrize("key", FILE_KEYS)
def test_each_relative_file_of_a_line_is_rejected(key):
    for value, count in (("mine.py", 1), ("/mine.py", 0), ("~/mine.py", 0), ("pkg://mine.rewards", 0), (None, 0)):
        config = OmegaConf.create()
        OmegaConf.update(config, key, value, force_add=True)
        problems = list(_relative_keys(config))
        assert len(problems) == count and all(problem.startswith(f"{key}=mine.py: ") for problem in problems)


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_each_relative_model_of_a_line_is_rejected(key):
    for value, count in (("../model", 1), ("a/b", 0), ("/models/a", 0), (None, 0)):
        config = OmegaConf.create()
        OmegaConf.update(config, key, value, force_add=True)
        problems = list(_relative_keys(config))
        assert len(problems) == count and all(problem.startswith(f"{key}=../model: ") for problem in problems)


def test_the_path_keys_are_all_those_of_verls_config():
    """Those that a line can set to a file of the user. Others have an absolute default, or verl-gsd sets them."""
    others = {"actor_rollout_ref.rollout.prometheus.file", "trainer.default_hdfs_dir", "trainer.default_local_dir"}
    keys = {key for key, _ in dotted_leaves(recipe_configs.part(of_verl=True))}
    paths = {key for key in keys if re.search(r"(path|file|files|_dir)$", key)}
    paths = {key for key in paths if "profiler" not in key and not key.startswith("skip.")}
    assert paths - others == set(FILE_KEYS) | set(MODEL_KEYS)


@pytest.mark.usefixtures("configs_parsed_once")
def test_own_data_of_the_cluster_is_not_needed_here(monkeypatch):
    monkeypatch.setattr("verl_gsd.run.checks.with_verl.validate_with_verl", lambda *_, **__: [])
    line = ["algo=grpo", "data=~/data/a b", "model=Qwen/Qwen3-8B-Base", "hardware=8xa100_80g"]
    done = submit(*line, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "sizes that fit" in done.stderr and "chosen where the run starts" in done.stderr
    (job,) = new_runs(line, "/runs", NOW)
    assert job.identifier.startswith("a-b-grpo-") and "data=~/data/a b" in shlex.split(job.entrypoint)
    done = submit("algo=grpo", "data=mine", "model=a/b", "hardware=8xa100_80g")
    assert done.exit_code == 2 and "data=mine: this folder on the cluster is relative" in done.output


@pytest.fixture(scope="module")
def shipped():
    with package.unpacked_wheel() as folder:
        yield folder


def test_shipped_package_is_the_wheel_with_the_verl_plugin(shipped):
    names = {path.name for path in shipped.iterdir()}
    assert names == {"verl_gsd", f"verl_gsd-{importlib.metadata.version('verl-gsd')}.dist-info"}
    assert (shipped / "verl_gsd/config/algo/gsd.yaml").is_file() and (shipped / "verl_gsd/recipes").is_dir()
    (distribution,) = importlib.metadata.distributions(path=[str(shipped)])
    assert [point.value for point in distribution.entry_points if point.group == "verl.plugins"] == [
        "verl_gsd.trainer.plugin"
    ]
    assert not list(shipped.rglob("__pycache__"))


def test_shipped_package_takes_precedence_over_an_installed_one(shipped, tmp_path):
    """As on a node whose image has another version of the package: Ray puts the job's folder first."""
    code = (
        "import importlib.metadata as m, verl_gsd, json;"
        "print(json.dumps([verl_gsd.__file__, *(str(p.dist.locate_file('')) "
        "for p in m.entry_points(group='verl.plugins') if p.name == 'verl_gsd')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(shipped)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [str(shipped / "verl_gsd/__init__.py"), str(shipped)], done.stderr


def test_installation_ships_the_same_files_as_a_checkout(shipped, tmp_path):
    """The process runs from an unpacked copy, which is equivalent to an installation."""
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


def test_failed_wheel_build_names_the_reason(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[project")
    monkeypatch.setattr(verl_gsd, "__file__", str(tmp_path / "verl_gsd" / "__init__.py"))
    with pytest.raises(package.PackagingError, match=rf"{tmp_path}\b(.|\n)*TOML"), package.unpacked_wheel():
        pytest.fail("the wheel was built")


def test_job_joins_its_cluster_even_if_the_config_starts_one(compose_fast, monkeypatch):
    from verl_gsd.run import cluster_lock

    config, _ = compose_fast(*LINE)
    assert config.ray_kwargs.ray_init.address == "local" and config.ray_kwargs.ray_init.num_gpus == 1
    cluster_lock.join(config)
    init = config.ray_kwargs.ray_init
    assert (init.address, init.num_gpus, init.num_cpus) == ("auto", None, None)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert not cluster_lock.is_job()


def test_training_process_ends_when_its_launcher_is_killed():
    """The process has left the launcher's session, so nothing else would end it."""
    child = (
        "import os; from verl_gsd.cpu.forkserver import die_with_parent; die_with_parent(os.getppid()); "
        "print('ready', flush=True); input()"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    with subprocess.Popen(
        [sys.executable, "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "", "end of file: no process holds the other end any more"


def test_training_process_does_not_start_if_its_launcher_has_already_ended():
    code = "from verl_gsd.run.job import main; main('no such file', '', 1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "process that launched this one has ended" in done.stderr
        and "no such file" not in done.stderr
    )
