"""verl's own tests, run in a process that has our plugin."""

import sys


def run(*files):
    import pytest
    from verl.trainer.ppo import core_algos

    assert "verl_gsd.trainer.plugin" in sys.modules and "gsd" in core_algos.ADV_ESTIMATOR_REGISTRY
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", *files]))
