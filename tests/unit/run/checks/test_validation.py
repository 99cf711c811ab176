"""Every mistake the launcher can see before Ray starts names its key, its value and what to write."""

import collections
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoint_files import write_checkpoint

from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.gsd_section import gsd_section_problems
from verl_gsd.run.checks.old_keys import check_old_keys
from verl_gsd.run.checks.parallelism import check_layout
from verl_gsd.tasks.catalog import TASKS


@pytest.fixture
def check(compose_fast):
    def check(task, *words):
        words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={task}", *words]
        validate.validate(*compose_fast(*words))

    return check


def test_a_right_line_passes(check, tiny_task):
    check(tiny_task)


@pytest.mark.parametrize("key", ["path", "lora_adapter_path"])
def test_a_model_whose_index_leads_out_of_its_folder_is_rejected(check, tiny_task, tmp_path, key):
    model = shutil.copytree(f"{tiny_task}/model", tmp_path / "model")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../x.safetensors"}}')
    named = f"actor_rollout_ref.model.{key}={model}: {model}: a file of this model names {model}/../x.safetensors"
    with pytest.raises(ConfigError, match=re.escape(named)):
        check(tiny_task, f"actor_rollout_ref.model.{key}={model}")


@pytest.mark.parametrize("name", TASKS)
def test_an_embedded_task_need_not_exist_yet(check, tmp_path, name):
    check(tmp_path / "not_made_yet", f"task={name}")


#: Lines with as many mistakes as go together, each with what the problem names.
LINES = [
    {
        "actor_rollout_ref.rollout.n=0": r"actor_rollout_ref\.rollout\.n=0: .*1",
        "trainer.total_training_steps=abc": r"trainer\.total_training_steps=abc: .*1",
        "trainer.save_freq=often": r"trainer\.save_freq=often: .*-1",
        "actor_rollout_ref.actor.optim.lr=high": r"optim\.lr=high: .*0",
        "actor_rollout_ref.rollout.top_p=1.5": r"top_p=1\.5: .*0 to 1",
        "actor_rollout_ref.rollout.temperature=0": r"temperature=0: .*0",
        "data.seed=one": r"data\.seed=one: .*null",
    },
    {
        "algorithm.gamma=0.9": r"algorithm\.gamma=0\.9 does nothing",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3": r"_per_gpu=3 .*Remove it, or set use_dynamic_bsz=",
        "algorithm.norm_adv_by_std_in_grpo=false": r"norm_adv_by_std_in_grpo=False .*algorithm\.gsd\.alpha",
        "actor_rollout_ref.actor.clip_ratio=0.3": r"clip_ratio=0\.3 .*clip_ratio_low.*clip_ratio_high",
        "actor_rollout_ref.actor.kl_loss_coef=0.1": r"kl_loss_coef=0\.1 .*use_kl_loss is false",
        "algorithm.filter_groups.metric=acc": r"filter_groups\.metric=acc .*enable is false",
        "algorithm.lam=0.9": r"algorithm\.lam=0\.9 .*gae",
        "critic.optim.lr=1": r"critic\.optim\.lr=1 .*critic\.enable",
        "actor_rollout_ref.actor.loss_scale_factor=8": r"loss_scale_factor=8 .*loss_agg_mode",
    },
    {
        "actor_rollout_ref.model.path=/no/model": r"actor_rollout_ref\.model\.path=/no/model: .*config\.json",
        "data.train_files=/no/train.parquet": r"data\.train_files=/no/train\.parquet: ",
        "trainer.use_v1=false": r"trainer\.use_v1=false.*true",
        "trainer.logger=[console,wandb]": r"trainer\.logger=.*: .*file.*logger=console",
        "+trainer.total_trainings_steps=3": r"\+trainer\.total_trainings_steps: .*trainer\.total_training_steps",
        "+trainer.wandb_api_key=0123": r"trainer\.wandb_api_key: .*secret",
        "trainer.wandb_proxy='http://me:secret@proxy'": r"trainer\.wandb_proxy: .*secret",
        "+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=x": r"WANDB_API_KEY: .*secret",
        "trainer.project_name=hf_abcdefghijklmnopqrstuv": r"trainer\.project_name: .*secret",
        "algorithm.gsd.poll_interval=0": r"algorithm\.gsd\.poll_interval=0: .*0",
        "algorithm.gsd.alpha=much": r"algorithm\.gsd\.alpha=much: ",
    },
    {
        "data.train_batch_size=4096": r"train_batch_size=4096: data\.train_files .*\d+ rows",
    },
    {
        "algorithm.gsd.alpha=true": r"algorithm\.gsd\.alpha=True: ",
    },
    {
        "+algorithm.gsd.hadw.preset=haard": r"^algorithm\.gsd\.hadw\.preset=haard: .*\. Did you mean hard\?$",
        "+algorithm.gsd.hadw.lamda_scale=1": r"^algorithm\.gsd\.hadw\.lamda_scale: .*Did you mean lambda_scale\?$",
        "algorithm.gsd.limits.failed_rewards=2": r"^algorithm\.gsd\.limits\.failed_rewards=2: .*up to 1\.$",
        "+algorithm.gsd.limits.quiet_second=2": r"^algorithm\.gsd\.limits\.quiet_second: .*quiet_seconds\?$",
        "+algorithm.gsd.hawd.preset=hard": r"^algorithm\.gsd\.hawd: .*Did you mean hadw\?$",
        "+algorithm.gsd.budget=3": r"^algorithm\.gsd\.budget=3: .*null\.$",
    },
    {
        "algorithm.gsd.ddof=2": r"algorithm\.gsd\.ddof=2: .*0",
    },
    {
        "algorithm.gsd.eps=null": r"algorithm\.gsd\.eps ",
    },
    {
        "algorithm.filter_groups.enable=true": r"metric=null with .*enable=true: ",
        "algorithm.filter_groups.metric=null": r"filter_groups\.metric=acc .*filter_groups\.metric=reward",
    },
    *(
        {
            "algorithm.filter_groups.enable=true": rf"metric={metric}: .*V1 .*stop.*\.metric=acc .*\.metric=reward",
            f"algorithm.filter_groups.metric={metric}": r"rename it",
        }
        for metric in ("seq_reward", "seq_final_reward")
    ),
    {
        "data.train_files=null": r"data\.train_files=null: ",
    },
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: next(iter(line)))
def test_mistakes_are_named_with_their_remedies(check, tiny_task, line):
    with pytest.raises(ConfigError) as refused:
        check(tiny_task, *line)
    problems = str(refused.value).splitlines()
    for message in line.values():
        assert any(re.search(message, problem) for problem in problems), message


