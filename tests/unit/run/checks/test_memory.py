"""GPU memory compared with values computed by hand, and the configs that are rejected or lead to warnings."""

import json
import re
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_gsd.planning.memory import GIB, SHAPES, Shape, kv_cache_gib, states_gib, update_gib, weights_gib
from verl_gsd.run.checks import memory
from verl_gsd.run.checks.parallelism import check_layout
from verl_gsd.run.compose import Line

#: h 8, i 16, 2 heads and 1 KV head of 4, V 10: of a layer, q and o 2 x 8 x 8, k and v 2 x 8 x 4, MLP 3 x 8 x 16, norms
#: 16.
TINY = Shape(2, 8, 16, 2, 1, 4, 10, True, 32)
SEVEN = SHAPES["Qwen/Qwen2.5-Math-7B"]


def test_parameters_by_hand():
    assert TINY.layer_parameters == 128 + 64 + 384 + 16 == 592
    assert TINY.parameters == 80 + 2 * 592 + 8
    untied = Shape(2, 8, 16, 2, 1, 4, 10, False, 32)
    assert untied.parameters == TINY.parameters + 80


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("Qwen/Qwen3-4B-Base", 4_022_468_096),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_the_recipes_models_have_as_many_parameters_as_published(name, published):
    """Independent of the shapes: biases and norms of queries and keys are left out."""
    assert SHAPES[name].parameters == pytest.approx(published, rel=1e-4)
    assert SHAPES[name].parameters <= published


def test_memory_by_hand():
    parts = update_gib(TINY, 4, 100, states=states_gib(TINY, 4))
    assert {name: value * GIB for name, value in parts.items() if name != "overhead"} == pytest.approx(
        {
            "states": 16 * 1272 / 4,
            "gathered": 12 * 592,
            "activations": 100 * (2 * 8 * 2 + 4 * (64 + 64)),
            "logits": 8 * 100 * 10,
        }
    )
    assert update_gib(TINY, 4, 100, states=0, logits=False)["logits"] == 0
    assert update_gib(TINY, 4, 100, states=0, trained=False)["gathered"] * GIB == pytest.approx(4 * 592)
    assert states_gib(TINY, 4, copies=3, width=2) * GIB == pytest.approx(6 * 1272 / 4)
    assert weights_gib(TINY, 2) * GIB == pytest.approx(1272)
    assert kv_cache_gib(TINY, 100, 1) * GIB == pytest.approx(4 * 2 * 4 * 100)
    assert kv_cache_gib(TINY, 100, 4) == kv_cache_gib(TINY, 100, 1), "one KV head is copied, not shared"


def test_memory_of_a_known_model():
    shape = SHAPES["Qwen/Qwen2.5-Math-7B"]
    parts = update_gib(shape, 8, 16384, states=states_gib(shape, 8))
    assert parts["logits"] == 152064 / 8192 == 18.5625
    assert parts["states"] == pytest.approx(14.18, abs=0.01)
    assert kv_cache_gib(shape, 1024, 1) * 1024 == pytest.approx(56), "56 KiB a token"


def test_shapes_are_read_from_config_json():
    llama = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32,
    }
    assert Shape.of(llama) == TINY
    assert Shape.of({"num_attention_heads": 2}) is None
    assert Shape.of(llama | {"num_experts": 8}) is None, "not dense"


@pytest.fixture
def sized(compose_fast):
    def sized(recipe, hardware, **keys):
        config, _ = compose_fast(f"recipe={recipe}", f"hardware={hardware}")
        # The choice of this machine is none of what is tested here.
        OmegaConf.update(config, "actor_rollout_ref.model.override_config.attn_implementation", "sdpa", force_add=True)
        for key, value in keys.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        return config

    return sized


