"""The package of docs/extending.md, installed beside verl-gsd: commands know all that it declares before a run."""

import re
import subprocess

import pytest
import third_party
from running import verl_gsd

LINE = ("train", "algo=trend", "task=arithmetic", "hardware=cpu", "trainer.total_training_steps=2", "--dry-run")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return third_party.install(tmp_path_factory.mktemp("installed"))


def run(installed, *words, folder=None):
    done = verl_gsd(*LINE, *words, env=installed)
    return done, re.sub(r"\s+", " ", done.stderr)


def test_its_algo_is_a_choice_and_a_dry_run_says_what_it_does(installed):
    done, told = run(installed)
    assert done.returncode == 0, told
    assert "strength: 0.1" in done.stdout
    assert "advantages are multiplied by 1 + 0.1 * (running accuracy - accuracy of the group)" in told


def test_wrong_settings_unused_keys_and_conflicts_are_rejected_together_before_ray(installed):
    done, told = run(
        installed,
        "algorithm.gsd.trend.strength=2",
        "+algorithm.gsd.trend.halflife=3",
        "algorithm.gsd.eps=x",
    )
    assert done.returncode == 2
    for problem in (r"algorithm\.gsd\.trend\.strength=2: .*up to 1", "halflife.*half_life"):
        assert re.search(problem, told), told
    done, told = run(installed, "algorithm.gsd.trend.strength=0", "algorithm.gsd.trend.half_life=3")
    assert done.returncode == 2 and "half_life=3" in told and "weighs all groups alike" in told


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ('Declaration("hadw", "broken:X")', "hadw.*already registered"),
        (
            'Declaration("mine", "broken:X", record_columns=(RecordColumn("mine", "float16"),))',
            "mine.*float16.*float64",
        ),
        ('Declaration("mine", "broken:X", record_columns=(RecordColumn("hadw_anchor"),))', "hadw_anchor.*hadw"),
        ("undefined_name", "broken.*NameError"),
    ],
)
def test_a_package_that_cannot_be_registered_is_named_before_ray(declaration, problem, tmp_path):
    (tmp_path / "broken.py").write_text(
        f"from verl_gsd.extension import Declaration, RecordColumn, register\nregister({declaration})\n"
    )
    environment = third_party.distribute(tmp_path, "broken")
    done = verl_gsd(*(word.replace("trend", "grpo") for word in LINE), env=environment)
    told = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode == 2 and re.search(problem, told), told


def test_declaring_needs_neither_torch_nor_verl(installed):
    code = (
        "import sys; from verl_gsd.extension import declarations; "
        "assert 'trend' in [of.name for of in declarations()]; "
        "print(sorted({'torch', 'verl', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([third_party.PYTHON, "-c", code], env=installed, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
