"""Every remedy of a check, and of a warning about a config, is followed: it is accepted, and the message is gone.

A message that a check yields has a case here, or a reason why its remedy cannot be followed by changing the line.
tests/unit/repository/test_remedies_in_messages.py checks what all other texts tell the user to do.
"""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from known_keys import known_keys
from messages_of_code import HOLE, yielded
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import config as groups
from verl_gsd import unused_keys
from verl_gsd.audit import audit
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.lora import lora_warnings
from verl_gsd.run.checks.memory import estimate
from verl_gsd.run.checks.sizes_in_data import dataset_group_sizes
from verl_gsd.run.engines import check_engine

PACKAGE = ROOT / "verl_gsd"
FILES = [
    *sorted((PACKAGE / "run" / "checks").glob("*.py")),
    *(PACKAGE / name for name in ("audit.py", "run/engines.py")),
    *sorted(path for path in (PACKAGE / "algorithms").rglob("*.py") if not path.name.startswith("lab")),
]
#: Functions whose texts describe a config and advise nothing.
DESCRIBE = ("audit.py:lines:", "parallelism.py:attention_reason:")

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
GSD, DAGRPO, REWARDS = "algorithm.gsd", "algorithm.gsd.dagrpo", "reward.reward_model"
FILTER, VERIFIER = "algorithm.filter_groups", "reward.custom_reward_function.path"
MODE, LOSS = "trainer.v1.trainer_mode", "actor_rollout_ref.actor.policy_loss"
TRAIN, SAMPLES = "data.train_files", "data.train_max_samples"
GVPO, BUDGET, SAMPLER = "algorithm.gsd.gvpo", "algorithm.gsd.budget", "algorithm.gsd.sampler"
SIXTEEN_ROWS = f"{ACTOR}.use_dynamic_bsz=false {ACTOR}.ppo_micro_batch_size_per_gpu"
LORA = "recipe=start/gsm8k_qwen2.5_0.5b_lora hardware=8xa100_80g"
LARGE = "recipe=hadw/qwen3_8b_base hardware=1xh200"
OWN_FILES = (
    f"data.train_batch_size=32 {ACTOR}.ppo_mini_batch_size=8 {TRAIN}={{tiny}}/train.parquet "
    f"data.val_files={{tiny}}/test.parquet {VERIFIER}=pkg://verl_gsd.tasks.maths"
)
SIZES = f"{TRAIN}={{files}}/sizes.parquet data.train_batch_size=2 {ROLLOUT}.n=8"
ATTENTION, ULYSSES = (
    f"{MODEL}.override_config.attn_implementation",
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size",
)
OWN_ULYSSES = f"{ACTOR}.ulysses_sequence_parallel_size"
EXPERT = f"algo=dagrpo_anchors {TRAIN}={{files}}/a.parquet {DAGRPO}.demonstrations.source=expert"
GSD_SEVEN = "recipe=gsd/qwen2.5_math_7b hardware=8xa100_80g"
SEVEN = "recipe=gvpo/qwen2.5_math_7b hardware=8xa100_80g"
POOL = f"{REWARDS}.enable_resource_pool=true {REWARDS}.nnodes=1 {REWARDS}.n_gpus_per_node=1 {REWARDS}.rollout.name=vllm"
USE_MODEL = f"{REWARDS}.enable=true {REWARDS}.model_path=MODEL {POOL}"
SCORED = f"{USE_MODEL} {VERIFIER}=null"

PARTS = "trainer.v1.separate_async.parameter_sync_step"
SEPARATE = (
    f"recipe=start/gsm8k_qwen2.5_0.5b hardware=8xa100_80g {MODE}=gsd_separate_async {PARTS}=1 {ROLLOUT}.nnodes=1 "
    f"trainer.n_gpus_per_node=4 {ROLLOUT}.n_gpus_per_node=4 {ROLLOUT}.checkpoint_engine.backend=nccl"
)