ACTOR, ROLLOUT = "actor_rollout_ref__actor__", "actor_rollout_ref__rollout__"
OFFLOADED = f"{ACTOR}fsdp_config__offload_policy"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"trainer__n_gpus_per_node": 9}, r"n_gpus_per_node=9 .*hardware=8xa100_80g .*8 GPUs"),
        ({"data__max_response_length": 3073}, r"max_response_length=3073: .*4097 .*Qwen/Qwen2\.5-Math-7B .*4096"),
        ({f"{ACTOR}ppo_max_token_len_per_gpu": 4000}, r"ppo_max_token_len_per_gpu=4000: .*4096"),
        (
            {f"{ACTOR}ppo_max_token_len_per_gpu": 65536},
            r"13\d GiB .*74\.2 logits.*ppo_max_token_len_per_gpu below 65536, 4096",
        ),
        (
            {f"{ACTOR}use_dynamic_bsz": False, f"{ACTOR}ppo_micro_batch_size_per_gpu": 16},
            r"65536 tokens.*ppo_micro_batch_size_per_gpu below 16",
        ),
        ({f"{ROLLOUT}gpu_memory_utilization": 0.15}, r"gpu_memory_utilization=0\.15 .*11\.8 GiB.* 14\.2"),
        ({f"{ROLLOUT}gpu_memory_utilization": 0.9}, r"gpu_memory_utilization=0\.9 .* 71 GiB, .* 11 GiB on the GPU"),
        ({f"{ROLLOUT}max_model_len": 2000}, r"max_model_len=2000: .*4096"),
        ({f"{ROLLOUT}free_cache_engine": False}, r"55\.3 .*rollout\.free_cache_engine=true"),
    ],
)
def test_configs_that_do_not_fit_are_rejected_with_the_fix(sized, keys, said):
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **keys)
    (problem,) = memory.check_memory(config, Line({}, ()))
    assert re.search(said, problem), problem


def test_gpus_beside_the_trainers_are_named_by_the_key_that_sets_them(sized):
    pool = {"actor_rollout_ref__rollout__nnodes": 1, "actor_rollout_ref__rollout__n_gpus_per_node": 2}
    apart = {"trainer__v1__trainer_mode": "gsd_separate_async", **pool}
    rollout = "with 2 more GPUs for actor_rollout_ref.rollout (actor_rollout_ref.rollout.n_gpus_per_node)"
    reward = "with 3 more GPUs for reward.reward_model (reward.reward_model.n_gpus_per_node)"
    own_pool = {f"reward__reward_model__{name}": True for name in ("enable", "enable_resource_pool")}
    own_pool |= {"reward__reward_model__nnodes": 1, "reward__reward_model__n_gpus_per_node": 3}
    for keys, named, others in ((apart, rollout, reward), (own_pool, reward, rollout)):
        (problem,) = memory.check_memory(sized("hadw/qwen3_4b_base", "8xa100_80g", **keys), Line({}, ()))
        assert named in problem and others not in problem
    (problem,) = memory.check_memory(sized("hadw/qwen3_4b_base", "8xa100_80g", **apart, **own_pool), Line({}, ()))
    assert rollout in problem and reward in problem


REWARDS = "reward__reward_model__"
COLOCATED = {f"{REWARDS}enable": True, f"{REWARDS}model_path": "Qwen/Qwen2.5-7B", "trainer__v1__trainer_mode": "sync"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        # 12 bytes of 7.6e9 / 8 are 10.6 GiB, and .9 x 79 are 71.1.
        (
            {f"{REWARDS}rollout__gpu_memory_utilization": 0.9},
            r"^reward\.reward_model\.rollout\.gpu_memory_utilization=0\.9 .*gets 71 GiB.* need 11 GiB\. Set a smaller",
        ),
        (
            {f"{REWARDS}rollout__free_cache_engine": False, f"{REWARDS}rollout__gpu_memory_utilization": 0.2},
            r"gets 16 GiB.* need 11 GiB, and the vLLM of the policy 55 GiB\. Set reward\..*free_cache_engine=true, ",
        ),
        # 7.1 GiB of weights and 131,072 tokens of 28 KiB on each of two GPUs.
        (
            {f"{REWARDS}rollout__gpu_memory_utilization": 0.1},
            r"gets 7\.9 GiB.* need 7\.1 GiB.*131072 tokens.* 3\.5 GiB",
        ),
    ],
)
def test_a_reward_model_that_does_not_fit_beside_the_trainer_is_rejected(sized, keys, said):
    assert list(memory.check_memory(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **COLOCATED), Line({}, ()))) == []
    (problem,) = memory.check_memory(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **COLOCATED, **keys), Line({}, ()))
    assert re.search(said, problem), problem
    apart = {f"{REWARDS}enable_resource_pool": True, f"{REWARDS}nnodes": 1, f"{REWARDS}n_gpus_per_node": 2}
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **COLOCATED, **keys, **apart, trainer__n_gpus_per_node=4)
    problems = list(memory.check_memory(config, Line({}, ())))
    assert bool(problems) == ("131072" in said), "on GPUs of its own only its weights must fit"


