"""Fake secrets of ten kinds, for tests that look for them in what a run writes."""

import os
from pathlib import Path

_RANDOM = "q7Zp4Wd9Kx2Lm8Tv"

#: Variable of the environment -> its value. None of them works anywhere.
CANARIES = {
    "HF_TOKEN": f"hf_{_RANDOM}Hf",
    "WANDB_API_KEY": f"{_RANDOM}0123456789abcdefWandb",
    "OPENAI_API_KEY": f"sk-proj-{_RANDOM}Openai",
    "GITHUB_TOKEN": f"github_pat_{_RANDOM}Github",
    "GITLAB_PRIVATE_TOKEN": f"glpat-{_RANDOM}Gitlab",
    "AWS_SECRET_ACCESS_KEY": f"{_RANDOM}/Aws+Secret",
    "SLACK_BOT_TOKEN": f"xoxb-{_RANDOM}-Slack",
    "GOOGLE_API_KEY": f"AIza{_RANDOM}Google",
    "JUDGE_AUTHORIZATION": f"Bearer eyJ{_RANDOM}.{_RANDOM}.Jwt",
    "DATABASE_URL": f"postgres://trainer:{_RANDOM}Db@db.example/runs",
}


def canaries_in(content: bytes) -> list[str]:
    """The variables whose values are in ``content``."""
    return [name for name, value in CANARIES.items() if value.encode() in content]


def files_with_a_canary(*folders: Path) -> list[str]:
    """Each file below ``folders`` whose content or name has a secret of ``CANARIES``, with the variable's name."""
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        content += os.fsencode(path)
        found += [f"{path}: {name}" for name in canaries_in(content)]
    return found
