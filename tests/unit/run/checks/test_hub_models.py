"""The hub's real client asks a local server about the models of a config."""

import httpx
import hub_server
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from verl_gsd.run.checks import hub_models
from verl_gsd.run.checks.hub_models import hub_asked_once

PATH = "actor_rollout_ref.model.path"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The requests to a local server. The cache is empty."""
    with hub_server.serving() as (address, paths):
        hub_server.use(monkeypatch, address, tmp_path / "cache")
        yield paths


@pytest.fixture
def cached(tmp_path):
    """The file of a model in the cache."""

    def write(name):
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (repository / "snapshots/1").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("1")
        (repository / "snapshots/1/config.json").write_text("{}")

    return write


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A port on which nobody answers."""
    hub_server.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")


def config_of(path, **model):
    return OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(path), **model}}})


def report_on(path, **model):
    with hub_asked_once(config_of(path, **model)) as report:
        return report


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lab/missing", ["no such model on the Hugging Face Hub", "Correct the name"]),
        ("lab/gated", ["accept its authors' conditions", "hf auth login", "local folder"]),
        ("lab/no-model", ["no config.json", "local folder"]),
        ("lab/token", ["HTTP 401 Unauthorized: Invalid credentials", "hf auth login", "HF_TOKEN", "local folder"]),
        ("lab/forbidden", ["HTTP 403 Forbidden: Your token cannot read this model", "hf auth login"]),
    ],
)
def test_what_the_hub_does_not_give_is_a_problem(asked, name, said):
    report = report_on(name)
    (problem,) = report.problems
    assert problem.startswith(f"{PATH}={name}: ") and all(text in problem for text in said), problem
    assert (report.messages, report.unknown, asked) == ([], [], [f"/{name}/resolve/main/config.json"])


def test_a_model_on_the_hub_is_accepted(asked):
    report = report_on("lab/public", tokenizer_path="lab/no-model")
    assert (report.problems, report.messages, report.is_silent) == ([], [], False)
    assert sorted(asked) == ["/lab/no-model/resolve/main/tokenizer_config.json", "/lab/public/resolve/main/config.json"]


def test_folders_and_remote_paths_are_not_asked_about(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab/missing").mkdir(parents=True)
    for path in (tmp_path, "lab/missing", "hdfs://host/model", "./nowhere", "a/b/c"):
        assert report_on(path).problems == []
    assert asked == []


@pytest.mark.parametrize("name", [hub_server.SILENT, "lab/broken"])
def test_a_hub_that_does_not_answer_is_asked_once(asked, name, monkeypatch):
    monkeypatch.setattr(hub_models, "TIMEOUT", 0.5)
    with hub_asked_once(config_of(name, tokenizer_path="lab/public")) as report:
        assert constants.is_offline_mode(), "transformers would repeat its requests"
    assert not constants.is_offline_mode()
    assert report.problems == [] and len(asked) == 1
    assert set(report.unknown) == {name, "lab/public"}
    first, second = (message.text.partition("the Hugging Face Hub ")[2] for message in report.messages)
    assert first == second, "the reason is the same, and not that HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("name", "said"), [("lab/broken", "HTTP 503 Service Unavailable"), ("lab/often", "HTTP 429 Too Many Requests")]
)
@pytest.mark.usefixtures("asked")
def test_an_answer_that_is_an_error_is_said(name, said):
    (message,) = report_on(name).messages
    assert message.text.startswith(f"{PATH}={name}: the Hugging Face Hub answered {said}, and this machine's cache")
    assert "Try again later" in message.text and "did not answer" not in message.text


def test_a_hub_that_says_nothing_is_waited_for_as_long_as_the_limit_says(asked, monkeypatch):
    limits, send = [], httpx.Client.send

    def recording(client, request, **options):
        limits.append(request.extensions["timeout"])
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", recording)
    monkeypatch.setattr(hub_models, "TIMEOUT", 0.25)
    assert report_on(hub_server.SILENT).is_silent and len(asked) == 1
    assert set(limits[-1].values()) == {0.25}


@pytest.mark.parametrize("name", ["lab/gated", "lab/token", "lab/forbidden"])
@pytest.mark.usefixtures("asked")
def test_a_model_without_access_that_is_cached_is_no_problem(cached, name):
    cached(name)
    report = report_on(name)
    assert (report.problems, report.messages, report.unknown) == ([], [], [])


def test_with_modelscope_the_hub_is_not_asked(asked, monkeypatch):
    monkeypatch.setenv("VERL_USE_MODELSCOPE", "True")
    report = report_on("lab/missing")
    assert (report.problems, report.messages, report.unknown, asked) == ([], [], [], [])


@pytest.mark.usefixtures("no_hub")
def test_a_refused_connection_is_one_warning():
    report = report_on("lab/public")
    (message,) = report.messages
    assert message.kind == "warning" and message.text.startswith(f"{PATH}=lab/public: the Hugging Face Hub did not")
    for text in ("Connection refused", "Nothing about this model was checked", "HF_HUB_OFFLINE=1"):
        assert text in message.text
    assert (report.problems, report.unknown) == ([], ["lab/public"])


@pytest.mark.usefixtures("no_hub")
def test_a_cached_model_needs_no_hub(cached, monkeypatch):
    cached("lab/public")
    report = report_on("lab/public")
    assert report.unknown == [] and [message.kind for message in report.messages] == ["note"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert report_on("lab/public").messages == []


def test_offline_mode_is_said_for_a_model_that_is_not_cached(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = report_on("lab/public")
    (message,) = report.messages
    assert "HF_HUB_OFFLINE is set" in message.text and report.unknown == ["lab/public"]
    assert "HF_HUB_OFFLINE=1" not in message.text, "it is set already"
    assert message.text.endswith("Set the key to a local folder, or download the model to the cache before.")
    assert asked == []