def test_the_share_of_a_reward_model_is_part_of_the_estimate(sized):
    known = list(memory.estimate(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **COLOCATED)))
    assert "while the reward model scores, of 79: 40 for the reward model and 11 for weights" in known[1]
    assert not any(line.startswith("warning") for line in known)
    unknown = COLOCATED | {f"{REWARDS}model_path": "someone/new"}
    (warning,) = [
        line
        for line in memory.estimate(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **unknown))
        if line.startswith("warning")
    ]
    assert "model_path=someone/new" in warning and "on 2 GPUs" in warning and "40 GiB per GPU" in warning


def test_offloading_saves_gpu_memory(sized):
    whole = sized("hadw/qwen3_8b_base", "1xh200", **{OFFLOADED: False})
    first, second = memory.check_memory(whole, Line({}, ()))
    assert "122.1 states" in first and "actor_rollout_ref.actor.fsdp_config.offload_policy=true" in first
    assert " 92 GiB on the GPU" in second
    assert list(memory.check_memory(sized("hadw/qwen3_8b_base", "1xh200"), Line({}, ()))) == []


def test_offload_policy_has_no_effect_without_fsdp2(sized):
    parts = memory._update(sized("gsd/qwen2.5_math_7b", "1xh200", **{f"{ACTOR}strategy": "fsdp"}), SEVEN)
    assert parts["states"] == pytest.approx(113.5, abs=0.1)


@pytest.mark.parametrize(
    ("keys", "states", "resident"),
    [
        ({}, 16, 12),
        ({"actor_rollout_ref__model__lora_rank": 32}, 4, 4),
        ({f"{ACTOR}fsdp_config__model_dtype": "bfloat16"}, 8, 6),
        ({f"{ACTOR}fsdp_config__optimizer_offload": True}, 16, 4),
    ],
)
def test_bytes_of_states_per_parameter(sized, keys, states, resident):
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **keys)
    unit = SEVEN.parameters / 8 / GIB
    assert memory._update(config, SEVEN)["states"] == pytest.approx(states * unit)
    assert memory._resident(config, SEVEN) == pytest.approx(resident * unit)


def test_sdpa_needs_more_than_flash_attention(sized):
    """By hand: 2 x 2 x 2 h bytes per packed token; without packing 3 bytes per entry of a row's mask."""
    key = "actor_rollout_ref__model__override_config__attn_implementation"
    flash = memory._update(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **{key: "flash_attention_2"}), SEVEN)
    packed = memory._update(sized("gvpo/qwen2.5_math_7b", "8xa100_80g"), SEVEN)
    assert (packed["activations"] - flash["activations"]) * GIB == pytest.approx(8 * 3584 * 16384)
    padded = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", actor_rollout_ref__model__use_remove_padding=False)
    assert memory._update(padded, SEVEN)["attention mask"] * GIB == pytest.approx(3 * 4 * 4096**2)
    assert "attention mask" not in packed and "attention mask" not in flash
    (warning,) = [line for line in memory.estimate(padded) if line.startswith("warning")]
    assert "use_remove_padding=false" in warning and "use_dynamic_bsz=true" in warning


def test_states_that_do_not_fit_into_this_machines_memory_lead_to_a_warning(sized, monkeypatch):
    """16 bytes of 8.19e9 parameters are 122 GiB. Only hardware=gpu is known to be this machine."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * 2**30))
    config = sized("hadw/qwen3_8b_base", "1xh200")
    assert not any("this machine's memory" in line for line in memory.estimate(config))
    OmegaConf.update(config, "hardware.gpu_name", "H200", force_add=True)
    (warning,) = [line for line in memory.estimate(config) if "this machine's memory" in line]
    assert warning.startswith("warning: ") and "122 GiB" in warning and "it has 64" in warning


def test_optimizer_with_few_threads_leads_to_a_warning(sized):
    """8.65 s per 1e9 parameters and thread: 71 s on one thread for 8.19e9, 4 s on the group's 16."""
    threads = "ray_kwargs__ray_init__runtime_env__env_vars__OMP_NUM_THREADS"
    slow = {threads: "1"}
    (warning,) = [line for line in memory.estimate(sized("hadw/qwen3_8b_base", "1xh200", **slow)) if "OMP_NUM" in line]
    assert warning.startswith("warning: ") and re.search("71 s .* 1 threads", warning)
    assert not any("OMP_NUM" in line for line in memory.estimate(sized("hadw/qwen3_8b_base", "1xh200")))


def test_fused_kernels_make_no_logits(sized):
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", actor_rollout_ref__model__use_fused_kernels=True)
    assert memory._update(config, SEVEN)["logits"] == 0