def test_idle_keys_are_fine_where_they_work(check, tiny_task):
    check(tiny_task, "actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.1")
    check(tiny_task, "algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc")
    check(tiny_task, "algorithm.filter_groups.enable=false")


def test_a_file_that_is_no_parquet_is_named(check, tiny_task, tmp_path):
    (tmp_path / "train.parquet").write_text("version https://git-lfs.example/spec/v1")
    with pytest.raises(ConfigError, match=r"data\.train_files=.*train\.parquet: .*Parquet"):
        check(tiny_task, f"data.train_files={tmp_path}/train.parquet")


def test_settings_of_the_dial_do_nothing_under_verls_own_estimator(check, tiny_task):
    with pytest.raises(ConfigError, match=r"algorithm\.gsd\.alpha=0\.5 .*gsd"):
        check(tiny_task, "algorithm.adv_estimator=grpo", "algorithm.gsd.alpha=0.5")
    check(tiny_task, "algorithm.adv_estimator=grpo", "algorithm.norm_adv_by_std_in_grpo=false")


@pytest.mark.parametrize(
    ("words", "is_rejected"),
    [
        (["algo=gsd"], True),
        (["algo=gsd", "algorithm.adv_estimator=rloo"], True),
        (["algo=gsd", "algorithm.adv_estimator=gsd"], False),
        (["algo=grpo"], False),
        (["algo=dr_grpo"], False),
        (["algo=grpo", "algorithm.norm_adv_by_std_in_grpo=false"], False),  # verl's own switch
    ],
)
def test_a_script_of_verls_that_keeps_its_estimator_is_told_so(compose_fast, words, is_rejected):
    """``main_ppo algorithm.adv_estimator=grpo ... +algo=gsd`` would train with verl's alpha."""
    words = ["task=arithmetic", "hardware=cpu", "algorithm.adv_estimator=grpo", *words]
    assert any("does not read it" in text for text in gsd_section_problems(compose_fast(*words)[0])) is is_rejected


