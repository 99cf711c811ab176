"""What the documentation shows runs, and what it names is there."""

import re

import pytest
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import extension

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/**/README.md"))]


@pytest.fixture
def stages_as_before(monkeypatch):
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))


def test_the_stage_of_the_page_on_extending_passes_its_own_test_in_forty_lines(stages_as_before):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert len(blocks) == 2 and sum(block.count("\n") for block in blocks) <= 40
    there: dict = {}
    for block in blocks:
        exec(block, there)
    (test,) = (value for name, value in there.items() if name.startswith("test_"))
    test()
    with pytest.raises(ValueError, match="limit"):
        there["cap"](None, None, {"limit": 0})


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    text = text.replace("verl_gsd/recipes", "recipes")  # where a wheel has them
    named = set(re.findall(r"`((?:verl_gsd|recipes|docs|scripts|tests|benchmarks|docker)/[\w./-]+)`", text))
    named |= {f"{page.parent.relative_to(ROOT)}/{link}" for link in re.findall(r"\]\((?!http)([\w./-]+)\)", text)}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_keys_of_the_page_on_switching_are_those_of_the_choices(compose_fast):
    """Against algo=grpo, every key that the table gives a value has it under the algo it stands for."""
    rows = {
        "dr_grpo": ("algorithm.gsd.alpha", "actor_rollout_ref.actor.loss_agg_mode"),
        "dapo": ("actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.clip_ratio_high"),
        "gspo": ("actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.clip_ratio_low"),
    }
    page = (ROOT / "docs" / "switching.md").read_text()
    for algo, keys in rows.items():
        config, _ = compose_fast(f"algo={algo}", "task=arithmetic", "hardware=cpu")
        (row,) = (line for line in page.splitlines() if line.lower().startswith(f"| {algo.replace('_', '. ')} |"))
        for key in keys:
            value = OmegaConf.select(config, key)
            short = key.replace("actor_rollout_ref.", "")
            (written,) = re.findall(re.escape(short) + r"=([\w.-]+)", row)
            assert str(value) == written or float(value) == float(written), (algo, key, value, written)