def test_kv_cache_must_hold_a_sequence_of_the_models_full_context(sized):
    """131,072 tokens of Llama 3.1 8B are 16 GiB, and a GPU's share is 23.7 with 15 of weights."""
    few = {f"{ROLLOUT}gpu_memory_utilization": 0.3}
    (problem,) = memory.check_memory(sized("gvpo/llama_3.1_8b_instruct", "8xa100_80g", **few), Line({}, ()))
    assert re.search(r"131072 tokens.* 16\.0", problem)
    shorter = few | {f"{ROLLOUT}max_model_len": 4096}
    assert list(memory.check_memory(sized("gvpo/llama_3.1_8b_instruct", "8xa100_80g", **shorter), Line({}, ()))) == []


def test_only_with_flash_attn_is_it_advised_to_split_sequences(sized):
    """With SDPA, another check rejects what this advice would say."""
    whole = {f"{ACTOR}ppo_max_token_len_per_gpu": 4096}  # a sequence of the recipe
    config, parts = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **whole), {"states": 1.0, "logits": 9.0}
    assert "ulysses" not in memory._how_to_shrink(config, parts)
    flash = whole | {"actor_rollout_ref__model__override_config__attn_implementation": "flash_attention_2"}
    assert "ulysses" in memory._how_to_shrink(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **flash), parts)


def test_gpu_memory_that_is_not_a_number_is_rejected(sized):
    text = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", hardware__gpu_memory_gib="80GB")
    (problem,) = memory.check_memory(text, Line({}, ()))
    assert problem.startswith("hardware.gpu_memory_gib=80GB: ") and "22 for an L4 of 24 GB" in problem
    for key in ("hardware__gpu_memory_gib", f"{ACTOR}fsdp_config__fsdp_size"):
        assert list(memory.check_memory(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **{key: None}), Line({}, ()))) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({f"{ROLLOUT}tensor_model_parallel_size": 3}, r"tensor_model_parallel_size=3: .* 8"),
        ({f"{ROLLOUT}tensor_model_parallel_size": "two"}, "tensor_model_parallel_size=two: "),
        ({f"{ACTOR}ppo_mini_batch_size": 3}, r"ppo_mini_batch_size=3: .*15 rows, .*8 workers"),
    ],
)
def test_uneven_layouts_are_rejected_for_every_algorithm(sized, keys, said):
    for recipe in ("gvpo/qwen2.5_math_7b", "hadw/qwen3_4b_base"):
        config = sized(recipe, "8xa100_80g", **keys, **{f"{ROLLOUT}n": 5, "trainer__nnodes": 1})
        assert any(re.search(said, problem) for problem in check_layout(config, Line({}, ())))
    assert not list(check_layout(sized("hadw/qwen3_4b_base", "8xa100_80g"), Line({}, ())))


def test_separate_replicas_need_not_divide_the_trainers_accelerators(sized):
    apart = {"trainer__v1__trainer_mode": "gsd_separate_async", f"{ROLLOUT}tensor_model_parallel_size": 3}
    assert not list(check_layout(sized("hadw/qwen3_4b_base", "8xa100_80g", **apart), Line({}, ())))


def test_states_are_sharded_within_a_node(sized):
    parts = [memory._update(sized("gsd/qwen2.5_math_7b", hardware), SEVEN) for hardware in ("8xh800", "multi_node")]
    assert parts[0] == parts[1]


def test_estimate_is_printed_with_warnings_if_memory_is_tight(sized):
    (line,) = memory.estimate(sized("gvpo/qwen2.5_math_7b", "8xa100_80g"))
    # 52.8 of an update; .7 x 79 and 12 x 7.615e9 / 8; (55.3 - 14.2 - 3) / (4096 x 56 KiB)
    assert re.findall(r"\b(53|55|11|174)\b", line) == ["53", "55", "11", "174"]
    tight = list(
        memory.estimate(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **{f"{ACTOR}ppo_max_token_len_per_gpu": 32768}))
    )
    assert re.match(r"warning: .*actor_rollout_ref\.actor\.ppo_max_token_len_per_gpu below 32768", tight[1])
    few = list(
        memory.estimate(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **{f"{ROLLOUT}gpu_memory_utilization": 0.22}))
    )
    assert re.search(r"rollout\.n=5 .*4096 tokens.* 0 ", few[1])