@pytest.mark.parametrize(
    ("word", "new"),
    [
        ("custom_reward_function.path=mine.py", "reward.custom_reward_function.path"),
        ("custom_reward_function.name=score", "reward.custom_reward_function.name"),
        ("reward_model.reward_manager=dapo", "reward.reward_manager.name"),
        ("+reward_model.reward_kwargs.max_resp_len=512", "reward.reward_kwargs.max_resp_len"),
        ("reward_model.enable=true", "reward.reward_model.enable"),
        ("reward_model.model.path=/models/scorer", "reward.reward_model.model_path"),
        ("reward_model.rollout.load_format=auto", "reward.reward_model.rollout.load_format"),
        ("sandbox_fusion.memory_limit_mb=1024", "reward.sandbox_fusion.memory_limit_mb"),
    ],
)
def test_keys_that_verls_trainer_no_longer_reads_are_rejected_with_the_new_ones(compose_fast, word, new):
    config, line = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu", word)
    (text,) = check_old_keys(config, line)
    assert f"verl reads {new} instead" in text and text in gsd_section_problems(config)


def test_log_probabilities_that_verl_does_not_compute_need_no_micro_batches(compose_fast):
    """In the bypass mode vLLM's are used, and with LoRA the actor is the reference model."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    fixed = [
        "algo=grpo",
        "task=arithmetic",
        "hardware=cpu",
        f"{actor}.use_dynamic_bsz=false",
        f"{actor}.use_kl_loss=true",
    ]
    sizes = [f"{actor}.ppo_micro_batch_size_per_gpu=1", f"{rollout}.log_prob_micro_batch_size_per_gpu=7"]
    ref = ["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=7"]
    bypass = ["+algorithm.rollout_correction.bypass_mode=true"]
    for words, expected in (([], 1), (ref, 2), ([*bypass], 0), ([*ref, *bypass], 1)):
        assert len(list(check_layout(*compose_fast(*fixed, *sizes, *words)))) == expected
    adapter = ["actor_rollout_ref.model.lora_rank=8"]
    assert len(list(check_layout(*compose_fast(*fixed, *sizes, *ref, *adapter)))) == 1


def test_the_device_cpu_takes_more_than_its_name(compose_fast, tiny_task, monkeypatch):
    monkeypatch.delenv("VERL_GSD_CPU")
    alone = "ray_kwargs.ray_init.address=local"  # without it Ray is asked for a cluster
    words = ["algo=grpo", "task=arithmetic", f"task.directory={tiny_task}", "trainer.device=cpu", alone]
    with pytest.raises(ConfigError, match=r"trainer\.device=cpu: .*hardware=cpu"):
        validate.validate(*compose_fast(*words))


def test_a_critic_that_is_switched_on_has_keys_with_effect(check, tiny_task):
    check(tiny_task, "critic.enable=true", "critic.optim.lr=1")


def test_what_divides_does_nothing_where_nothing_is_divided_by(check, tiny_task):
    with pytest.raises(ConfigError, match=r"algorithm\.gsd\.eps=0\.1 .*alpha=0"):
        check(tiny_task, "algorithm.gsd.alpha=0", "algorithm.gsd.eps=0.1")


def test_poll_interval_does_nothing_under_a_stock_mode(check, tiny_task):
    with pytest.raises(ConfigError, match=r"poll_interval=1 .*trainer_mode=gsd_sync"):
        check(tiny_task, "trainer.v1.trainer_mode=sync", "algorithm.gsd.poll_interval=1")


def test_all_mistakes_are_listed_at_once(check, tiny_task):
    with pytest.raises(ConfigError) as error:
        check(tiny_task, "algorithm.lam=0.9", "data.val_files=/no/test.parquet")
    assert len(str(error.value).splitlines()) == 2


def test_missing_columns_are_named(check, tiny_task, tmp_path):
    pq.write_table(pa.table({"prompt": ["x"], "answer": ["y"]}), tmp_path / "mine.parquet")
    with pytest.raises(ConfigError, match=r"mine\.parquet: .*data_source, reward_model"):
        check(tiny_task, f"data.train_files={tmp_path}/mine.parquet")


def test_no_accelerator_and_no_hardware_cpu(compose_fast, tiny_task, monkeypatch):
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(validate.gpus, "query", lambda: None)  # a stub of a machine without nvidia-smi
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.device=cuda: .*hardware=cpu"):
        here = "+ray_kwargs.ray_init.address=local"  # whatever cluster runs on this machine
        validate.validate(*compose_fast("algo=grpo", "task=arithmetic", f"task.directory={tiny_task}", here))


@pytest.mark.parametrize(
    ("free", "message"), [(1 << 20, r"trainer\.default_local_dir=.*0\.00 GiB"), (2 << 30, r"RAY_TMPDIR=.*98%")]
)
def test_a_full_disk_is_seen(check, tiny_task, monkeypatch, free, message):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(validate.shutil, "disk_usage", lambda place: usage(100 << 30, 0, free))
    with pytest.raises(ConfigError, match=message) as caught:
        check(tiny_task)
    assert "default_local_dir" not in str(caught.value) or free < 1 << 30, "a large disk may be nearly full"


def test_no_secret_is_seen_in_an_ordinary_config(check, tiny_task, monkeypatch):
    """verl's own keys end in _key, _token and the like: none may be taken for a secret."""
    monkeypatch.setenv("WANDB_API_KEY", "not-in-the-config")
    check(tiny_task, "logger=wandb")


