"""The config that the trainer writes for a run of verl's own command, which reports and evaluations read."""

from omegaconf import OmegaConf

from verl_gsd.report.reading import read_run
from verl_gsd.run.own_config import LEFT_OUT, without_secrets, write_own_config
from verl_gsd.rundir import RunDirectory


def test_what_looks_like_a_secret_is_left_out_and_all_else_kept():
    config = OmegaConf.create(
        {
            "data": {"prompt_key": "prompt", "max_response_length": 512, "copy": "${data.max_response_length}"},
            "judge": {"api_key": "abc", "url": "https://user:word@host/v1", "retries": 3, "key": None},
            "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"WANDB_API_KEY": "abc", "MODE": "fast"}}}},
            "trainer": {"logger": ["console", "hf_" + "a" * 20]},
        }
    )
    assert without_secrets(config) == {
        "data": {"prompt_key": "prompt", "max_response_length": 512, "copy": 512},
        "judge": {"api_key": LEFT_OUT, "url": LEFT_OUT, "retries": 3, "key": None},
        "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {}}}},
        "trainer": {"logger": ["console", LEFT_OUT]},
    }


def test_the_settings_of_a_real_line_survive(compose_fast):
    config, _ = compose_fast("algo=dapo", "task=arithmetic", "hardware=cpu")
    plain = OmegaConf.to_container(config)
    plain["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"] = {}
    assert without_secrets(config) == plain


def test_a_report_reads_them(tmp_path):
    write_own_config({"data": {"max_response_length": 512}}, RunDirectory(tmp_path), 1)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "attempt_1.jsonl").write_text('{"step": 1, "data": {"actor/entropy": 0.5}}\n')
    assert read_run(tmp_path, "run").config["data.max_response_length"] == 512