@pytest.mark.parametrize("model", [None, "someone/new"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({f"{ACTOR}ppo_max_token_len_per_gpu": 4000}, [r"actor\.ppo_max_token_len_per_gpu=4000: .*4096 or more"]),
        ({f"{ROLLOUT}max_model_len": 2000}, [r"max_model_len=2000: .*4096"]),
        ({f"{ROLLOUT}log_prob_max_token_len_per_gpu": 3072}, [r"rollout\.log_prob_max_token_len_per_gpu=3072: .*4096"]),
        (
            {"actor_rollout_ref__ref__log_prob_max_token_len_per_gpu": 3072, f"{ACTOR}use_kl_loss": True},
            [r"ref\.log_prob_max_token_len_per_gpu=3072: .*4096"],
        ),
        ({"actor_rollout_ref__ref__log_prob_max_token_len_per_gpu": 3072}, []),  # there is no reference policy
        (
            {
                "actor_rollout_ref__ref__log_prob_max_token_len_per_gpu": 3072,
                f"{ACTOR}use_kl_loss": True,
                "actor_rollout_ref__model__lora_rank": 32,
            },
            [],  # the actor without its adapter is the reference
        ),
        (
            {f"{ROLLOUT}log_prob_max_token_len_per_gpu": 3072, f"{ACTOR}ppo_max_token_len_per_gpu": 2048},
            [r"ppo_max_token_len_per_gpu=2048", r"log_prob_max_token_len_per_gpu=3072"],
        ),
        (
            {
                f"{ACTOR}fsdp_config__ulysses_sequence_parallel_size": 2,
                f"{ACTOR}ppo_max_token_len_per_gpu": 2000,
                f"{ROLLOUT}log_prob_max_token_len_per_gpu": 2048,
            },
            [r"ppo_max_token_len_per_gpu=2000: .*2048 or more"],
        ),
        ({f"{ACTOR}use_dynamic_bsz": False, f"{ROLLOUT}log_prob_max_token_len_per_gpu": 10}, []),
    ],
)
def test_limits_of_lengths_are_checked_without_the_sizes_of_the_model(sized, model, keys, said):
    """verl fails at the first sequence that is longer than a micro-batch, or cuts it."""
    named = {} if model is None else {"actor_rollout_ref__model__path": model}
    problems = list(memory.check_memory(sized("gvpo/qwen2.5_math_7b", "8xa100_80g", **keys, **named), Line({}, ())))
    assert len(problems) == len(said), problems
    for problem, pattern in zip(problems, said, strict=True):
        assert re.search(pattern, problem), problem


def test_the_sizes_of_a_downloaded_model_are_known(sized, tmp_path, monkeypatch):
    """In the layout of the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", actor_rollout_ref__model__path="someone/new")
    assert memory.shape_of(config) is None
    snapshot = tmp_path / "models--someone--new" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--new" / "refs").mkdir()
    (tmp_path / "models--someone--new" / "refs" / "main").write_text("a" * 40)
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    (snapshot / "config.json").write_text(json.dumps(shape | {"vocab_size": 100, "max_position_embeddings": 4000}))
    (problem,) = memory.check_memory(config, Line({}, ()))
    assert "supports 4000" in problem
    key = "actor_rollout_ref.model.override_config.max_position_embeddings"
    OmegaConf.update(config, key, 4096, force_add=True)
    (problem,) = memory.check_memory(config, Line({}, ()))
    assert "vLLM does not see this. It reads 4000 from" in problem
    told = "actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides.max_position_embeddings"
    OmegaConf.update(config, told, 4096, force_add=True)
    assert list(memory.check_memory(config, Line({}, ()))) == []
    OmegaConf.update(config, told.rpartition(".")[0], None)
    for kind, problems in ({"rope_type": "yarn", "factor": 4.0}, 0), ({"rope_type": "default"}, 1):
        scaled = shape | {"vocab_size": 100, "max_position_embeddings": 4000, "rope_parameters": kind}
        (snapshot / "config.json").write_text(json.dumps(scaled))
        assert len(list(memory.check_memory(config, Line({}, ())))) == problems


def test_models_of_unknown_shape_are_not_rejected(sized, tmp_path):
    config = sized("gvpo/qwen2.5_math_7b", "8xa100_80g", actor_rollout_ref__model__path="someone/new")
    assert list(memory.check_memory(config, Line({}, ()))) == []
    assert "someone/new" in next(memory.estimate(config))
    (small,) = memory.estimate(sized("gsd/qwen2.5_math_7b", "cpu"))
    assert re.search(r"7\.6e9 .*hardware=cpu .*task=arithmetic", small)
    OmegaConf.set_struct(config, False)
    del config.hardware
    assert re.match("warning: .*hardware=gpu", next(memory.estimate(config)))
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": "many"}))
    config.actor_rollout_ref.model.path = str(tmp_path)
    assert memory.shape_of(config) is None