#: Looks like a token of no kind, and gives each kind its length.
RANDOM = "q7Zp4Wd9Kx2Lm8Tv"


@pytest.mark.parametrize(
    "value",
    [
        *(f"{prefix}{RANDOM}" for prefix in ("hf_", "sk-", "sk-proj-", "ghp_", "gho_", "github_pat_", "glpat-")),
        *(f"{prefix}{RANDOM}" for prefix in ("xoxb-", "xoxa-", "xoxp-", "AIza")),
        *(f"{prefix}{RANDOM.upper()}" for prefix in ("AKIA", "ASIA")),
        *(f"eyJ{RANDOM}.eyJ{RANDOM}.{RANDOM}", f"Bearer {RANDOM}", f"Authorization: Bearer {RANDOM}"),
        *(f"https://me:{RANDOM}@proxy.example", f"${{oc.env:HOME,ghp_{RANDOM}}}"),
        *(f"{prefix}{RANDOM}" for prefix in ("nvapi-", "gsk_", "r8_", "npm_", "pypi-AgE", "xai-", "sk_live_", "ya29.")),
        *(f"https://hooks.slack.com/services/T0/B0/{RANDOM}", f"redis://:{RANDOM}@cache.example/0"),
        *(f"Basic {RANDOM}==", f"basic {RANDOM}", f"Authorization: Basic {RANDOM}"),
        *(f"https://a.example/b?sv=1&sig={RANDOM}%3D", f"https://a.example/b?X-Amz-Signature={RANDOM}"),
        *(f"{prefix}{RANDOM}" for prefix in ("wandb_v1_", "dckr_pat_", "lsv2_pt_", "tgp_v1_", "dop_v1_", "hvs.")),
        *(f"pplx-{RANDOM}", f"rpa_{RANDOM}", f"SG.{RANDOM}.{RANDOM}-{RANDOM}"),
        *(f"-----BEGIN {kind}PRIVATE KEY-----{RANDOM}" for kind in ("", "OPENSSH ", "RSA ", "EC ")),
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----{RANDOM}",
    ],
)
def test_tokens_of_known_shapes_are_seen_whatever_their_key_and_are_not_repeated(check, tiny_task, value):
    with pytest.raises(ConfigError, match=r"reward_kwargs\.x: looks like a secret") as caught:
        check(tiny_task, f"+reward.custom_reward_function.reward_kwargs.x='{value}'")
    assert RANDOM not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *("auth", "bearer", "pwd", "passphrase", "authorization", "Authorization", "X-Api-Key", "mysecret"),
        *("db_password", "cookie", "session_cookie", "pw", "db_pw", "pass", "private_key", "privatekey"),
        *("creds", "db_creds", "gh_pat", "pat", "dsn", "sentry_dsn", "webhook", "slack_webhook", "webhook-url"),
    ],
)
def test_values_of_keys_that_name_a_secret_are_seen_alone_and_in_a_section(check, tiny_task, key):
    section = "reward.custom_reward_function.reward_kwargs"
    for word in (f"+{section}.{key}=swordfish", f"+{section}={{{key}: swordfish}}"):
        with pytest.raises(ConfigError, match=rf"{section}\.{key}: looks like a secret") as caught:
            check(tiny_task, word)
        assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *("${oc.env:MYSECRET}", "${oc.env:MYSECRET,none}", "'${oc.env: MYSECRET }'", "'Bearer ${oc.env:MYSECRET}'"),
        *(
            "'${oc.env:NOT_SET,${oc.env:MYSECRET}}'",
            "'${oc.decode:${oc.env:MYSECRET}}'",
            "{a: [1, '${oc.env:MYSECRET}']}",
        ),
    ],
)
def test_a_secret_from_the_environment_is_seen_by_the_name_of_its_variable(check, tiny_task, monkeypatch, value):
    monkeypatch.setenv("MYSECRET", "swordfish")
    with pytest.raises(ConfigError, match=r"reward_kwargs\.x: takes its value from the variable MYSECRET") as caught:
        check(tiny_task, f"+reward.custom_reward_function.reward_kwargs.x={value}")
    assert "swordfish" not in str(caught.value)


