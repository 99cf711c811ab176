"""verl's merger of a checkpoint's shards."""

import pytest
from evaluation_runs import random_model, unmerged_checkpoint

from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import merge


def test_shards_that_are_damaged_leave_nothing(tmp_path):
    """verl's merger says so, in its own process."""
    checkpoint = unmerged_checkpoint(tmp_path / "run", random_model(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"global_step_4: verl's merger failed: .+"):
        merge.merge(checkpoint, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))
