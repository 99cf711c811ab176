"""Exported weights against the weights that the checkpoint was made of."""

import json
import os
import re
import shutil

import fsdp_checkpoints
import peft
import pytest
import torch
from evaluation_runs import random_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from verl_gsd.errors import ConfigError
from verl_gsd.export.checkpoint import open_checkpoint
from verl_gsd.export.weights import Origins, origins_of, write_adapter, write_model

META = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}
IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a whole model in float32."""
    return random_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def weights(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()


def with_adapters(base, dtype=torch.float32, **settings):
    """The base with adapters that change it."""
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
            parameter.data = parameter.data.to(dtype)
    return model


def write(checkpoint, folder, dtype="float32", config=None):
    folder.mkdir()
    with open_checkpoint(checkpoint, None) as opened:
        write_model(opened, folder, dtype, origins_of(config, distrust=None))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("mesh", [((0,),), ((0, 1, 2, 3, 4),), ((0, 1), (2, 3))], ids=["one", "five", "two copies"])
def test_float32_is_exact_whatever_the_shards(tmp_path, base, weights, mesh):
    """Five shards of 192 and 288 rows are of unequal sizes."""
    model = write(fsdp_checkpoints.save(tmp_path / "run", weights, base, mesh=mesh), tmp_path / "out")
    assert model.dtype == torch.float32 and model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["a link to a file", "a link to a folder", "a link to nothing", "a named pipe"])
@pytest.mark.parametrize("is_below", [False, True])
def test_a_link_in_somebody_elses_checkpoint_copies_no_private_file_into_the_model(
    tmp_path, base, weights, kind, is_below
):
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", weights, base)
    (secrets := tmp_path / "ssh").mkdir()
    (secrets / "id_rsa").write_text("a secret")
    folder = checkpoint / "actor" / "huggingface" / ("below" if is_below else "")
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("of the author")
    file = folder / "vocab.txt"
    make = {
        "a link to a file": lambda: file.symlink_to(secrets / "id_rsa"),
        "a link to a folder": lambda: file.symlink_to(secrets),
        "a link to nothing": lambda: file.symlink_to(tmp_path / "nothing"),
        "a named pipe": lambda: os.mkfifo(file),
    }
    make[kind]()
    problem = "it is not a regular file" if kind == "a named pipe" else "it is a link"
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: {problem} and was not copied"):
        write(checkpoint, tmp_path / "out")
    copied = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert copied and not any("a secret" in path.read_text() for path in copied)
    file.unlink()
    write(checkpoint, tmp_path / "out2")
    copy = tmp_path / "out2" / folder.relative_to(checkpoint / "actor" / "huggingface") / "notes.txt"
    assert copy.read_text() == "of the author"


@pytest.mark.parametrize(
    "name",
    [
        *("actor", "actor/huggingface", "actor/huggingface/config.json", "actor/model_world_size_1_rank_0.pt"),
        "actor/lora_train_meta.json",
    ],
)
def test_what_lies_outside_a_checkpoint_is_not_exported(tmp_path, base, name):
    """The files may be private ones of the user who exports, for example the weights of another run."""
    policy = with_adapters(base)
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", policy.state_dict(), base, lora=META)
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"{checkpoint}/actor\S*: a link leads to {tmp_path}/elsewhere"):
        write(checkpoint, tmp_path / "out")
    (tmp_path / "alias").symlink_to(checkpoint.parent)
    (checkpoint / name).unlink()
    (tmp_path / "elsewhere").rename(checkpoint / name)
    write(tmp_path / "alias" / checkpoint.name, tmp_path / "out2")  # the user may name a run by a link


PARTS = [
    *("actor/huggingface", "actor/huggingface/config.json", "actor/model_world_size_1_rank_0.pt"),
    "actor/lora_train_meta.json",
]


@pytest.fixture
def contested(tmp_path, base):
    """A checkpoint, a private one of the user who exports it, and the files of the model in the first one."""
    torch.manual_seed(0)
    ours, theirs = (with_adapters(base).state_dict() for _ in range(2))
    theirs = {name: weight + 1 if "lora_B" in name else weight for name, weight in theirs.items()}
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", ours, base, lora=META)
    private = fsdp_checkpoints.save(tmp_path / "private", theirs, base, lora=META | {"lora_alpha": 600})
    edit_config(a_secret="a secret")(private)
    (private / "actor" / "huggingface" / "id_rsa").write_text("a secret")
    return checkpoint, private, files_of(model_of(checkpoint, tmp_path / "expected"))


def model_of(checkpoint, folder):
    write(checkpoint, folder)
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def swap_at_each_use(monkeypatch, path, targets):
    """Make ``path`` a link to the first of ``targets``, and exchange them each time after it is opened or resolved.

    As another user could do, who owns the folder of ``path`` and watches it.
    """
    targets = [*targets]
    path.symlink_to(targets[0])

    def swapping(use):
        def used(name, *arguments, **options):
            try:
                return use(name, *arguments, **options)
            finally:
                if isinstance(name, str | os.PathLike) and str(path).endswith(str(name)):
                    targets.reverse()
                    path.unlink()
                    path.symlink_to(targets[0])

        return used

    monkeypatch.setattr(os, "open", swapping(os.open))
    monkeypatch.setattr(type(path), "resolve", swapping(type(path).resolve))


@pytest.mark.parametrize("part", PARTS)
def test_a_link_that_is_changed_after_its_check_puts_nothing_private_into_the_model(
    tmp_path, contested, monkeypatch, part
):
    checkpoint, private, expected = contested
    (harmless := checkpoint / "harmless").mkdir()
    shutil.move(checkpoint / part, harmless / "part")
    swap_at_each_use(monkeypatch, checkpoint / part, [harmless / "part", private / part])
    assert files_of(model_of(checkpoint, tmp_path / "out")) == expected


@pytest.mark.parametrize("part", PARTS)
def test_a_link_that_is_changed_before_its_check_puts_nothing_private_into_the_model(
    tmp_path, contested, monkeypatch, part
):
    """It leads to the private file only while that is opened."""
    checkpoint, private, _ = contested
    (harmless := checkpoint / "harmless").mkdir()
    shutil.move(checkpoint / part, harmless / "part")
    swap_at_each_use(monkeypatch, checkpoint / part, [private / part, harmless / "part"])
    with pytest.raises(ConfigError, match=rf"{checkpoint / part}\S*: a link leads to {private}"):
        model_of(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("part", ["", "actor", *PARTS])
def test_a_checkpoint_that_is_changed_while_it_is_exported_stays_the_same_or_is_an_error(
    tmp_path, contested, monkeypatch, part
):
    """What is exchanged here is no link but the part itself, after the checkpoint was opened."""
    checkpoint, private, expected = contested
    with open_checkpoint(checkpoint, None) as opened:
        (checkpoint / part).rename(tmp_path / "elsewhere")
        (checkpoint / part).symlink_to(private / part)
        (tmp_path / "out").mkdir()
        if part:
            with pytest.raises(ConfigError, match=f"a link leads to {private}"):
                write_model(opened, tmp_path / "out", "float32", Origins())
        else:
            write_model(opened, tmp_path / "out", "float32", Origins())
            assert files_of(tmp_path / "out") == expected


@pytest.mark.parametrize("back", [False, True], ids=["a link stays", "the run is back"])
def test_a_run_that_becomes_a_link_while_its_checkpoint_is_opened_is_not_read(tmp_path, contested, monkeypatch, back):
    """Its owner can replace it by a link to a private run of the user who exports it."""
    checkpoint, _, _ = contested
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    run = checkpoint.parent.rename(tmp_path / "shared" / "run")
    shutil.copytree(run, tmp_path / "private run")
    opened = os.open

    def stub_that_exchanges_the_run(path, *arguments, **options):
        if path != run:
            return opened(path, *arguments, **options)
        run.rename(tmp_path / "before")
        run.symlink_to(tmp_path / "private run")
        descriptor = opened(path, *arguments, **options)
        if back:
            run.unlink()
            (tmp_path / "before").rename(run)
        return descriptor

    monkeypatch.setattr(os, "open", stub_that_exchanges_the_run)
    message = "somebody replaced the run's folder" if back else f"the link {run} belongs to user id"
    with pytest.raises(ConfigError, match=message), open_checkpoint(run / checkpoint.name, None):
        pytest.fail("it was opened")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions_round_once(tmp_path, base, weights, dtype):
    model = write(fsdp_checkpoints.save(tmp_path / "run", weights, base), tmp_path / "out", dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    rounded = getattr(torch, dtype)
    assert all(torch.equal(weight, weights[name].to(rounded)) for name, weight in model.state_dict().items())


def test_the_tokenizer_and_its_template_are_copied_unchanged(tmp_path, base, weights):
    write(fsdp_checkpoints.save(tmp_path / "run", weights, base), tmp_path / "out")
    chat = [{"role": "user", "content": "1+1="}]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", base))
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()


def test_tied_embeddings_are_stored_once(tmp_path, base):
    """FSDP's state dict has both names. The head would otherwise be loaded as a weight of its own."""
    config = LlamaConfig(
        **{"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]},
    )
    tied = LlamaForCausalLM(config)
    tied.save_pretrained(tmp_path / "tied")
    state = {name: weight.clone() for name, weight in tied.state_dict().items()}
    assert {"lm_head.weight", "model.embed_tokens.weight"} < state.keys()
    model = write(fsdp_checkpoints.save(tmp_path / "run", state, tmp_path / "tied", mesh=((0, 1),)), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118, it is not a dict
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(IDS).logits, tied(IDS).logits)


def test_adapters_are_merged_in_float32_and_rounded_once(tmp_path, base):
    """W + alpha / r * B A, with a base in bfloat16, as in a run with LoRA on a GPU."""
    lora = with_adapters(base, torch.bfloat16)
    state = lora.state_dict()
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", state, base, mesh=((0, 1, 2),), lora=META)
    exact = write(checkpoint, tmp_path / "float32").state_dict()
    rounded = write(checkpoint, tmp_path / "bfloat16", "bfloat16").state_dict()
    adapted = 0
    for name, weight in exact.items():
        path = "base_model.model." + name.removesuffix(".weight")
        if f"{path}.lora_A.default.weight" not in state:
            assert torch.equal(weight, state[f"{path}.weight"].float())
            continue
        a, b = (state[f"{path}.lora_{letter}.default.weight"].float() for letter in "AB")
        wanted = state[f"{path}.base_layer.weight"].float() + 6 / 4 * (b @ a)
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-6)
        assert (weight - state[f"{path}.base_layer.weight"].float()).abs().max() > 0.01
        assert torch.equal(rounded[name], weight.bfloat16())
        adapted += 1
    assert adapted == 14, "seven matrices in each of two layers"
    assert not any("lora" in name for name in exact)