#: Variables whose names say less than KEY or TOKEN.
VARIABLES = (
    *("SLACK_WEBHOOK", "SLACK_WEBHOOK_URL", "DATABASE_URL", "DB_URI", "SESSION_COOKIE"),
    *("CREDS", "MYCREDS", "GH_PAT", "DSN", "SENTRY_DSN"),
)


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MYKEY", "GITHUB_PAT", "DB_PASS", "PGPASSWORD", *VARIABLES]
)
def test_variables_of_secrets_have_such_names(name, compose_fast):
    config, line = compose_fast("algo=grpo", "task=arithmetic", f"trainer.project_name=${{oc.env:{name},x}}")
    (problem,) = validate.check_secrets(config, line)
    assert f"trainer.project_name: takes its value from the variable {name}," in problem


@pytest.mark.parametrize("name", ["GITHUB_PAT", *VARIABLES])
def test_a_variable_for_workers_with_the_name_of_a_secret_is_seen(compose_fast, name):
    word = f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}=swordfish"
    (problem,) = validate.check_secrets(*compose_fast("algo=grpo", "task=arithmetic", word))
    assert f"env_vars.{name}: looks like a secret" in problem


@pytest.mark.parametrize("name", ["api_key", "token", "s3_secret_key"])
def test_only_verls_keys_of_columns_may_end_in_key_among_the_keys_of_the_data(compose_fast, name):
    columns = ("data.prompt_key=question", "data.reward_fn_key=source", "data.image_key=pictures")
    config, line = compose_fast("algo=grpo", "task=arithmetic", *columns, f"+data.{name}=swordfish")
    (problem,) = validate.check_secrets(config, line)
    assert f"data.{name}: looks like a secret" in problem and "swordfish" not in problem


@pytest.mark.parametrize(
    ("value", "is_secret"),
    [
        *(("MY_JUDGE_KEY", False), ("HF_TOKEN", False), ("hf_token", False), ("judge", False), ("MyKey2", False)),
        *(("gsk_ABC", True), ("hf_a1", True), ("ghp_Xy", True), ("sk-abc", True), ("a b", True), ("1abc", True)),
    ],
)
def test_a_key_in_place_of_the_name_of_its_variable_is_seen_and_not_repeated(compose_fast, value, is_secret):
    key = "algorithm.gsd.dagrpo.judge.api_key_env"
    config, line = compose_fast("algo=dagrpo", "task=arithmetic", f"{key}='{value}'", "critic.optim.lr=x")
    assert [key in problem for problem in validate.check_secrets(config, line)] == [True] * is_secret
    with pytest.raises(ConfigError) as caught:
        validate.validate(config, line)
    assert not is_secret or f"{key}: looks like a secret" in str(caught.value)
    assert not is_secret or (f"'{value}'" not in str(caught.value) and f"={value}" not in str(caught.value))


