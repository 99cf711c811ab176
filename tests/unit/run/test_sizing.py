"""Which settings of memory are chosen, that they pass the checks of memory, and that keys of the line win."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import config as groups
from verl_gsd.cli import train as command
from verl_gsd.planning.footprint import REWARD_AWAKE, STEP_COPY, TIGHT, TOO_MUCH, Footprint
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.run import sizing
from verl_gsd.run.checks import memory
from verl_gsd.run.checks.parallelism import check_layout
from verl_gsd.run.compose import Line, compose_config, parse_line, resolve
from verl_gsd.run.footprint import footprint_of
from verl_gsd.run.sizing import KEYS, apply_sizing, choose, sizing_lines, what_would_fit

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
FIRST_HOUR = "recipe=start/gsm8k_qwen2.5_0.5b"

pytestmark = pytest.mark.usefixtures("configs_parsed_once")


def footprint(model="7B", gpus=1, gib=79, **fields):
    """2,048 tokens per sequence and 8 responses per prompt."""
    of_all = {"gpus_per_node": gpus, "shards": gpus, "length": 2048, "responses": 8}
    return Footprint(SHAPES[f"Qwen/Qwen2.5-{model}"], gib, **of_all | fields)


def fits(chosen, limit=TOO_MUCH):
    """What check_memory demands, and a cache for a sequence."""
    return (
        sum(chosen.update_parts().values()) <= limit * chosen.memory_gib
        and chosen.share_gib() + chosen.resident_gib() <= chosen.memory_gib
        and chosen.vllm_weights_gib() + chosen.one_sequence_gib() <= chosen.share_gib()
        and chosen.tokens * chosen.sequence_parallel >= chosen.length
        and chosen.cached_sequences() >= 1
    )


MACHINES = {
    "1 x 12 GB": (1, 11),
    "1 x 24 GB": (1, 22),
    "2 x 24 GB": (2, 22),
    "4 x 24 GB": (4, 22),
    "1 x 80 GB": (1, 79),
    "2 x 80 GB": (2, 79),
    "4 x 80 GB": (4, 79),
    "8 x 80 GB": (8, 79),
    "2 nodes of 8 x 80 GB": (8, 79),
}
MODELS = ("0.5B", "1.5B", "3B", "7B", "14B", "32B")


def in_the_table(one):
    chosen = choose(one)
    if chosen is None:
        return "no: " + re.sub(r" \(actor_rollout_ref\.model\.lora_.*?\)", "", ", ".join(sizing.alternatives(one)))
    chosen = chosen.footprint
    place = "host" if chosen.offload_policy else "swap" if chosen.param_offload else "GPU"
    parallel = f", TP {chosen.tensor_parallel}" if chosen.tensor_parallel > 1 else ""
    tight = "" if fits(chosen, TIGHT) else ", tight"
    return f"{place}, {chosen.tokens}{parallel}{tight}"


def computed_table(adapter):
    return {
        machine: [in_the_table(footprint(model, gpus, gib, adapter=adapter)) for model in MODELS]
        for machine, (gpus, gib) in MACHINES.items()
    }


def table_of_the_page(heading):
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8").partition(f"### {heading}\n")[2]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in re.split(r"\n##", page)[0].splitlines()
        if row.startswith("|")
    ]
    assert tuple(rows[0][1:]) == MODELS
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.parametrize(("heading", "adapter"), [("All weights", False), ("LoRA", True)])
def test_the_table_of_the_page_is_what_is_chosen(heading, adapter):
    assert table_of_the_page(heading) == computed_table(adapter)


def _order(cell):
    """Larger is easier to fit."""
    return ("no" not in cell.split(":")[0]) + ("GPU," in cell or "swap" in cell) + ("GPU," in cell)


def test_the_table_is_monotone():
    """A larger model, fewer GPUs or all weights instead of an adapter never fit more easily."""
    full, adapter = computed_table(False), computed_table(True)
    for machine, row in full.items():
        for cells in (row, adapter[machine]):
            ranks = [_order(cell) for cell in cells]
            assert ranks == sorted(ranks, reverse=True), machine
        assert all(_order(one) <= _order(other) for one, other in zip(row, adapter[machine], strict=True)), machine
    for machines in (
        ("1 x 12 GB", "1 x 24 GB", "1 x 80 GB"),
        ("1 x 24 GB", "2 x 24 GB", "4 x 24 GB"),
        ("1 x 80 GB", "2 x 80 GB", "4 x 80 GB", "8 x 80 GB"),
    ):
        for table in (full, adapter):
            for column in range(len(MODELS)):
                ranks = [_order(table[machine][column]) for machine in machines]
                assert ranks == sorted(ranks), (machines, MODELS[column])


@pytest.mark.parametrize("model", MODELS)
def test_what_is_said_to_fit_fits(model):
    """Every alternative is real: the run fits with it, and with the next smaller one it does not."""
    for gpus, gib in MACHINES.values():
        one = footprint(model, gpus, gib)
        said = sizing.alternatives(one) if choose(one) is None else []
        for text in said:
            if "LoRA" in text:
                assert choose(replace(one, adapter=True))
            elif match := re.match(r"(\d+) such GPUs per node", text):
                count = int(match[1])
                assert choose(replace(one, gpus_per_node=count, shards=count))
                assert (
                    count == 2
                    or count // 2 == gpus
                    or not choose(replace(one, gpus_per_node=count // 2, shards=count // 2))
                )
            else:
                assert choose(replace(one, memory_gib=int(re.fullmatch(r"GPUs of (\d+) GiB", text)[1])))
    assert choose(footprint("32B", 1, 11)) is None and sizing.alternatives(footprint("32B", 1, 11)), "some do not fit"
    assert choose(footprint("0.5B", 1, 79)) is not None


def test_by_hand_seven_billion_parameters_on_eight_gpus_stay_there():
    """16 bytes of 7.615e9 / 8 are 14.2 GiB; the peak is 52.3, and vLLM's usual share goes with 10.6 of the trainer."""
    chosen = choose(footprint(gpus=8))
    assert (chosen.footprint.offload_policy, chosen.footprint.tokens, chosen.footprint.utilization) == (
        False,
        16384,
        0.7,
    )
    assert "14.2 GiB per GPU" in chosen.reasons["offload_policy"]
    assert "52.3 of 79 GiB" in chosen.reasons["tokens"]
    assert set(chosen.reasons) == {"offload_policy", "tokens", "tensor_parallel", "utilization"}


