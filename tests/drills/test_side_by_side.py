"""Two runs on one machine at the same time, each with a Ray cluster of its own: each generates with its own policy.

verl alone gives the two runs the same sockets for their weights (tests/contract/test_weight_sockets.py). One run
hardly changes its policy and the other changes it strongly. If a run's vLLM had loaded the other run's weights,
vLLM's probabilities of the tokens it drew would differ from the actor's by about as much as the two final policies
differ.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from running import BINARIES, TASK, Started, metrics, verl_gsd, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.minutes(4)

STEPS = 8
PROMPTS = 16
RATES = {"still": 1e-12, "moving": 3e-3}
#: Largest difference that counts as one policy. vLLM and the actor computed probabilities up to 0.005 apart here. The
#: two final policies differed by more than 0.99, and the moving one changes most in its first step.
OWN = 0.05


def socket_folders():
    return set(Path("/tmp").glob("verl_gsd_weights_*"))


def train(folder, rate):
    """Train in ``folder`` to the end; returns the folders of sockets on this machine after the first step."""
    line = (
        *("algo=grpo", "task=arithmetic", "hardware=cpu", f"trainer.default_local_dir={folder}"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={STEPS}", "trainer.test_freq=-1"),
        *(f"actor_rollout_ref.actor.optim.lr={rate}", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
        "trainer.val_before_train=false",
    )
    printed, seen = "", set()
    with Started(
        [BINARIES / "verl-gsd", "train", *line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as training:
        for output in training.stdout:
            printed += output
            if output.startswith("step    1/"):
                seen = socket_folders()
    assert training.returncode == 0, printed
    return seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that have trained side by side: their folders by name, and the folders of sockets they had and left."""
    prepared = verl_gsd("prepare", "arithmetic")
    assert prepared.returncode == 0, prepared.stderr
    folders = {name: tmp_path_factory.mktemp("side_by_side") / name for name in RATES}
    before = socket_folders()
    with ThreadPoolExecutor() as threads:
        seen = set().union(*threads.map(train, folders.values(), RATES.values()))
    return SimpleNamespace(folders=folders, sockets=seen - before, left=socket_folders() - before)


def policy(run):
    """The run's last policy, in the precision it was trained in."""
    model = AutoModelForCausalLM.from_pretrained(TASK / "model", dtype=torch.float32)
    (state,) = weights(run / f"global_step_{STEPS}", 1)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def token_probabilities(model, sequences, prompt_length):
    probabilities = model(sequences).logits[:, prompt_length - 1 : -1].softmax(-1)
    return probabilities.gather(-1, sequences[:, prompt_length:, None]).squeeze(-1)


@torch.no_grad()
def largest_difference(generating, training):
    """What ``rollout_probs_diff_max`` would be if vLLM had the policy ``generating`` and the actor ``training``."""
    tokenizer = AutoTokenizer.from_pretrained(TASK / "model")
    torch.manual_seed(0)
    differences = []
    for messages in pq.read_table(TASK / "test.parquet")["prompt"][:PROMPTS].to_pylist():
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompt = torch.tensor([ids])
        sequences = generating.generate(prompt, do_sample=True, max_new_tokens=4, num_return_sequences=16)
        both = [token_probabilities(model, sequences, prompt.shape[1]) for model in (generating, training)]
        differences.append((both[0] - both[1]).abs().max())
    return max(differences).item()


def test_each_run_generates_with_its_own_policy(runs):
    still, moving = policy(runs.folders["still"]), policy(runs.folders["moving"])
    swapped = [largest_difference(still, moving), largest_difference(moving, still)]
    assert min(swapped) > 10 * OWN, "a run that had the other run's weights would be seen"
    for name, run in runs.folders.items():
        measured = metrics(run, 1)
        assert sorted(measured) == list(range(1, STEPS + 1))
        for step, values in measured.items():
            assert values["training/rollout_probs_diff_valid"] == 1
            assert values["training/rollout_probs_diff_max"] < OWN, (name, step)


def test_each_run_had_its_own_folder_of_sockets_and_its_launcher_removed_it(runs):
    """Holds for every run, while two runs without it only meet within some steps."""
    assert len(runs.sockets) == 2
    assert not runs.left
