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
#: Seconds after which a test counts as hung, where they are more than in pyproject.toml: a test waits for its runs.
HANGS = {"stack": 2400, "drills": 5400}

# No test fails for being slow on a busy machine.
settings.register_profile("project", deadline=None)
# `--hypothesis-profile thorough` looks for rare counterexamples before a commit meets them.
settings.register_profile("thorough", deadline=None, max_examples=3000)
settings.load_profile("project")
# Before anything imports verl: the tests run on a CPU wherever they run.
os.environ["VERL_GSD_CPU"] = "1"
# A warm-started model is made once a machine and kept; tests of the making use folders of their own.
os.environ.setdefault("VERL_GSD_CACHE", str(Path.home() / ".cache" / "verl_gsd"))
# The consoles are as wide as a test's COLUMNS says, whichever test imports them first.
os.environ.pop("COLUMNS", None)
importlib.import_module("verl_gsd.console")


def pytest_addoption(parser):
    text = f"of the drills run one that takes at most {SHORT} minutes, chosen by COMMIT's hash"
    parser.addoption("--one-drill", metavar="COMMIT", help=text)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """The folder is the marker: unit, contract, engine, stack or drills."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        item.add_marker(folder)
        if folder in HANGS:
            item.add_marker(pytest.mark.timeout(HANGS[folder]))
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
        monkeypatch.setattr("verl_gsd.run.checks.validate.cpu_engine_problem", lambda: "")


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """The embedded task with two steps of warm start: right files, a policy that knows nothing."""
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
    return embedded.ensure(tmp_path_factory.mktemp("tiny") / "task", specification)


@functools.cache
def _groups_composed(compose_config, *groups):
    """A pickle of the composed config, which loads in a tenth of the time that a copy takes."""
    from verl_gsd.run.compose import Line

    return pickle.dumps(compose_config(Line(dict(word.split("=", 1) for word in groups), ())))


def _composed(compose_config, line):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    groups = (f"{group}={name}" for group, name in line.choices.items())
    config = pickle.loads(_groups_composed(compose_config, *groups))
    for override in map(OverridesParser.create().parse_override, line.overrides):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def _resolved(line):
    from omegaconf import OmegaConf

    from verl_gsd.run.compose import compose_config

    config = _composed(compose_config, line)
    OmegaConf.resolve(config)
    return config


@functools.cache
def _groups_resolved(*words):
    from verl_gsd.run.compose import parse_line

    return pickle.dumps(_resolved(parse_line(words)))


@pytest.fixture(scope="session")
def configs_parsed_once():
    """OmegaConf parses every YAML file and every interpolation again at each use: two thirds of composing a config."""
    from omegaconf import OmegaConf, base

    load = OmegaConf.load

    @functools.cache
    def pickled(path, modified_ns, size):
        return pickle.dumps(load(path))

    def load_once(file):
        path = Path(file if isinstance(file, str | Path) else file.name)
        status = path.stat()
        return pickle.loads(pickled(path, status.st_mtime_ns, status.st_size))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OmegaConf, "load", staticmethod(load_once))
        patched.setattr(base, "parse", functools.cache(base.parse))
        yield


@pytest.fixture(scope="session")
def compose_fast(configs_parsed_once):
    """(words) -> (resolved config, parsed line), as the command line has them, in a twentieth of the time.

    Hydra composes each choice of groups once, and single keys are set on a copy of that. What a config takes from the
    environment is read once. test_config.py tests composing itself.
    """
    from verl_gsd.run.compose import parse_line

    def compose(*words):
        line = parse_line(words)
        return (_resolved(line) if line.overrides else pickle.loads(_groups_resolved(*line.words))), line

    return compose


@pytest.fixture
def composing_is_fast(configs_parsed_once, monkeypatch):
    """Commands compose their config as ``compose_fast`` does."""
    from verl_gsd.run import compose as config

    monkeypatch.setattr(config, "compose_config", functools.partial(_composed, config.compose_config))


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