def test_by_hand_the_step_of_seven_billion_parameters_on_two_gpus_needs_more_than_the_backward_pass():
    """20 bytes of 7.615e9 / 2 are 70.9 GiB, and 4 more are above 90% of 79; the backward pass would take 70.3."""
    one = footprint(gpus=2)
    on_gpu = choose(one, {"offload_policy"}).footprint
    assert on_gpu.update_parts() == pytest.approx({"states": 56.7, STEP_COPY: 14.2, "overhead": 4.0}, abs=0.05)
    assert choose(one).footprint.offload_policy
    assert STEP_COPY not in replace(on_gpu, offload_policy=True).update_parts(), "the CPU runs the optimizer"
    assert STEP_COPY not in replace(on_gpu, adapter=True).update_parts(), "the weights have no moments"


def test_a_reward_model_on_the_same_gpus_leaves_less_room():
    """3B on one GPU of 79 GiB keeps 34.5 GiB there, and half of the GPU for the reward model is 39.5."""
    alone = choose(footprint("3B"))
    assert not alone.footprint.param_offload
    shared = choose(footprint("3B", reward_share=0.5))
    assert shared.footprint.param_offload and shared.footprint.scoring_gib() == pytest.approx(39.5)
    assert "make room" in shared.reasons["param_offload"]
    awake = choose(footprint("3B", reward_share=0.5, reward_sleeps=False)).footprint
    assert awake.update_parts()[REWARD_AWAKE] == pytest.approx(39.5)
    assert awake.share_gib() + awake.resident_gib() <= 79 - 39.5


def test_vllm_gets_what_the_trainer_leaves():
    """3B on one GPU of 79 GiB: 12 bytes of 3.086e9 are 34.5 GiB, and with 0.45 of 79 GiB below 71.1 GiB."""
    chosen = choose(footprint("3B"))
    assert chosen.footprint.utilization == 0.45 and "34.5 GiB of the trainer" in chosen.reasons["utilization"]


def test_few_cached_sequences_give_vllm_a_larger_share():
    """7B on one GPU of 22 GiB, streamed: vLLM's usual 0.7 leaves no room for a cache of 64 sequences."""
    chosen = choose(footprint("7B", 1, 22)).footprint
    assert chosen.utilization > 0.7
    kept = replace(chosen, utilization=0.7)
    assert kept.cached_sequences() < min(64, chosen.cached_sequences())