@pytest.mark.parametrize(
    "value",
    [
        *("xai-org/grok-1", "basic training", "Basic qwen2.5", "basic GRPO", "npm_config_registry_mirror_in_europe"),
        *(
            "pypi-packages-of-the-course",
            "r8_alpha_half_precision_run",
            "https://host.example/a?sort=signature",
            "pass",
        ),
        *("ASIA_multilingual_math", "/mnt/ASIA-languages-train.parquet", "/data/hf_models_cache/qwen"),
        *("/scratch/sk-learn-experiments-2026", "ghr_a_and_b_run_number_2"),
        *("sk_learn_baseline_with_twelve", "a@b.example:1", "https://[::1]:8000/v1", "gsk_eight", "hooks.slack.com"),
        *(
            "pplx-7b-online",
            "pplx-embed-context-v1-0.6b",
            "wandb_v1_baseline_of_twelve",
            "SG.train.parquet",
            "hvs.csv",
            "rpa_tables",
        ),
        *("lsv2_pt_data", "/data/SG.multilingual-mathematics.parquet", "-----BEGIN PUBLIC KEY-----", "dckr_patches"),
    ],
)
def test_ordinary_values_are_no_secrets(compose_fast, value):
    names = ("x", "pass_at_k", "keys", "tokenizer", "passes", "compass", "author")
    names += ("path", "patience", "pattern", "compat_mode", "dsn2vec", "credsets", "webhooked")
    words = [f"+reward.custom_reward_function.reward_kwargs.{name}='{value}'" for name in names]
    assert not list(validate.check_secrets(*compose_fast("algo=grpo", "task=arithmetic", *words)))


def test_other_variables_may_be_used(check, tiny_task, monkeypatch):
    monkeypatch.setenv("TOKENIZER_FOLDER", "keys")
    check(tiny_task, "trainer.project_name=${oc.env:TOKENIZER_FOLDER}-${oc.env:HOME,author}")
    check(tiny_task, "trainer.project_name=${oc.env:PWD,x}-${oc.env:OLDPWD,x}-${oc.env:SSH_AUTH_SOCK,x}")


def test_problems_of_other_checks_do_not_repeat_a_secret(check, tiny_task, monkeypatch):
    """A key without effect was named with its value."""
    monkeypatch.setenv("MYSECRET", "swordfish")
    words = (f"algorithm.lam=ghp_{RANDOM}", "critic.optim.lr=${oc.env:MYSECRET}", "+critic.auth=x")
    with pytest.raises(ConfigError) as caught:
        check(tiny_task, *words)
    problems = str(caught.value)
    assert "algorithm.lam=(secret) does nothing" in problems and "critic.optim.lr=(secret) does nothing" in problems
    assert "critic.auth=(secret) does nothing" in problems
    assert RANDOM not in problems and "swordfish" not in problems


def test_the_embedded_task_need_not_be_there_yet_but_files_beside_it_must(check, tmp_path):
    check(tmp_path / "not_made_yet")
    with pytest.raises(ConfigError, match=r"data\.val_files=.*/other\.parquet: "):
        check(tmp_path / "not_made_yet", f"data.val_files={tmp_path}/other.parquet")


def test_a_key_verl_reads_without_listing_it_may_be_added(check, tiny_task):
    check(tiny_task, "+actor_rollout_ref.model.override_config.attention_dropout=0.1")


def test_a_checkpoint_without_weights_is_refused_and_a_whole_one_named(check, tiny_task, tmp_path):
    run = tmp_path / "run"
    for step in (90, 100, 110):
        write_checkpoint(run, step)
    shutil.rmtree(run / "global_step_110" / "actor")
    message = r"global_step_110: .*actor/.*resume_from_path=.*global_step_100 "
    with pytest.raises(ConfigError, match=message):
        check(tiny_task, f"trainer.default_local_dir={run}")
