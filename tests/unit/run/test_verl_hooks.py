"""Hooks that fail in a module of the host: the module is imported, one warning is logged, and our runs are rejected."""

import importlib
import logging
import sys

import pytest
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run import verl_hooks


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
    assert verl_hooks.uses_us(config) is expected
