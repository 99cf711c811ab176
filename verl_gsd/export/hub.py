"""Uploads an exported folder to Hugging Face's hub, as the user who is logged in on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from verl_gsd.errors import ConfigError


def check_login(api: Any, name: str) -> str:
    """The full name OWNER/NAME of the repository to upload to. Without an owner in ``name``, it is the user.

    Args:
        api: a ``huggingface_hub.HfApi``.

    Raises:
        ConfigError: ``name`` is not a repository's name, nobody is logged in, or the hub cannot be reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push {name}: this is not a name on the hub. Use NAME or OWNER/NAME: {error}") from error
    try:
        user = api.whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"--push {name}: nobody is logged in to the hub. Run `hf auth login`") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ConfigError(f"--push {name}: the hub rejects the stored token. Run `hf auth login`") from error
        raise ConfigError(
            f"--push {name}: the hub cannot be reached ({_reason(error)}). Remove --push, and upload the folder later "
            f"with `hf upload {name} FOLDER`"
        ) from error
    return name if "/" in name else f"{user}/{name}"


def upload(api: Any, folder: Path, name: str) -> str:
    """Upload all files of ``folder`` to the repository OWNER/NAME and return its address.

    A repository that does not exist is created as a private one.

    Raises:
        ConfigError: the hub rejects the upload or cannot be reached. ``folder`` stays.
    """
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from verl-gsd export")
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigError(
            f"--push {name}: the upload failed ({_reason(error)}). The model is in {folder}. Check that you may write "
            f"to {name}, then run `hf upload {name} {folder}`"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    """The first line of a message of the hub's client, which repeats no token."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
