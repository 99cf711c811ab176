"""The function that creates a run's queue rejects a run of ours whose messages would not be authenticated."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock, verl_hooks


@pytest.fixture
def queue(monkeypatch):
    """verl's queue as a list of the sections that it was created with, with our lock."""
    monkeypatch.setattr(verl_hooks, "_failures", {})
    monkeypatch.setattr(cluster_lock, "take_lock", lambda: None)
    created = []
    package = SimpleNamespace(init=created.append, created=created)
    cluster_lock.lock_queue(package)
    return package


def section(mode, **algorithm):
    config = {"trainer": {"v1": {"trainer_mode": mode}}, "algorithm": algorithm, "transfer_queue": {"enable": True}}
    return OmegaConf.create(config).transfer_queue


@pytest.mark.parametrize(
    "conf", [section("gsd_sync"), section("sync", adv_estimator="gsd"), section("sync", gsd={"alpha": 1.0})]
)
def test_no_queue_is_created_for_a_run_of_ours_if_the_authentication_failed(queue, conf):
    queue.init(conf)
    assert len(queue.created) == 1
    with verl_hooks.contained("the hook in transfer_queue"):
        raise ImportError("cannot import name 'ZMQMessage'")
    with pytest.raises(ConfigError, match=r"the hook in transfer_queue failed .ImportError: .*ZMQMessage"):
        queue.init(conf)
    assert len(queue.created) == 1


@pytest.mark.parametrize(
    "conf", [section("sync", adv_estimator="grpo"), OmegaConf.create({"backend": {}}), {"a": 1}, None]
)
def test_runs_that_do_not_use_us_create_their_queue(queue, conf):
    with verl_hooks.contained("the hook in transfer_queue"):
        raise ImportError("cannot import name 'ZMQMessage'")
    queue.init(conf)
    assert queue.created == [conf]