#: (broken line, a text in its message, remedies). Each of the remedies alone must help. Words of a remedy replace those
#: for the same key. ~KEY removes a word.
CASES = [
    # validate.py
    ("trainer.use_v1=false", "trainer.use_v1=false", ["trainer.use_v1=true"]),
    (
        "trainer.logger=[console]",
        "reads progress",
        [
            "~trainer.logger logger=console",
            "~trainer.logger logger=wandb",
            "~trainer.logger logger=tensorboard",
            "trainer.logger=[console,file]",
        ],
    ),
    (
        "algorithm.adv_estimator=remax",
        "remax",
        [
            f"algorithm.adv_estimator={name}"
            for name in ("gsd", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
        ],
    ),
    (f"{ROLLOUT}.n=0", "not a whole number of at least 1", [f"{ROLLOUT}.n=2"]),
    ("trainer.save_freq=-2", "not a whole number of at least -1", ["trainer.save_freq=-1"]),
    (f"{ROLLOUT}.top_p=1.5", "not a number in the allowed", [f"{ROLLOUT}.top_p=0", f"{ROLLOUT}.top_p=1"]),
    (f"{ACTOR}.optim.lr=-1", "not a number in the allowed", [f"{ACTOR}.optim.lr=0"]),
    ("data.seed=one", "Set it to one, or to null", ["data.seed=-1", "data.seed=null"]),
    (f"{ROLLOUT}.temperature=0", "not a number above 0", [f"{ROLLOUT}.temperature=1.0"]),
    ("data.train_batch_size=4096", "has only", ["data.train_batch_size=16"]),
    (f"{SAMPLES}=8 data.train_batch_size=16", "is smaller", [f"{SAMPLES}=16"]),
    (
        "+trainer.total_trainings_steps=3",
        "Did you mean",
        ["~trainer.total_trainings_steps trainer.total_training_steps=3"],
    ),
    (f"{TRAIN}=null", "no data file is set", [f"{TRAIN}={{tiny}}/train.parquet", f"{TRAIN}=[{{tiny}}/train.parquet]"]),
    (f"{MODEL}.path=/no/model", "not a folder with a model", [f"{MODEL}.path={{tiny}}/model", f"{MODEL}.path=a/model"]),
    (f"{MODEL}.path=Qwen/Qwen3/", "end in a slash", [f"{MODEL}.path=Qwen/Qwen3"]),
    ("trainer.wandb_proxy=http://me:abcdefgh@proxy", "looks like a secret", ["~trainer.wandb_proxy"]),
    ("trainer.project_name=${oc.env:MY_TOKEN,x}", "takes its value from", ["~trainer.project_name"]),
    ("task.directory=s3://bucket/task", "is created in a local folder", ["task.directory={tiny}"]),
    # data_files.py, data_sources.py
    (
        "data.truncation=none",
        "not a valid value",
        [f"data.truncation={name}" for name in ("error", "left", "right", "middle")],
    ),
    (f"{TRAIN}={{files}}/a.txt", "reads only files", [f"{TRAIN}={{tiny}}/train.parquet"]),
    (f"{TRAIN}={{files}}/none.parquet", "does not exist", [f"{TRAIN}={{tiny}}/train.parquet"]),
    (f"{TRAIN}='{{files}}/[a].parquet'", "for a pattern", [f"{TRAIN}={{files}}/a.parquet"]),
    (f"{TRAIN}='~/train.parquet'", "does not expand", [f"{TRAIN}={{tiny}}/train.parquet"]),
    (f"{TRAIN}={{files}}/text.parquet", "not a valid Parquet", [f"{TRAIN}={{tiny}}/train.parquet"]),
    (f"{TRAIN}={{files}}/question.parquet", "no column prompt", ["data.prompt_key=question"]),
    (
        f"{TRAIN}={{files}}/unknown.parquet {VERIFIER}=null",
        "verl has no reward function",
        [f"{VERIFIER}=pkg://verl_gsd.tasks.maths", f"{VERIFIER}=null {USE_MODEL}"],
    ),
    (
        f"{TRAIN}={{files}}/code.parquet {VERIFIER}=null",
        "as Python code",
        [
            f"{VERIFIER}=pkg://verl_gsd.tasks.maths",
            f"{VERIFIER}=pkg://verl.utils.reward_score reward.custom_reward_function.name=default_compute_score",
        ],
    ),
    # gsd_section.py, limits.py
    (f"{GSD}.poll_interval=0", "out of range", [f"{GSD}.poll_interval=0.5", f"{GSD}.poll_interval=null"]),
    (f"{GSD}.state=new", "no such value", [f"{GSD}.state=fresh", f"{GSD}.state=null"]),
    (f"{REWARDS}.enable=true {REWARDS}.model_path=a/model", "a colocated reward", [POOL]),
    (f"{USE_MODEL} {REWARDS}.nnodes=0", "the reward model has no GPUs", [f"{REWARDS}.nnodes=1"]),
    (f"{USE_MODEL} {REWARDS}.rollout.name=???", "verl has no default", [f"{REWARDS}.rollout.name=vllm"]),
    (f"algo=dapo {SCORED}", "returns a score and no acc", [f"{FILTER}.metric=reward", f"{FILTER}.enable=false"]),
    (f"algo=hadw {SCORED}", "reads acc", [f"{GSD}.hadw=null", f"{VERIFIER}=pkg://verl_gsd.tasks.arithmetic"]),
    *(
        (f"{FILTER}.enable=true {FILTER}.metric={metric}", text, [f"{FILTER}.metric=acc", f"{FILTER}.metric=reward"])
        for metric, text in (("seq_reward", "older trainers"), ("null", "nothing to compare"))
    ),
    ("skip.rollout_tq.enable=true", "cannot tell which prompts", ["skip.rollout_tq.enable=false", f"{MODE}=sync"]),
    (
        f"{GSD}.limits.quiet_seconds=100",
        "would stop the run before",
        [f"{GSD}.limits.quiet_seconds=301", f"{GSD}.limits.reward_seconds=99"],
    ),
    # separate_async.py
    (f"{SEPARATE} {ROLLOUT}.nnodes=0", "generates on GPUs of its own", [f"{ROLLOUT}.nnodes=1"]),
    (
        f"{SEPARATE} {ROLLOUT}.checkpoint_engine.backend=naive",
        "cannot send weights",
        [f"{ROLLOUT}.checkpoint_engine.backend=nccl"],
    ),
    (
        f"{SEPARATE} {PARTS}=4 data.train_batch_size=128 {ACTOR}.ppo_mini_batch_size=128",
        "which makes 512",
        [
            f"{ACTOR}.ppo_mini_batch_size=32",
            f"{PARTS}=1",
            f"data.train_batch_size=512 {ACTOR}.ppo_mini_batch_size=128",
        ],
    ),
    (  # as in the recipe, where a mini-batch is the batch and would grow with it
        f"{SEPARATE} {PARTS}=4 data.train_batch_size=128",
        "which makes 512",
        [
            f"{ACTOR}.ppo_mini_batch_size=32",
            f"{PARTS}=1",
            f"data.train_batch_size=512 {ACTOR}.ppo_mini_batch_size=128",
        ],
    ),
    (
        f"{SEPARATE} trainer.n_gpus_per_node=2 {ROLLOUT}.tensor_model_parallel_size=4",
        "the 2 GPUs of trainer.nnodes",
        [f"{ROLLOUT}.tensor_model_parallel_size=2"],
    ),
    (
        f"{SEPARATE} {REWARDS}.enable=true {REWARDS}.model_path=MODEL {REWARDS}.rollout.name=vllm "
        f"trainer.n_gpus_per_node=2 {ROLLOUT}.n_gpus_per_node=2",
        "never leaves its GPUs",
        [f"{REWARDS}.enable_resource_pool=true {REWARDS}.nnodes=1 {REWARDS}.n_gpus_per_node=1"],
    ),
    # engines.py, parallelism.py
    ("model_engine=veomni", "supports only", ["model_engine=dp", "model_engine=megatron hardware=8xa100_80g"]),
    (f"{ACTOR}.strategy=megatron", "does not belong to", [f"{ACTOR}.strategy=fsdp2"]),
    (
        f"{SEVEN} {ACTOR}.strategy=megatron {OWN_FILES}",
        "does not belong to",
        [f"{ACTOR}.strategy=fsdp2", "model_engine=megatron"],
    ),
    ("model_engine=megatron hardware=cpu", "supports only FSDP2", ["model_engine=dp", "hardware=8xa100_80g"]),
    (
        f"{SEVEN} {ATTENTION}=sdpa {ULYSSES}=2",
        "only with flash-attn",
        [f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=1"],
    ),
    (
        f"{MODEL}.path={{files}}/qwen2_vl {MODEL}.use_remove_padding=true",
        "over packed rows",
        [f"{MODEL}.use_remove_padding=false"],
    ),
    (
        f"{MODEL}.path={{files}}/gemma2 {MODEL}.use_remove_padding=true",
        "ignores the cap",
        [f"{MODEL}.override_config.attn_implementation=eager {MODEL}.use_remove_padding=false"],
    ),
    (
        f"algo=grpo {ACTOR}.use_dynamic_bsz=false data.train_batch_size=16 {ACTOR}.ppo_mini_batch_size=32",
        "cannot have more prompts than a step",
        [f"{ACTOR}.ppo_mini_batch_size=16", "data.train_batch_size=32"],
    ),
    (
        f"{GSD_SEVEN} algo=gspo {ACTOR}.clip_ratio_low=0.2 {ACTOR}.clip_ratio_high=0.28",
        "so that it would not be clipped",
        [f"{ACTOR}.clip_ratio_low=0.0003 {ACTOR}.clip_ratio_high=0.0004"],
    ),
    (
        f"{GSD_SEVEN} reward_model.num_workers=16",
        "does nothing: verl reads",
        ["~reward_model.num_workers reward.num_workers=16"],
    ),
    (
        f"{GSD_SEVEN} {ROLLOUT}.log_prob_use_dynamic_bsz=false",
        "workers require the same value",
        [f"{ROLLOUT}.log_prob_use_dynamic_bsz=true"],
    ),
    (
        f"{GSD_SEVEN} algo=gsd algorithm.adv_estimator=grpo",
        "does not read it",
        ["algorithm.adv_estimator=gsd", "~algorithm.adv_estimator"],
    ),
    (
        f"{SEVEN} {ACTOR}.ppo_mini_batch_size=3 {ROLLOUT}.n=5",
        "do not divide evenly",
        [f"{ACTOR}.ppo_mini_batch_size=8"],
    ),
    (
        f"{SEVEN} trainer.n_gpus_per_node=7 data.train_batch_size=1024 {ACTOR}.ppo_mini_batch_size=128 {ROLLOUT}.n=8",
        "and data.train_batch_size=1008",
        [f"{ACTOR}.ppo_mini_batch_size=126 data.train_batch_size=1008"],
    ),
    (
        f"{SEVEN} {ACTOR}.use_dynamic_bsz=false {ACTOR}.ppo_micro_batch_size_per_gpu=3",
        "do not divide into micro-batches",
        [f"{ACTOR}.ppo_micro_batch_size_per_gpu=2"],
    ),
    (
        f"{GSD_SEVEN} {ACTOR}.use_dynamic_bsz=false {ACTOR}.ppo_micro_batch_size_per_gpu=2 "
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=3",
        "rows of a step, which do not divide",
        [f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=2"],
    ),
    (
        f"{GSD_SEVEN} {ACTOR}.use_kl_loss=true actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false "
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=3",
        "rows of a step, which do not divide",
        ["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2"],
    ),
    (
        f"{SEVEN} {ROLLOUT}.tensor_model_parallel_size=8",
        "do not divide among",
        [f"{ROLLOUT}.tensor_model_parallel_size=4"],
    ),
    (f"{SEVEN} {ATTENTION}=flash_attention_2 {OWN_ULYSSES}=8", "do not divide among", [f"{OWN_ULYSSES}=4"]),
    (f"{SEVEN} {ATTENTION}=flash_attention_2 {ULYSSES}=8", "do not divide among", [f"{ULYSSES}=4"]),
    (
        f"{SEVEN} {ROLLOUT}.max_model_len=8192",
        "does not start with more",
        [f"{ROLLOUT}.max_model_len=4096", f"{ROLLOUT}.max_model_len=null"],
    ),
    (
        f"{SEVEN} {ROLLOUT}.tensor_model_parallel_size=3",
        "do not divide into replicas",
        [f"{ROLLOUT}.tensor_model_parallel_size=2"],
    ),
    # lora.py
    (f"{LORA} {MODEL}.lora_rank=big", "a rank is an integer", [f"{MODEL}.lora_rank=0", f"{MODEL}.lora_rank=32"]),
    (f"{LORA} {MODEL}.lora_rank=600", "ranks up to", [f"{MODEL}.lora_rank=512", f"{MODEL}.lora.merge=true"]),
    (
        f"{LORA} {ROLLOUT}.layered_summon=true {ROLLOUT}.load_format=dummy",
        "cannot send the base",
        [f"{ROLLOUT}.load_format=safetensors"],
    ),
    (f"{LORA} {MODE}=gsd_separate_async", "only the base weights", [f"{MODEL}.lora.merge=true", f"{MODE}=gsd_sync"]),
    (
        f"{LORA} {MODEL}.lora_rank=0 {MODEL}.lora.rank=8",
        "only Megatron reads it. FSDP would",
        [f"{MODEL}.lora_rank=8 {MODEL}.lora.rank=0"],
    ),
    (
        f"{LORA} {MODEL}.lora_adapter_path={{files}}/adapter {MODEL}.lora_rank=0",
        "only if lora_rank is above",
        [f"{MODEL}.lora_rank=8"],
    ),
    (f"{LORA} {MODEL}.lora.alpha=8", "has no effect: only Megatron", [f"~{MODEL}.lora.alpha {MODEL}.lora_alpha=8"]),
    (f"{LORA} {MODEL}.lora_rank=0 {MODEL}.lora_alpha=8", "no adapter is trained", [f"{MODEL}.lora_rank=32"]),
    (
        f"{LORA} {MODEL}.lora_adapter_path={{files}}/adapter {MODEL}.lora_rank=16",
        "the adapter has rank",
        [f"{MODEL}.lora_rank=8"],
    ),
    (
        f"{LORA} {MODEL}.lora_adapter_path={{files}}/adapter {MODEL}.lora_rank=8 {MODEL}.lora_alpha=8",
        "has its own",
        [f"~{MODEL}.lora_alpha"],
    ),
    (
        f"{LORA} {MODEL}.lora_adapter_path={{files}}/dora {MODEL}.lora_rank=8",
        "does not support",
        [f"{MODEL}.lora_adapter_path={{files}}/adapter"],
    ),
    (
        f"{LORA} {MODEL}.target_modules=[q_proj,lm_head]",
        "drops the adapter of these",
        [f"{MODEL}.target_modules=[q_proj]", f"{MODEL}.lora.merge=true"],
    ),
    (f"{LORA} +{MODEL}.target_parameters=[a]", "adapters of single", [f"{MODEL}.lora.merge=true"]),
    # memory.py
    (
        f"{SEVEN} hardware.gpu_memory_gib=80GB",
        "not a number above 0",
        ["hardware.gpu_memory_gib=80", "hardware.gpu_memory_gib=null"],
    ),
    (
        f"{SEVEN} data.max_response_length=40000 {ACTOR}.ppo_max_token_len_per_gpu=60000",
        "supports 4096",
        ["data.max_response_length=2048 ~{ACTOR}.ppo_max_token_len_per_gpu"],
    ),
    (
        f"{SEVEN} {ACTOR}.ppo_max_token_len_per_gpu=100",
        "does not fit into a micro-batch",
        [f"{ACTOR}.ppo_max_token_len_per_gpu=4096"],
    ),
    (
        f"{SEVEN} trainer.n_gpus_per_node=16",
        "has only 8 GPUs",
        ["trainer.n_gpus_per_node=8", "~trainer.n_gpus_per_node hardware=multi_node"],
    ),
    (f"{SEVEN} trainer.nnodes=2", "has only 8 GPUs", ["hardware.nodes=2", "~trainer.nnodes hardware=multi_node"]),
    (
        f"{SEVEN} {ROLLOUT}.max_model_len=100",
        "verl cuts responses there",
        [f"{ROLLOUT}.max_model_len=4096", f"{ROLLOUT}.max_model_len=null"],
    ),
    (
        f"recipe=gvpo/llama_3.1_8b_instruct hardware=8xa100_80g {ROLLOUT}.gpu_memory_utilization=0.3",
        "without which vLLM does not start",
        [
            f"{ROLLOUT}.gpu_memory_utilization=0.7",
            f"{ROLLOUT}.max_model_len=4096",
            f"{ROLLOUT}.tensor_model_parallel_size=2",
        ],
    ),
    (
        f"{LARGE} {ACTOR}.fsdp_config.offload_policy=false hardware.gpu_memory_gib=190",
        "in addition to these",
        [
            f"{ROLLOUT}.gpu_memory_utilization=0.4",
            f"{ACTOR}.fsdp_config.param_offload=true {ACTOR}.fsdp_config.optimizer_offload=true",
        ],
    ),
    (
        f"{LARGE} {ACTOR}.fsdp_config.offload_policy=false",
        "an update needs about",
        [f"{ACTOR}.fsdp_config.offload_policy=true {ACTOR}.strategy=fsdp2", "hardware.gpu_memory_gib=null"],
    ),
    (
        f"{SEVEN} {ACTOR}.ppo_max_token_len_per_gpu=65536",
        "an update needs about",
        [f"{ACTOR}.ppo_max_token_len_per_gpu=16384", "hardware.gpu_memory_gib=null"],
    ),
    (
        f"{SEVEN} {ACTOR}.ppo_max_token_len_per_gpu=32768",
        "the update may not fit",
        [f"{ACTOR}.ppo_max_token_len_per_gpu=16384"],
    ),
    (f"{SEVEN} {MODEL}.use_remove_padding=false", "does not count the padding", [f"{MODEL}.use_remove_padding=true"]),
    (
        f"{SEVEN} {ROLLOUT}.gpu_memory_utilization=0.22",
        "at the same time",
        [f"{ROLLOUT}.gpu_memory_utilization=0.7", f"{ROLLOUT}.tensor_model_parallel_size=2"],
    ),
    # audit.py
    (f"{ROLLOUT}.n=1", "the policy learns nothing", [f"{ROLLOUT}.n=2"]),
    (
        f"algo=dr_grpo {GSD}.alpha=1",
        "belongs to Dr. GRPO",
        [f"{GSD}.alpha=0", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"],
    ),
    (f"algo=dr_grpo {ACTOR}.loss_scale_factor=null", "longest response", [f"{ACTOR}.loss_scale_factor=256"]),
    (
        f"algo=grpo data.train_batch_size=30 {ACTOR}.ppo_mini_batch_size=16",
        "which are no whole mini-batches",
        [f"{ACTOR}.ppo_mini_batch_size=15", "data.train_batch_size=16"],
    ),
    (
        f"algo=gsd {GSD}.alpha=1.5 {VERIFIER}=mine.py",
        "floor",
        [
            f"{GSD}.alpha=1 {ACTOR}.loss_agg_mode=seq-mean-token-mean",
            f"{GSD}.alpha=0.9",
            f"{VERIFIER}=pkg://verl_gsd.tasks.maths",
        ],
    ),
    (
        "algorithm.use_kl_in_reward=true",
        "minus a KL penalty",
        [f"algorithm.use_kl_in_reward=false {ACTOR}.use_kl_loss=true"],
    ),
    (f"algo=dapo {FILTER}.metric=reward", "compares the rewards", [f"{FILTER}.metric=acc"]),
    (f"algo=dapo {FILTER}.metric=score", "before a penalty", [f"{FILTER}.metric=acc"]),
    ("algo=dapo task=arithmetic_graded", "evicts groups whose verdicts agree", [f"{FILTER}.metric=score"]),
    (
        "algo=dapo silent_groups=left_out",
        "algorithm.gsd.silent_groups with",
        ["silent_groups=counted", f"{FILTER}.enable=false"],
    ),
    (f"algo=dapo {FILTER}.metric=format", "a value of this name for every", [f"{FILTER}.metric=acc"]),
    (f"algo=dapo {VERIFIER}=null", "verl's own scorers", [f"{VERIFIER}=pkg://verl_gsd.tasks.maths"]),
    # sizes_in_data.py
    (
        f"{TRAIN}={{files}}/few.parquet data.shuffle=false data.train_batch_size=2 {ROLLOUT}.n=8",
        "requests",
        [f"{ROLLOUT}.n=4"],
    ),
    (
        f"{SIZES} data.shuffle=false {MODE}=gsd_colocate_async",
        "trainer_mode=gsd_colocate_async with column",
        [f"{MODE}=gsd_sync"],
    ),
    (
        f"{SIZES} data.shuffle=false {FILTER}.enable=true {FILTER}.metric=acc",
        "enable=true with column",
        [f"{FILTER}.enable=false ~{FILTER}.metric"],
    ),
    (
        f"{TRAIN}={{files}}/sizes.parquet data.train_batch_size=2 {ROLLOUT}.n=8 sampler=disagreement",
        "sampler with column",
        ["sampler=uniform data.shuffle=false", f"~sampler budget=adaptive {TRAIN}={{tiny}}/train.parquet"],
    ),
    (
        f"{TRAIN}={{files}}/sizes.parquet data.train_batch_size=2 {ROLLOUT}.n=8",
        "only on average",
        ["data.shuffle=false"],
    ),
    # algorithms
    (
        f"{LOSS}.loss_mode=dagrpo",
        "demonstrations need both",
        ["~{LOSS}.loss_mode algo=dagrpo", "~{LOSS}.loss_mode algo=dagrpo_anchors"],
    ),
    (f"algo=dagrpo_mask {DAGRPO}.delta=-.inf", "no score is ever used", [f"{DAGRPO}.delta=2", f"{DAGRPO}.judge=null"]),
    (
        f"algo=dagrpo_anchors {DAGRPO}.delta=2",
        "there are no scores",
        [f"{DAGRPO}.delta=-.inf", f"~{DAGRPO}.delta algo=dagrpo_mask"],
    ),
    (
        f"algo=dagrpo_mask +{DAGRPO}.probe_every=2 hardware=8xa100_80g {ULYSSES}=2 {ATTENTION}=flash_attention_2",
        "the probe needs",
        [f"{DAGRPO}.probe_every=null"],
    ),
    (
        f"algo=dagrpo_mask {DAGRPO}.judge.cache=s3://a/b",
        "the cache is a local file",
        [f"{DAGRPO}.judge.cache={{files}}/cache", f"{DAGRPO}.judge.cache=null"],
    ),
    (
        f"algo=dagrpo_mask {DAGRPO}.judge.cache={{files}}",
        "cannot write a file there",
        [f"{DAGRPO}.judge.cache={{files}}/cache", f"{DAGRPO}.judge.cache=null"],
    ),
    (
        f"algo=dagrpo_mask {DAGRPO}.judge.scorer=reward_model {DAGRPO}.judge.base_url=http://localhost:1/v1",
        "cannot be scored while",
        [USE_MODEL, f"{DAGRPO}.judge.scorer=openai"],
    ),
    (f"algo=dagrpo_mask {DAGRPO}.delta=11", "scores range from 0", [f"{DAGRPO}.delta=10", f"{DAGRPO}.delta=-9.5"]),
    (
        f"algo=dagrpo_anchors {DAGRPO}.demonstrations.per_group=8 {ROLLOUT}.n=8",
        "no response of the policy",
        [f"{DAGRPO}.demonstrations.per_group=7"],
    ),
    (
        f"{EXPERT} {DAGRPO}.demonstrations.column=nope",
        "has no such column",
        [f"{DAGRPO}.demonstrations.column=data_source"],
    ),
    (
        f"{EXPERT} {DAGRPO}.demonstrations.column=reward_model",
        "has the type",
        [f"{DAGRPO}.demonstrations.column=data_source"],
    ),
    (
        f"algo=gvpo {ACTOR}.ppo_mini_batch_size=64 data.train_batch_size=64",
        "each step has one update",
        [f"{ACTOR}.ppo_mini_batch_size=16"],
    ),
    (f"algo=gvpo {ROLLOUT}.top_p=0.9 {ROLLOUT}.top_k=5", "single optimum", [f"{ROLLOUT}.top_p=1 {ROLLOUT}.top_k=-1"]),
    (
        f"algo=gvpo {GVPO}.history_fraction=0.25 trainer.total_epochs=1",
        "no prompt has earlier",
        ["trainer.total_epochs=2", f"{GVPO}.history_fraction=0"],
    ),
    (f"algo=gvpo {LOSS}.var=false", "if either term was left out", [f"{LOSS}.var=true"]),
    (f"{LOSS}.loss_mode=gvpo", "GVPO needs both", ["~{LOSS}.loss_mode algo=gvpo"]),
    (
        f"algo=gvpo {ACTOR}.use_kl_loss=true {ACTOR}.kl_loss_coef=0.1",
        "a second one moves",
        [f"{ACTOR}.use_kl_loss=false ~{ACTOR}.kl_loss_coef", f"{GVPO}.allow_second_kl=true"],
    ),
    (
        f"algo=gvpo {LOSS}.reference=ref {ACTOR}.kl_loss_coef=0.1",
        "a second one moves",
        [f"{ACTOR}.kl_loss_coef=0", f"{GVPO}.allow_second_kl=true"],
    ),
    (
        f"algo=gvpo {SIXTEEN_ROWS}=7",
        "Set it to a divisor",
        [
            f"{ACTOR}.ppo_micro_batch_size_per_gpu=8",
            f"{ACTOR}.use_dynamic_bsz=true ~{ACTOR}.ppo_micro_batch_size_per_gpu",
        ],
    ),
    (
        f"algo=gvpo {GVPO}.grouping=whole {ROLLOUT}.n=8 {SIXTEEN_ROWS}=4",
        "holds whole groups",
        [f"{ACTOR}.ppo_micro_batch_size_per_gpu=8", f"{GVPO}.grouping=auto"],
    ),
    (
        f"{SEVEN} {GVPO}.grouping=whole {ROLLOUT}.n=8 {ACTOR}.ppo_mini_batch_size=20",
        "share its groups evenly",
        [f"{ACTOR}.ppo_mini_batch_size=24", f"{GVPO}.grouping=auto"],
    ),
    (
        f"algo=gvpo {GVPO}.grouping=whole {SIZES} {ACTOR}.ppo_mini_batch_size=1",
        "do not fit into micro-batches",
        [f"{GVPO}.grouping=prepass"],
    ),
    (
        f"algo=gvpo {GVPO}.history_fraction=0.25 trainer.total_epochs=2 {ROLLOUT}.n=1",
        "no room for an earlier",
        [f"{ROLLOUT}.n=2"],
    ),
    (
        f"algo=gvpo {GVPO}.history_fraction=0.05 trainer.total_epochs=2 {ROLLOUT}.n=8",
        "rounds to none",
        [f"{GVPO}.history_fraction=0.0625", f"{GVPO}.history_fraction=0"],
    ),
    (f"budget=adaptive {BUDGET}.minimum=8 {ROLLOUT}.n=8", "must lie between", [f"{BUDGET}.minimum=7"]),
    (f"budget=adaptive {BUDGET}.maximum=8 {ROLLOUT}.n=8", "must lie between", [f"{BUDGET}.maximum=9"]),
    (
        f"budget=adaptive {TRAIN}={{files}}/sizes.parquet data.train_batch_size=2 data.shuffle=false",
        "sets this column itself",
        ["budget=uniform", f"{TRAIN}={{tiny}}/train.parquet"],
    ),
    (
        f"budget=adaptive sampler=disagreement {SAMPLER}.half_life=7",
        "share one memory",
        [f"{BUDGET}.half_life=7", f"~{SAMPLER}.half_life"],
    ),
    (
        "budget=adaptive algorithm.use_kl_in_reward=true",
        "algorithm.gsd.budget does not work with it",
        [
            f"algorithm.use_kl_in_reward=false {ACTOR}.use_kl_loss=true",
            "budget=uniform",
            f"{GSD}.alpha=0",
        ],
    ),
    (
        "budget=adaptive trainer.total_epochs=1",
        "all prompts get the same number",
        ["trainer.total_epochs=2", "budget=uniform"],
    ),
]

#: A text of a message that appears after a remedy -> the text with which the first message says so.
ANNOUNCED = {"compares the rewards of a group": "Use it only if rewards have no term for length or format"}
#: The function of a message that has no case, or the beginning of its text -> why.
UNTRIED = {
    "conflicts.py:check_conflicts": "test_conflicts.py follows the fix of every conflict",
    "unused_keys.py:check_unused_keys": "test_a_reason_for_an_unused_key_names_what_helps follows every reason",
    "data_files.py:check_rows": "the remedy is another file (test_data_files.py)",
    "data_sources.py:check_prepared_verifier": "the remedy is data= (test_data_sources.py)",
    "lora.py:check_lora:": "the case of Megatron (test_lora.py) needs verl's files for it",
    "memory.py:estimate:": "warnings about the machine's memory and CPU (test_memory.py), and lines that only describe",
    "verls_command.py:": "they have no line (test_verls_command.py)",
    "memory.py:_check_context_of_vllm": "the remedy is a copy of the model (test_memory.py)",
    "memory.py:_check_rollout": "a reward model on the policy's GPUs, only in verl's own modes (test_memory.py)",
    "memory.py:_check_reward_model": "as memory.py:_check_rollout",
    "memory.py:_estimate_reward_model": "as memory.py:_check_rollout",
    "parallelism.py:check_flash_attention": "depends on whether flash-attn is installed (test_attention.py)",
    "parallelism.py:check_model_attention": "the remedy for gpt_oss is to install flash-attn",
    "sizes_in_data.py:dataset_group_sizes": "one of the lines only describes",
    "resumes.py:": "needs checkpoints of several attempts (test_resuming.py follows the remedy)",
    "steps_left.py:finished": "needs a checkpoint of a run that is finished",
    "validate.py:check_accelerators": "depends on the machine (test_gpus.py)",
    "validate.py:check_disk_space": "depends on the machine's disks (test_validation.py)",
    "validate.py:check_platform": "depends on the environment (test_gpus.py)",
    "validate.py:_check_model_files": "the remedy is another model (tests/contract/test_model_files.py)",
    "with_verl.py:": "needs verl (tests/contract)",
    "engines.py:check_engine_installed": "the remedy is to install Megatron (test_engines.py)",
    "checks.py:check_distilled_judge": "needs an encoder (tests/unit/judge/test_distilled.py)",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_task):
    """Folders by their name in CASES."""
    files = tmp_path_factory.mktemp("files")
    for name in ("a.txt", "text.parquet"):
        (files / name).write_text("text")
    for name in ("[a].parquet", "a.parquet"):
        shutil.copy(f"{tiny_task}/train.parquet", files / name)
    table = pq.read_table(files / "a.parquet")
    pq.write_table(
        table.rename_columns([{"prompt": "question"}.get(name, name) for name in table.column_names]),
        files / "question.parquet",
    )
    for name, source in (("unknown", "mine"), ("code", "apps")):
        position = table.column_names.index("data_source")
        pq.write_table(
            table.set_column(position, "data_source", pa.array([source] * len(table))), files / f"{name}.parquet"
        )
    for name, sizes in (("sizes", [2, 14, 10, 6]), ("few", [2, 6, 4, 4])):
        pq.write_table(table[:4].append_column("__rollout_n__", pa.array(sizes)), files / f"{name}.parquet")
    for name, content in (
        ("qwen2_vl", {"model_type": "qwen2_vl"}),
        ("gemma2", {"model_type": "gemma2", "attn_logit_softcapping": 50.0}),
    ):
        (files / name).mkdir()
        (files / name / "config.json").write_text(json.dumps(content))
    for name, dora in (("adapter", False), ("dora", True)):
        (files / name).mkdir()
        (files / name / "adapter_config.json").write_text(json.dumps({"r": 8, "use_dora": dora}))
    return {"tiny": str(tiny_task), "files": str(files)}


def name_of(word):
    return word.lstrip("+~").partition("=")[0]


def with_base(words):
    """The words of a case, and those that a line needs besides."""
    names = {name_of(word) for word in words}
    base = [] if "recipe" in names else ["algo=grpo", "task=arithmetic", "task.directory={tiny}"]
    base += ["hardware=cpu"]
    return [*(word for word in base if name_of(word) not in names), *words]


def followed(words, remedy):
    """``words`` with those of ``remedy`` in place of words for the same key."""
    changes = remedy.format(LOSS=LOSS, ACTOR=ACTOR, tiny="{tiny}", files="{files}").split()
    names = {name_of(change) for change in changes}
    return [*(word for word in words if name_of(word) not in names), *(word for word in changes if word[0] != "~")]


def messages(compose_fast, words):
    """What a line gets told: problems, or else warnings, by all checks that do not depend on this environment."""
    config, line = compose_fast(*words)
    engine = list(check_engine(config, line))
    checks = [check for check in validate.CHECKS if check not in validate.OF_THIS_ENVIRONMENT]
    problems = engine or [problem for check in checks for problem in check(config, line)]
    if engine or re.search("not a whole number|wrong type", " ".join(problems)):
        return problems  # what follows needs numbers
    warnings = [*estimate(config), *lora_warnings(config), *dataset_group_sizes(config)]
    return [*problems, *audit(config).warnings, *(text for text in warnings if text.startswith("warning: "))]


@pytest.fixture(scope="module")
def told(compose_fast, places):
    def told(words):
        return messages(
            compose_fast, [word.format(**places) if "{" in word and "${" not in word else word for word in words]
        )

    return told


@pytest.fixture(autouse=True)
def _a_variable_with_a_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "swordfish")


@pytest.mark.parametrize(("line", "text", "remedies"), CASES, ids=[f"{case[1]}" for case in CASES])
def test_a_remedy_that_is_followed_ends_its_message(told, keys, line, text, remedies):
    words = line.split()
    before = told(with_base(words))
    (message,) = (message for message in before if text in message)
    for remedy in remedies:
        new_words = followed(words, remedy)
        for word in set(new_words) - set(words):
            name, value = name_of(word), word.partition("=")[2]
            is_named = name.rpartition(".")[2] in message or (name == TRAIN and "data that" in message)
            assert is_named, f"the message does not name {name}"
            if name in groups.GROUPS:
                assert value in groups.choices(name)
            else:
                assert word.startswith("+") or name in keys, f"{word} needs a plus"
        after = told(with_base(new_words))
        assert not [other for other in after if text in other], remedy
        new = set(after) - set(before)
        assert all(
            any(next_text in other and said in message for next_text, said in ANNOUNCED.items()) for other in new
        ), (remedy, new)
    tried = {word for remedy in remedies for word in followed([], remedy)}
    for name, value in settings_advised(message):
        is_tried = any(
            (name_of(word) == name or name_of(word).endswith(f".{name}"))
            and (not value or word.partition("=")[2] == value)
            for word in tried
        )
        assert is_tried, f"no remedy tries {name}={value}"


ADVICE = re.compile(r"(?<=[.:] )(?:Together|Set|Use|Add|Otherwise set|Rename|To skip)\b.*")


def settings_advised(message):
    """(name, value) of the settings that a message tells the user to make."""
    advice = ADVICE.search(message)
    found = re.findall(r"(?<![\w./:])\+*([A-Za-z_][\w.]*)=([\w./:{}-]*)", advice[0] if advice else "")
    return [(name, value.rstrip(".")) for name, value in found]


@pytest.fixture(scope="module")
def keys(configs_parsed_once):
    return known_keys()


def template(text):
    """A pattern of the messages that a text of the source stands for. A message may be within another one."""
    return re.compile(".*?".join(map(re.escape, text.strip(HOLE).split(HOLE))), re.DOTALL)


def test_every_message_has_a_case_or_a_reason(told):
    found = {message for line, text, _ in CASES for message in told(with_base(line.split())) if text in message}
    missing, reasons = [], dict.fromkeys(UNTRIED, False)
    for path in FILES:
        for of in yielded(path):
            if any(name in of.where for name in DESCRIBE):
                continue
            is_tried = any(template(of.text).search(message) for message in found)
            covered_by = [name for name in UNTRIED if name in of.where or of.text.startswith(name)]
            reasons |= dict.fromkeys(covered_by, True)
            if not is_tried and not covered_by:
                missing.append(f"{of.where} {of.text[:80]}")
    assert "\n".join(missing) == ""
    assert all(reasons.values()), "a reason for a message that does not exist"


UNUSED = [*unused_keys._of_extensions(), *unused_keys.KEYS]
#: Lines of which at least one leaves a key without effect.
LINES_OF_UNUSED = [
    *([f"algo={name}"] for name in groups.choices("algo")),
    ["algorithm.adv_estimator=grpo"],
    [f"{ACTOR}.optim.clip_grad=0.5"],
    [f"{MODE}=sync"],
    ["sampler=disagreement"],
    [f"{FILTER}.enable=false"],
    ["algo=dagrpo", f"{DAGRPO}.judge.scorer=distilled"],
    ["algo=dagrpo", f"{DAGRPO}.judge.scorer=reward_model"],
    ["algo=dagrpo", f"{DAGRPO}.judge.cache=null"],
    ["algo=dagrpo_anchors", f"{DAGRPO}.demonstrations.source=self"],
    ["algo=dagrpo_anchors", f"{LOSS}.ratio=one"],
    ["algo=gvpo", f"{GVPO}.allow_second_kl=true"],
    ["algo=gvpo", f"{ACTOR}.use_kl_loss=true"],
    [f"{ACTOR}.use_dynamic_bsz=true"],
    ["model_engine=megatron"],
]


@pytest.mark.parametrize("unused", UNUSED, ids=lambda unused: unused.prefix)
def test_a_reason_for_an_unused_key_names_what_helps(compose_fast, places, keys, unused):
    """If the reason says what to set, the key has an effect then, or the key that is set has one in its place."""

    def composed(words):
        return compose_fast(*(word.format(**places) for word in with_base(words)))

    def is_unused(words):
        config, _ = composed(words)
        section = unused.prefix.rpartition(".")[0]
        return OmegaConf.select(config, section) is not None and unused.unused(config)

    line = next(words for words in LINES_OF_UNUSED if is_unused(words))
    advice = re.search(r"Set (.*)", unused.reason)
    for name, value in re.findall(r"([A-Za-z_][\w.]*)=([\w.-]+)", advice[1] if advice else ""):
        name = next(
            key for key in (name, f"{unused.prefix.rpartition('.')[0]}.{name}") if key in {*keys, *groups.GROUPS}
        )
        words = followed(line, f"{name}={value}")
        config, _ = composed(words)
        other = [of for of in UNUSED if of.has(name) and of.unused(config)]
        assert not unused.unused(config) or not other, f"{name}={value}"