def test_states_that_do_not_fit_stream_from_the_host():
    """On one GPU 113.5 GiB of states are more than it has."""
    chosen = choose(footprint())
    assert chosen.footprint.offload_policy
    assert re.search(r"113\.5 GiB of each GPU.*\(113 GiB per node\)", chosen.reasons["offload_policy"])
    assert choose(footprint(fsdp2=False)) is None, "FSDP 1 cannot stream"


def test_weights_and_optimizer_leave_the_gpu_where_vllm_needs_the_room():
    """An adapter of 3B on 22 GiB: an update fits beside 11.5 GiB of weights, but vLLM needs 5.7 and 3 for itself."""
    chosen = choose(footprint("3B", 1, 22, adapter=True))
    assert chosen.footprint.param_offload and chosen.footprint.optimizer_offload
    assert "offload_policy" not in chosen.reasons and "make room" in chosen.reasons["param_offload"]
    assert chosen.footprint.resident_gib() == 0 and chosen.footprint.update_parts()["states"] > 11


def test_fixed_fields_keep_their_values_and_the_others_follow():
    small = choose(footprint(gpus=8), {"utilization"}).footprint
    assert small.utilization == 0.7
    fixed = choose(
        replace(footprint(gpus=8), utilization=0.3, tensor_parallel=4, tokens=4096),
        {"utilization", "tensor_parallel", "tokens"},
    )
    assert (fixed.footprint.utilization, fixed.footprint.tensor_parallel, fixed.footprint.tokens) == (0.3, 4, 4096)
    assert set(fixed.reasons) == {"offload_policy"}
    offloaded = choose(replace(footprint(gpus=8), param_offload=True), {"param_offload"}).footprint
    assert offloaded.param_offload and offloaded.optimizer_offload, "what is free agrees with it"
    assert choose(footprint(), {"offload_policy"}) is None


def test_sequences_are_split_only_if_nothing_else_fits():
    """The logits of 32,768 tokens are 37.1 GiB on one GPU; SDPA cannot split a sequence."""
    long = replace(footprint(gpus=4, gib=44), length=32768)
    chosen = choose(long)
    assert chosen.footprint.sequence_parallel > 1 and "32768 tokens" in chosen.reasons["sequence_parallel"]
    assert fits(chosen.footprint, TIGHT)
    assert choose(replace(long, sdpa=True)) is None or choose(replace(long, sdpa=True)).footprint.sequence_parallel == 1
    assert choose(footprint(gpus=4)).footprint.sequence_parallel == 1


def test_vllm_reads_shorter_sequences_only_where_the_models_context_does_not_fit():
    """131,072 tokens of 56 KiB are 7 GiB: with 14.2 of weights more than a GPU of 22 GiB has."""
    short = choose(footprint(gpus=4, gib=22)).footprint
    assert short.max_model_len in (2048, None) and fits(short)
    assert choose(footprint(gib=22)).footprint.max_model_len == 2048
    assert choose(footprint(gib=79)).footprint.max_model_len is None


def test_few_sequences_per_replica_lead_to_larger_replicas():
    """32B on one GPU of 79 GiB leaves room for 14 sequences, and on two for 75 per GPU."""
    assert choose(footprint("32B", 1)).footprint.tensor_parallel == 1
    chosen = choose(footprint("32B", 8)).footprint
    assert chosen.tensor_parallel == 2 and chosen.cached_sequences() > 2 * 2 * 14


@st.composite
def runs(draw):
    head_dim, kv_heads = draw(st.sampled_from([64, 128])), draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv_heads * draw(st.integers(1, 8))
    hidden = heads * head_dim
    shape = Shape(
        draw(st.integers(2, 80)),
        hidden,
        hidden * draw(st.integers(2, 5)),
        heads,
        kv_heads,
        head_dim,
        draw(st.sampled_from([1000, 32000, 151936])),
        draw(st.booleans()),
        draw(st.sampled_from([4096, 32768, 131072])),
    )
    return shape, {
        "trainer.n_gpus_per_node": draw(st.integers(1, 8)),
        "trainer.nnodes": draw(st.integers(1, 3)),
        "hardware.nodes": 3,
        "hardware.gpus_per_node": 8,
        "hardware.gpu_memory_gib": draw(st.floats(6, 200)),
        "data.max_prompt_length": draw(st.integers(16, 2048)),
        "data.max_response_length": draw(st.integers(16, 2048)),
        f"{ROLLOUT}.n": draw(st.integers(1, 32)),
        "actor_rollout_ref.model.lora_rank": draw(st.sampled_from([0, 16])),
        "actor_rollout_ref.model.use_fused_kernels": draw(st.booleans()),
        "actor_rollout_ref.model.use_remove_padding": draw(st.booleans()),
        ATTENTION: draw(st.sampled_from(["sdpa", "flash_attention_2"])),
        f"{ACTOR}.strategy": draw(st.sampled_from(["fsdp", "fsdp2"])),
        f"{ACTOR}.fsdp_config.model_dtype": draw(st.sampled_from(["fp32", "bfloat16"])),
        f"{ROLLOUT}.free_cache_engine": draw(st.booleans()),
    }


