"""What a rehearsal reads of its resume: the optimizer, the place in the data, and our state."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from verl_gsd import extension
from verl_gsd.errors import OUR_MODES
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptStore
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.run.rehearsal import resumed
from verl_gsd.run.rehearsal.report import Findings
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import save_state

GSD = {"hadw": {"preset": "hard"}}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def findings():
    return Findings()


def config(mode=OUR_MODES["sync"], gsd=GSD, batch=2):
    data = {"train_batch_size": batch, "gen_batch_size": None}
    return OmegaConf.create({"trainer": {"v1": {"trainer_mode": mode}}, "algorithm": {"gsd": gsd}, "data": data})


def save_optimizer(run, step, updates):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    for _ in range(updates):
        parameter.sum().backward()
        optimizer.step()
    path = run.checkpoint(step) / "actor" / "optim_world_size_2_rank_0.pt"
    path.parent.mkdir(parents=True)
    torch.save(optimizer.state_dict(), path)


def write_groups(run, step, attempt, indices):
    ones = np.ones(2)
    left = [
        LeftGroup(Group(str(index), "mine", index, ones, ones, np.zeros(2, np.int64)), "trained") for index in indices
    ]
    write_step(run.path, step_records(left, step=step, attempt=attempt, alpha=1.0), step=step, attempt=attempt)


def memories(indices, gsd=GSD, prompts=None):
    """A memory of prompts that has visited ``indices``, and the extensions after a step with their groups."""
    ones = np.ones(2)
    groups = [Group(str(index), "mine", index, ones, ones, np.zeros(2, np.int64)) for index in indices]
    store = prompts or PromptStore()
    for index in indices:
        store.observe(("mine", index), 1.0, 2, 1)
    extensions = extension.build(gsd)
    for part in extensions.values():
        part.end_step(groups)
    return {"prompts": store, **extensions}


def test_an_optimizer_that_counts_on_was_restored_and_one_that_begins_again_was_not(run, findings):
    save_optimizer(run, 2, updates=4)
    save_optimizer(run, 3, updates=6)
    resumed.observe_optimizer(run, findings)
    assert findings.worked == ["resume: the optimizer continued after 4 updates and then had 6"]
    save_optimizer(RunDirectory(run.path / "other"), 2, updates=4)
    save_optimizer(RunDirectory(run.path / "other"), 3, updates=2)
    resumed.observe_optimizer(RunDirectory(run.path / "other"), findings)
    assert len(findings.wrong) == 1 and "actor_rollout_ref.actor.checkpoint.load_contents" in findings.wrong[0]


def test_checkpoints_without_an_optimizer_are_not_seen_to_restore_it(run, findings):
    resumed.observe_optimizer(run, findings)
    assert "actor_rollout_ref.actor.checkpoint.save_contents" in findings.unchecked[0]
    assert not findings.worked and not findings.wrong


@pytest.mark.parametrize(
    ("later", "gsd", "worked", "wrong", "unchecked"),
    [
        ((4, 5), GSD, 1, 0, 0),
        ((0, 1), GSD, 0, 1, 0),
        ((3, 4), GSD, 0, 1, 0),
        ((0, 4, 5, 6, 7), GSD, 0, 0, 1),  # the pass over the data is at its end
        ((0, 1), GSD | {"sampler": {}}, 0, 0, 1),  # draws prompts again by design
    ],
)
def test_the_resumed_step_must_use_prompts_that_were_not_used_before(
    run, findings, later, gsd, worked, wrong, unchecked
):
    write_groups(run, 1, 1, (0, 1))
    write_groups(run, 2, 1, (2, 3))
    write_groups(run, 3, 2, later)
    resumed.observe_prompts(run, config(gsd=gsd), 8, findings)
    assert [len(findings.worked), len(findings.wrong), len(findings.unchecked)] == [worked, wrong, unchecked]
    if wrong:
        assert f"{len(set(later) & {0, 1, 2, 3})} prompts" in findings.wrong[0]


@pytest.mark.parametrize("gen_batch", [None, 1, 5])
@pytest.mark.parametrize("rows", range(8, 41))
def test_a_resume_is_never_wrong_if_it_continues_and_always_if_it_begins_again(tmp_path, rows, gen_batch):
    """verl's loader, shuffled at every pass: three steps of 8 prompts, with a resume before the third."""
    for continues in (True, False):
        findings, run = Findings(), RunDirectory(tmp_path / f"run-{continues}")
        steps = (steps_of_loader(rows, gen_batch or 8), steps_of_loader(rows, gen_batch or 8))
        first, second, third = (next(steps[0]) for _ in range(3))
        write_groups(run, 1, 1, first)
        write_groups(run, 2, 1, second)
        write_groups(run, 3, 2, third if continues else next(steps[1]))
        of_run = config()
        of_run.data.update({"train_batch_size": 8, "gen_batch_size": gen_batch})
        resumed.observe_prompts(run, of_run, rows, findings)
        is_enough = rows // (gen_batch or 8) * (gen_batch or 8) >= 24
        assert bool(findings.wrong) == (is_enough and not continues)
        assert is_enough or findings.unchecked or findings.worked, "by chance, the next pass may repeat nothing"
        assert not (is_enough and continues) or findings.worked


def steps_of_loader(rows, batch):
    """Steps of 8 prompts of a loader of ``range(rows)``. Two loaders begin with the same prompts."""
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(range(rows), batch_size=batch, shuffle=True, drop_last=True)
    prompts = [prompt for _ in range(5) for rows in loader for prompt in rows.tolist()]
    return (tuple(prompts[start : start + 8]) for start in range(0, 24, 8))


def test_a_memory_that_was_carried_on_has_all_earlier_visits(run, findings):
    before = memories((0, 1))
    save_state(run.checkpoint(2), before, {})
    save_state(run.checkpoint(3), memories((1, 2), prompts=before["prompts"]), {})
    resumed.observe_state(run, config(), findings)
    assert not findings.wrong
    assert findings.worked[0] == "resume: the memory of prompts was carried on (2 visits at step 2, 4 at step 3)"
    assert findings.worked[1].startswith("resume: algorithm.gsd.hadw restores all of its state (bank, ")


def test_a_memory_that_begins_again_was_not_restored(run, findings):
    save_state(run.checkpoint(2), memories((0, 1)), {})
    save_state(run.checkpoint(3), memories((1, 2, 3)), {})
    resumed.observe_state(run, config(), findings)
    assert "lost 1 of 2 prompts (2 visits at step 2, 3 at step 3)" in findings.wrong[0]


def test_an_extension_that_does_not_restore_all_of_its_state_is_found(run, findings, monkeypatch):
    for step in (2, 3):
        save_state(run.checkpoint(step), memories((0, 1)), {})
    built = extension.build(GSD)
    original = built["hadw"].load_state_dict

    def stub_that_forgets_the_innovations(state):
        original(state | {"innovations": [0.5]})

    monkeypatch.setattr(built["hadw"], "load_state_dict", stub_that_forgets_the_innovations)
    monkeypatch.setattr(extension, "build", lambda gsd: built)
    resumed.observe_state(run, config(), findings)
    assert [text.partition(".")[0] for text in findings.wrong] == ["algorithm"]
    assert "load_state_dict does not restore innovations." in findings.wrong[0]


def test_verls_own_trainer_modes_have_no_state_of_ours(run, findings):
    resumed.observe_state(run, config("sync"), findings)
    assert findings == Findings()
