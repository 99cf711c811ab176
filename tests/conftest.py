"""What several test files share."""

import functools
import gc
import importlib
import importlib.metadata
import os
import pickle
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
#: Minutes of a drill that CI runs beside all other tests.
SHORT = 8

# No test fails for being slow on a busy machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
# Before anything imports verl: the tests run on a CPU wherever they run.
os.environ["VERL_GSD_CPU"] = "1"
# A warm-started model is made once a machine and kept; tests of the making use folders of their own.
os.environ.setdefault("VERL_GSD_CACHE", str(Path.home() / ".cache" / "verl_gsd"))
# The consoles are as wide as a test's COLUMNS says, whichever test imports them first.
os.environ.pop("COLUMNS", None)
importlib.import_module("verl_gsd.cli.console")


def pytest_addoption(parser):
    text = f"of the drills run one that takes at most {SHORT} minutes, chosen by COMMIT's hash"
    parser.addoption("--one-drill", metavar="COMMIT", help=text)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """The folder is the marker: unit, contract, engine, stack or drills."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
    if commit := config.getoption("--one-drill"):
        drills = {item.nodeid: _short_drill(item) for item in items}
        names = sorted(set(drills.values()) - {""})
        chosen = names[int(commit, 16) % len(names)]
        config.hook.pytest_deselected(items=[item for item in items if drills[item.nodeid] != chosen])
        items[:] = [item for item in items if drills[item.nodeid] == chosen]


def _short_drill(item):
    """The short drill that a test belongs to, or "": its file where the file is marked with minutes, else itself."""
    marker = item.get_closest_marker("minutes")
    if marker is None or marker.args[0] > SHORT or item.get_closest_marker("drills") is None:
        return ""
    of_the_file = any(own.name == "minutes" for own in item.getparent(pytest.Module).own_markers)
    return str(item.path.name) if of_the_file else item.nodeid


def pytest_collection_finish():
    """Collected files have imported torch and verl: a million objects that no garbage collection need visit again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _lines_for_a_cpu_pass_in_an_environment_for_gpus(request, monkeypatch):
    """There vLLM is its GPU build, which the checks of a line for a CPU reject. test_engines.py tests that check."""
    is_for_gpus = any(importlib.metadata.distributions(name="vllm"))
    if is_for_gpus and request.path.name != "test_engines.py":
        monkeypatch.setattr("verl_gsd.trainer.validation.cpu_engine_problem", lambda: "")


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """The embedded task with two steps of warm start: right files, a policy that knows nothing."""
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
    return embedded.ensure(tmp_path_factory.mktemp("tiny") / "task", specification)


@functools.cache
def _groups_composed(*groups):
    """A pickle of the composed config, which loads in a tenth of the time that a copy takes."""
    from verl_gsd.trainer.config import compose_config, parse_line

    return pickle.dumps(compose_config(parse_line(groups)))


@functools.cache
def _resolved(*words):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from verl_gsd.trainer.config import parse_line

    line = parse_line(words)
    config = pickle.loads(_groups_composed(*(f"{group}={name}" for group, name in line.choices.items())))
    for override in map(OverridesParser.create().parse_override, line.overrides):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    OmegaConf.resolve(config)
    return pickle.dumps((config, line))


@pytest.fixture(scope="session")
def compose_fast():
    """(words) -> (resolved config, parsed line), as the command line has them, in a twentieth of the time.

    Hydra composes a choice of groups once; single keys are set on a copy of that. Composing itself is test_config's, and
    so is what a config takes from the environment: here that is read once.
    """
    return lambda *words: pickle.loads(_resolved(*words))


@pytest.fixture(scope="module")
def _queue_of_the_module():
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    ray.init(address="local", num_cpus=8, include_dashboard=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield tq
    tq.close()
    ray.shutdown()


@pytest.fixture
def queue(_queue_of_the_module):
    """verl's queue, running, and empty at a test's start."""
    yield
    for partition, items in (_queue_of_the_module.kv_list() or {}).items():
        if items:
            _queue_of_the_module.kv_clear(keys=list(items), partition_id=partition)


@pytest.fixture(scope="module")
def browser():
    """A real browser, headless. Without one its tests are skipped, or fail where VERL_GSD_BROWSER=required.

    It ends with the module: while it lives its event loop runs in this thread, where no other test could start one.
    """
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing = "no Chromium on the PATH"
        pytest.fail(missing) if os.environ.get("VERL_GSD_BROWSER") == "required" else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()