@pytest.fixture(scope="module")
def base_config(configs_parsed_once):
    return resolve(compose_config(parse_line([FIRST_HOUR, "hardware=8xa100_80g"])))


@settings(max_examples=150)
@given(run=runs(), fixed=st.sets(st.sampled_from(sorted(KEYS))))
def test_what_is_chosen_passes_the_checks(base_config, tmp_path_factory, run, fixed):
    shape, keys = run
    config = base_config.copy()
    for key, value in keys.items():
        OmegaConf.update(config, key, value, force_add=True)
    config.actor_rollout_ref.actor.fsdp_config.fsdp_size = config.trainer.n_gpus_per_node
    before = footprint_of(config, shape)
    chosen = choose(before, fixed)
    if chosen is None:
        return
    assert not set(chosen.reasons) & fixed
    for name, key in KEYS.items():
        value = getattr(chosen.footprint, name)
        assert name not in fixed or value == getattr(before, name)
        OmegaConf.update(config, key, value, force_add=True)
    folder = tmp_path_factory.getbasetemp() / "model"
    folder.mkdir(exist_ok=True)
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "heads": "num_attention_heads",
    }
    names |= {
        "kv_heads": "num_key_value_heads",
        "vocab": "vocab_size",
        "tied": "tie_word_embeddings",
        "positions": "max_position_embeddings",
    }
    content = {other: getattr(shape, name) for name, other in names.items()} | {"head_dim": shape.head_dim}
    (folder / "config.json").write_text(json.dumps(content))
    config.actor_rollout_ref.model.path = str(folder)
    assert footprint_of(config, shape) == chosen.footprint, "the keys are those that the estimate reads"
    assert list(memory.check_memory(config, Line({}, ()))) == []
    if "tensor_parallel" not in fixed:
        assert not [
            problem for problem in check_layout(config, Line({}, ())) if "tensor_model_parallel_size" in problem
        ]


def sized(*words):
    line = parse_line(words)
    config = compose_config(line)
    apply_sizing(config, line)
    return resolve(config)


DESCRIBED = ("hardware=gpu", "hardware.gpus_per_node=2", "hardware.gpu_memory_gib=22")


def test_a_described_machine_is_sized_without_gpus_here():
    config = sized(FIRST_HOUR, *DESCRIBED, "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (1, 2)
    assert config.actor_rollout_ref.actor.fsdp_config.offload_policy
    assert config.actor_rollout_ref.rollout.max_model_len == 1024
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    assert tokens < 16384 and config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu == tokens
    assert list(memory.check_memory(config, Line({}, ()))) == []
    first, *others = sizing_lines(config)
    assert first == "sized for 2 GPUs of 22 GiB:"
    assert any(line.startswith(f"  {ACTOR}.fsdp_config.offload_policy=true: ") for line in others)
    nodes = sized(FIRST_HOUR, *DESCRIBED, "hardware.nodes=3")
    assert nodes.trainer.nnodes == 3 and next(sizing_lines(nodes)) == "sized for 3 nodes with 2 GPUs of 22 GiB:"


def test_keys_of_the_line_win_and_the_others_take_them_into_account():
    words = (
        FIRST_HOUR,
        "hardware=8xa100_80g",
        f"{ROLLOUT}.gpu_memory_utilization=0.35",
        f"{ROLLOUT}.tensor_model_parallel_size=2",
    )
    config = sized(*words)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.gpu_memory_utilization, rollout.tensor_model_parallel_size) == (0.35, 2)
    assert not any(ROLLOUT in line for line in sizing_lines(config))
    section = sized(FIRST_HOUR, "hardware=1xh200", f"{ACTOR}.fsdp_config={{offload_policy: true}}")
    assert section.actor_rollout_ref.actor.fsdp_config.offload_policy, "a whole section on the line fixes its keys"
    assert not sized(FIRST_HOUR, "hardware=1xh200").actor_rollout_ref.actor.fsdp_config.offload_policy


