"""How verl writes a checkpoint and finds it again, on which our checks of checkpoints rely."""

import shutil

import pytest
from checkpoint_files import write_checkpoint
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path


def test_verl_reads_the_marker_as_a_number_and_starts_over_if_its_checkpoint_is_missing(tmp_path, capsys):
    write_checkpoint(tmp_path, 8)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_8")
    shutil.rmtree(tmp_path / "global_step_8")
    assert find_latest_ckpt_path(str(tmp_path)) is None, "which is why a missing folder is damage"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(ValueError):
        find_latest_ckpt_path(str(tmp_path))