def test_an_adapter_on_its_base_computes_what_the_policy_computes(tmp_path, base):
    lora = with_adapters(base)
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", lora.state_dict(), base, mesh=((0, 1),), lora=META)
    (tmp_path / "adapter").mkdir()
    with open_checkpoint(checkpoint, None) as opened:
        write_adapter(opened, tmp_path / "adapter", "float32", Origins(), str(base))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < names and "config.json" not in names
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 6, str(base))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert torch.equal(loaded(IDS).logits, lora(IDS).logits)
    merged = write(checkpoint, tmp_path / "merged")
    torch.testing.assert_close(merged(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-4)
    assert (merged(IDS).logits - AutoModelForCausalLM.from_pretrained(base)(IDS).logits).abs().max() > 0.1


def test_a_checkpoint_of_adapters_only_is_merged_into_the_runs_base(tmp_path, base):
    """verl writes these with save_lora_only."""
    lora = with_adapters(base)
    state = {name: weight for name, weight in lora.state_dict().items() if "lora_" in name}
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", state, base, lora=META)
    config = {"actor_rollout_ref": {"model": {"path": str(base)}}}
    model = write(checkpoint, tmp_path / "out", config=config)
    torch.testing.assert_close(model(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-4)
    config = {"actor_rollout_ref": {"model": {"path": str(tmp_path / "gone")}}}
    with pytest.raises(ConfigError, match=r"actor_rollout_ref\.model\.path=.*/gone: .*--adapter"):
        write(checkpoint, tmp_path / "none", config=config)


def test_a_run_that_continued_an_adapter_has_that_adapters_scaling(tmp_path, base):
    """verl stores rank and alpha only. With rank-stabilised LoRA the scaling is alpha / sqrt(r)."""
    lora = with_adapters(base, use_rslora=True)
    lora.save_pretrained(tmp_path / "first")
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", lora.state_dict(), base, lora=META)
    config = {"actor_rollout_ref": {"model": {"lora_adapter_path": str(tmp_path / "first")}}}
    model = write(checkpoint, tmp_path / "out", config=config)
    torch.testing.assert_close(model(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-4)
    config["actor_rollout_ref"]["model"]["lora_adapter_path"] = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"lora_adapter_path=.*/gone: "):
        write(checkpoint, tmp_path / "none", config=config)


def test_an_adapter_of_a_run_without_lora_is_an_error(tmp_path, base, weights):
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", weights, base)
    with (
        open_checkpoint(checkpoint, None) as opened,
        pytest.raises(ConfigError, match=r"--adapter: .*global_step_4 .*Remove --adapter"),
    ):
        write_adapter(opened, tmp_path / "out", "float32", Origins(), "base")


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_weights_that_are_not_finite_are_an_error(tmp_path, base, weights, value):
    """float16 ends at 65,504."""
    changed = dict(weights) | {"lm_head.weight": weights["lm_head.weight"].clone()}
    changed["lm_head.weight"][3, 4] = value
    with pytest.raises(ConfigError, match=r"lm_head\.weight: .*float16.*--dtype float32"):
        write(fsdp_checkpoints.save(tmp_path / "run", changed, base), tmp_path / "out", "float16")


def drop(weights):
    return {name: weight for name, weight in weights.items() if "q_proj" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"global_step_4: .*lacks model\.layers\.0\.self_attn\.q_proj\.weight"),
        (lambda weights: weights | {"more": torch.ones(3)}, "global_step_4: .*unknown weights: more"),
    ],
)
def test_a_checkpoint_of_another_model_is_an_error(tmp_path, base, weights, change, message):
    with pytest.raises(ConfigError, match=message):
        write(fsdp_checkpoints.save(tmp_path / "run", change(weights), base), tmp_path / "out")


