"""Hooks that fail in a module of the host: the module is imported, one warning is logged, and our runs are rejected."""

import asyncio
import importlib
import logging
import sys

import pytest
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run import our_runs, verl_hooks


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Makes a module that can be imported, by a name of its own."""
    monkeypatch.setattr(verl_hooks, "_failures", {})
    monkeypatch.syspath_prepend(tmp_path)

    def make(name):
        (tmp_path / f"{name}.py").write_text("VALUE = 1\n")
        return name

    return make


def test_a_hook_that_fails_does_not_end_the_import_and_warns_once(host, caplog):
    def imports_what_is_gone(module):
        raise ImportError("cannot import name 'GONE'")

    first, second = host("verl_hooks_host_1"), host("verl_hooks_host_2")
    verl_hooks.when_imported(first, imports_what_is_gone)
    verl_hooks.when_imported(second, lambda module: module.gone)
    verl_hooks.reject_if_failed()
    with caplog.at_level(logging.WARNING):
        assert importlib.import_module(first).VALUE == importlib.import_module(second).VALUE == 1
    (record,) = caplog.records
    assert "verl_hooks_host_1 failed (ImportError: cannot import name 'GONE')" in record.getMessage()
    assert "Runs that do not use verl-gsd are not affected" in record.getMessage()
    with pytest.raises(ConfigError, match=r"(?s)GONE.*verl_hooks_host_2.*AttributeError.*'gone'"):
        verl_hooks.reject_if_failed()


CLASSES = """
class Worker:
    def __init__(self, number):
        self.number = number

    async def update(self):
        return self.number

NO_FUNCTION = 7

def init(conf=None):
    return conf
"""


def fails(_):
    raise AttributeError("no tag")


@pytest.fixture
def failed(host, tmp_path):
    """A module whose hook, which keeps other users out, has failed."""
    name = host(f"verl_hooks_host_{tmp_path.name}")
    (tmp_path / f"{name}.py").write_text(CLASSES)
    entrances = ["Worker.__init__", "Worker.update", "init", "NO_FUNCTION", "Gone.update", "gone"]
    verl_hooks.when_imported(name, fails, entrances=entrances)
    return importlib.import_module(name)


def test_without_a_patch_that_keeps_others_out_a_stock_run_goes_on(failed, monkeypatch):
    for value in (None, "", "0"):
        monkeypatch.delenv(our_runs.MARK, raising=False)
        if value is not None:
            monkeypatch.setenv(our_runs.MARK, value)
        assert failed.init({"a": 1}) == {"a": 1} and failed.NO_FUNCTION == 7
        assert asyncio.run(failed.Worker(3).update()) == 3
    assert len(verl_hooks.failures()) == 1, "entrances that verl no longer has are no further failure"


def test_without_a_patch_that_keeps_others_out_a_process_takes_no_part_in_our_run(failed, monkeypatch):
    worker = failed.Worker(3)
    monkeypatch.setenv(our_runs.MARK, "1")
    for enter in (lambda: failed.Worker(3), lambda: failed.init(), lambda: asyncio.run(worker.update())):
        with pytest.raises(
            verl_hooks.UnprotectedProcessError, match=r"verl_hooks_host.* failed .AttributeError: no tag"
        ):
            enter()


def test_a_patch_whose_assumptions_do_not_hold_closes_the_entrances_too(host, tmp_path, monkeypatch):
    name = host("verl_hooks_host_patch")
    (tmp_path / f"{name}.py").write_text(CLASSES)
    monkeypatch.setattr(verl_hooks, "patch_problem", lambda patch: f"{patch}: this name does not exist")
    verl_hooks.when_imported(name, lambda module: None, patch="trainer/some.py", entrances=["init"])
    module = importlib.import_module(name)
    monkeypatch.setenv(our_runs.MARK, "1")
    with pytest.raises(verl_hooks.UnprotectedProcessError, match=r"trainer/some.py: this name does not exist"):
        module.init()


def test_entrances_of_a_hook_that_works_stay_open(host, tmp_path, monkeypatch):
    name = host("verl_hooks_host_open")
    (tmp_path / f"{name}.py").write_text(CLASSES)
    verl_hooks.when_imported(name, lambda module: None, entrances=["init"])
    monkeypatch.setenv(our_runs.MARK, "1")
    module = importlib.import_module(name)
    assert module.init(5) == 5 and not hasattr(module.init, "__wrapped__")


@pytest.mark.parametrize("runtime_env", [{}, {"env_vars": None}, {"env_vars": {"A": "b", our_runs.MARK: "0"}}, None])
def test_the_workers_of_a_run_are_marked_in_their_environment(runtime_env):
    config = OmegaConf.create({"ray_kwargs": {"ray_init": {"num_cpus": 2, "runtime_env": runtime_env}}})
    OmegaConf.set_struct(config, True)
    our_runs.mark_processes(config)
    init = config.ray_kwargs.ray_init
    given = {"A": "b"} if runtime_env and runtime_env["env_vars"] else {}
    assert init.num_cpus == 2 and init.runtime_env == {"env_vars": given | {our_runs.MARK: "1"}}


def test_a_hook_that_works_sees_the_module_and_is_no_failure(host):
    seen, name = [], host("verl_hooks_host_3")
    verl_hooks.when_imported(name, seen.append)
    importlib.import_module(name)
    assert seen == [sys.modules[name]] and verl_hooks.failures() == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("algorithm.adv_estimator", "gsd", True),
        ("trainer.v1.trainer_mode", "gsd_colocate_async", True),
        ("algorithm.gsd.alpha", 1.0, True),
        ("algorithm.adv_estimator", "grpo", False),
    ],
)
def test_which_runs_use_us(key, value, expected):
    config = OmegaConf.create({"algorithm": {"adv_estimator": "rloo"}, "trainer": {"v1": {"trainer_mode": "sync"}}})
    OmegaConf.update(config, key, value, force_add=True)
    assert our_runs.uses_us(config) is expected
