"""Asks the Hugging Face Hub once whether the models of a config are there.

transformers asks the hub for every file of a model. If the hub does not answer, it repeats every request several times,
which takes a minute. Therefore one short request per model comes first. If the hub does not answer it, the checks use
only the files in the cache.

With VERL_USE_MODELSCOPE=true, verl downloads models from ModelScope. The Hugging Face Hub is then not asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.messages import Message
from verl_gsd.run.remote_paths import scheme_of

if TYPE_CHECKING:
    import httpx

#: Seconds to wait for a connection, and for an answer.
TIMEOUT = 5.0
#: HTTP status codes of the hub for a user or a token without access.
_NO_ACCESS = (401, 403)
#: The keys that can name a model on the hub -> the file that the hub is asked for.
_FILES = {
    "actor_rollout_ref.model.path": "config.json",
    "actor_rollout_ref.model.hf_config_path": "config.json",
    "actor_rollout_ref.model.tokenizer_path": "tokenizer_config.json",
}


@dataclass
class HubReport:
    """What the hub answered.

    Attributes:
        problems: models that the hub does not have or does not give to this user.
        messages: models that the hub could not be asked about.
        unknown: names of the models of which this machine has no file either.
        silence: why the hub cannot be asked; None if it answered all requests so far.
    """

    problems: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    silence: str | None = None

    @property
    def is_silent(self) -> bool:
        return self.silence is not None


@contextmanager
def hub_asked_once(config: DictConfig) -> Iterator[HubReport]:
    """Ask the hub about the models of ``config``. If it does not answer, the context makes no request to it."""
    from huggingface_hub import constants

    report = HubReport()
    keys: dict[str, str] = {}  # by name, so that a model is asked about once
    for key in _FILES:
        keys.setdefault(str(OmegaConf.select(config, key) or ""), key)
    for name, key in keys.items():
        if _is_hub_name(name) and not _uses_modelscope():
            _ask(key, name, report)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or report.is_silent
    try:
        yield report
    finally:
        constants.HF_HUB_OFFLINE = before


def _uses_modelscope() -> bool:
    """Whether verl replaces the hub by ModelScope. It reads the variable in the same way."""
    return os.environ.get("VERL_USE_MODELSCOPE", "").lower() == "true"


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if scheme_of(name) or name.startswith(("/", "~", ".")) or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path; the checks of files report it
        return False
    return True


def _ask(key: str, name: str, report: HubReport) -> None:
    import httpx
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    is_cached = isinstance(try_to_load_from_cache(name, _FILES[key]), str)
    if constants.HF_HUB_OFFLINE or report.is_silent:
        _add_unasked(key, name, is_cached, report)
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, _FILES[key]), timeout=TIMEOUT)
    except GatedRepoError:
        if not is_cached:  # transformers then loads the cached files
            report.problems.append(
                f"{key}={name}: the Hugging Face Hub gives access to this model only after you accept its authors' "
                "conditions. Accept them on the model's page and run `hf auth login`, or set the key to a local folder."
            )
    except RepositoryNotFoundError:
        report.problems.append(
            f"{key}={name}: there is no such folder on this machine, and no such model on the Hugging Face Hub, or it "
            "is private. Correct the name. If the model is private, run `hf auth login`."
        )
    except EntryNotFoundError:
        if _FILES[key] == "config.json":  # a tokenizer can have other files
            report.problems.append(
                f"{key}={name}: this repository on the Hugging Face Hub has no config.json, which a model for "
                "transformers needs. Set the key to a repository in the format of transformers, or to a local folder."
            )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        answer = error.response if isinstance(error, HfHubHTTPError) else None
        if answer is None:
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            report.silence = f"the Hugging Face Hub did not answer ({reason})"
        elif answer.status_code not in _NO_ACCESS:
            report.silence = f"the Hugging Face Hub answered {_status(answer)}"
        elif not is_cached:
            report.problems.append(
                f"{key}={name}: the Hugging Face Hub refuses access ({_status(answer)}). Run `hf auth login` with a "
                "token that may read this model, correct HF_TOKEN if it is set, or set the key to a local folder."
            )
        if report.is_silent:
            _add_unasked(key, name, is_cached, report)


def _status(answer: httpx.Response) -> str:
    """The status of an answer, with the hub's explanation if it has one."""
    status = f"HTTP {answer.status_code} {answer.reason_phrase}".rstrip()
    message = answer.headers.get("X-Error-Message")
    return f"{status}: {message}" if message else status


def _add_unasked(key: str, name: str, is_cached: bool, report: HubReport) -> None:
    """Note that the hub was not asked about a model, because it is silent or the user's HF_HUB_OFFLINE is set."""
    if not is_cached:
        remedy = (
            "Set the key to a local folder, or download the model to the cache before"
            if report.silence is None
            else "Try again later, or set the key to a local folder. On a machine without network, download the model "
            "to the cache before and set HF_HUB_OFFLINE=1"
        )
        report.unknown.append(name)
        report.messages.append(
            Message(
                "warning",
                f"{key}={name}: {report.silence or 'HF_HUB_OFFLINE is set'}, and this machine's cache does not have "
                f"the model. Nothing about this model was checked, not even that it exists. {remedy}.",
            )
        )
    elif report.silence is not None:
        report.messages.append(
            Message(
                "note",
                f"{key}={name}: {report.silence}. The checks read the model from this machine's cache. Set "
                "HF_HUB_OFFLINE=1 on a machine without network, so that nothing waits for the hub.",
            )
        )