def cut(checkpoint):
    file = checkpoint / "actor" / "model_world_size_2_rank_1.pt"
    file.write_bytes(file.read_bytes()[:-1000])


def other_rank(checkpoint):
    torch.save({"w": torch.ones(1)}, checkpoint / "actor" / "model_world_size_2_rank_1.pt")


class Harmful:
    def __reduce__(self):
        return open, ("/dev/null",)


def with_code(checkpoint):
    torch.save({"w": Harmful()}, checkpoint / "actor" / "model_world_size_2_rank_1.pt")


def edit_config(**changes):
    def edit(checkpoint):
        file = checkpoint / "actor" / "huggingface" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"rank_1\.pt: cannot be read as weights"),
        (other_rank, r"rank_1\.pt: .*other weights.*rank_0"),
        (with_code, r"rank_1\.pt: cannot be read as weights"),
        (edit_config(architectures=["OwnForCausalLM"]), r"config\.json: .*OwnForCausalLM"),
        (edit_config(model_type="own"), r"config\.json: .*own"),
        (edit_config(architectures=["pipeline"]), r"config\.json: the architecture 'pipeline' is not a model"),
        (edit_config(architectures=["Trainer"]), r"config\.json: the architecture 'Trainer' is not a model"),
        (edit_config(architectures=[3]), r"config\.json: .*"),
        (edit_config(architectures={"a": "b"}), r"config\.json: .*"),
        (edit_config(architectures=[]), r"config\.json: .*None"),
        (edit_config(architectures=["BertForMaskedLM"]), r"config\.json: no BertForMaskedLM can be made"),
        (edit_config(vocab_size=-1), r"config\.json: .*"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(tmp_path, base, weights, spoil, message):
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", weights, base, mesh=((0, 1),))
    spoil(checkpoint)
    with pytest.raises(ConfigError, match=message):
        write(checkpoint, tmp_path / "out")


def test_the_settings_of_adapters_that_cannot_be_read_are_an_error(tmp_path, base):
    checkpoint = fsdp_checkpoints.save(tmp_path / "run", with_adapters(base).state_dict(), base, lora=META)
    file = checkpoint / "actor" / "lora_train_meta.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        write(checkpoint, tmp_path / "out")
