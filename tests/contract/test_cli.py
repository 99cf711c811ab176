"""``verl-gsd train --dry-run``, which has verl check the config."""

import hub_server
import yaml
from typer.testing import CliRunner

from verl_gsd.cli.main import app

LINE = ["algo=dapo", "task=arithmetic", "hardware=cpu"]


def last_line(done):
    return done.stderr.rstrip().splitlines()[-1]


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
    assert last_line(done).startswith("Config valid, no warnings. Steps: at most 7. Not checked: the model's weights")
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing behind"


def test_a_dry_run_asks_the_hub_once_about_the_model(tmp_path, monkeypatch):
    """transformers alone would repeat 24 requests in a minute."""
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path / "cache"))
    with hub_server.serving() as (address, asked):
        hub_server.use(monkeypatch, address, tmp_path / "hub")
        done = CliRunner().invoke(app, ["train", *LINE, "model=lab/broken", "--dry-run"])
        assert done.exit_code == 0, done.output
        said = " ".join(done.stderr.split())
        assert said.count("warning: ") == 1
        assert "model.path=lab/broken: the Hugging Face Hub answered HTTP 503 Service Unavailable, and" in said
        assert last_line(done).startswith(
            "Config valid, 1 warning, printed before the config. Steps: at most 40. Not checked: what the"
        )
        assert asked == ["/lab/broken/resolve/main/config.json"]
        done = CliRunner().invoke(app, ["train", *LINE, "model=lab/missing", "--dry-run"])
        assert done.exit_code == 2 and done.stdout == "", done.output
        assert "error actor_rollout_ref.model.path=lab/missing: " in done.stderr
