"""``verl-gsd train --dry-run``, which has verl check the config."""

import yaml
from typer.testing import CliRunner

from verl_gsd.cli.main import app

LINE = ["algo=dapo", "task=arithmetic", "hardware=cpu"]


def test_dry_run_prints_the_resolved_config_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, ["train", *LINE, "trainer.total_training_steps=7", "--dry-run"])
    assert done.exit_code == 0, done.output
    config = yaml.safe_load(done.stdout)
    assert config["trainer"]["total_training_steps"] == 7
    assert config["algorithm"]["filter_groups"]["enable"] is True
    assert "${" not in done.stdout
    assert "sigma" in done.stderr, "the audit"
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing behind"