def test_keys_of_a_recipe_win_over_sizing(monkeypatch):
    load = groups.load

    def with_tokens(group, name):
        node = load(group, name)
        if (group, name) == ("recipe", "start/_base"):
            OmegaConf.update(node, f"{ACTOR}.ppo_max_token_len_per_gpu", 2048)
        return node

    line, config = parse_line([FIRST_HOUR, "hardware=8xa100_80g"]), resolve(compose_config(parse_line([FIRST_HOUR])))
    assert sizing.fixed_fields(config, line) == set()
    monkeypatch.setattr(groups, "load", with_tokens)
    assert sizing.fixed_fields(config, line) == {"tokens"}


def test_the_keys_of_every_choice_can_be_listed():
    for group in groups.GROUPS:
        for name in groups.choices(group):
            assert all(isinstance(key, str) for key in sizing._keys_of(group, name))
    assert f"{ACTOR}.ppo_max_token_len_per_gpu" in set(sizing._keys_of("hardware", "8xh800")), "defaults of defaults"
    assert "data.filter_overlong_prompts" in set(sizing._keys_of("recipe", "start/gsm8k_qwen2.5_0.5b"))


def test_nothing_is_chosen_where_the_sizes_are_not_known():
    for words in (
        ("hardware=cpu",),
        (),
        ("hardware=8xa100_80g", "hardware.gpu_memory_gib=null"),
        ("hardware=8xa100_80g", "actor_rollout_ref.model.path=a/b"),
    ):
        line = parse_line([FIRST_HOUR, *words])
        config = compose_config(line)
        before = config.copy()
        apply_sizing(config, line)
        assert config == before, words
    unknown = resolve(compose_config(parse_line([FIRST_HOUR, "hardware=8xa100_80g", "hardware.gpu_memory_gib=null"])))
    (line,) = sizing_lines(unknown)
    assert line.startswith("warning: hardware.gpu_memory_gib is not known here") and "hardware.gpus_per_node" in line
    assert "nvidia-smi" in line and "22 for an L4 of 24 GB" in line


def test_a_run_that_does_not_fit_is_rejected_once_with_what_would():
    line = parse_line(
        [
            FIRST_HOUR,
            "hardware=gpu",
            "hardware.gpus_per_node=1",
            "hardware.gpu_memory_gib=22",
            "actor_rollout_ref.model.path=Qwen/Qwen2.5-32B",
        ]
    )
    config = compose_config(line)
    apply_sizing(config, line)
    said = list(memory.check_memory(resolve(config), line))
    assert re.search(r"No settings fit: 32\.76e9 .*What would fit: 4 such GPUs per node; GPUs of 79 GiB\.$", said[-1])
    assert not any("No settings fit" in problem for problem in said[:-1])


def test_settings_of_the_line_that_do_not_fit_are_answered_with_settings_that_do():
    """Setting what the message says makes the run pass: in one round."""
    words = [FIRST_HOUR, "hardware=8xa100_80g", "actor_rollout_ref.model.path=Qwen/Qwen2.5-14B"]
    bad = [f"{ACTOR}.ppo_max_token_len_per_gpu=65536", f"{ROLLOUT}.gpu_memory_utilization=0.95"]
    said = list(memory.check_memory(sized(*words, *bad), Line({}, ())))
    settings_said = re.search(r"Together, these settings fit: (.*)$", said[-1])[1].split()
    assert list(memory.check_memory(sized(*words, *bad, *settings_said), Line({}, ()))) == []


def test_the_command_prints_what_it_chose(capsys):
    _, config = command._compose([FIRST_HOUR, *DESCRIBED])
    command.print_audit(config)
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "sized for 2 GPUs of 22 GiB:" in said
    assert re.search(rf"{ROLLOUT}\.gpu_memory_utilization=0\.\d+: [\d.]+ GiB for vLLM", said)


def test_megatron_is_not_sized():
    config = sized(FIRST_HOUR, "hardware=8xa100_80g", "model_engine=megatron")
    assert "sizing" not in config.hardware


def test_what_would_fit_names_the_quantities():
    assert what_would_fit(footprint("7B", 1, 11)).startswith(
        "No settings fit: 7.62e9 parameters, with all weights trained, sequences of 2048 tokens and 1 GPU of 11 GiB"
    )
    assert what_would_fit(footprint("32B", 8, 6)).count("GPUs of") >= 1
    assert "smaller model" in what_would_fit(replace(footprint("32B", 8, 139), length=2**24))
