"""The environment of ``LOCKED=1 scripts/setup.sh``, its bill of materials, and a file other than the locked one."""

import json
import os
import re
import subprocess

import pytest
from packaging.utils import canonicalize_name
from places import ROOT

LOCKS = ROOT / "scripts/locks"


def versions(*locks):
    text = "\n".join((LOCKS / lock).read_text() for lock in locks)
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.minutes(8)
def test_the_locked_environment_has_the_locked_versions_and_nothing_else(tmp_path):
    venv, bill = tmp_path / "venv", tmp_path / "bill.json"
    environment = os.environ | {"VENV": str(venv), "LOCKED": "1", "EXTRAS": "cpu"}
    subprocess.run([ROOT / "scripts/setup.sh"], env=environment, check=True)
    subprocess.run([ROOT / "scripts/sbom.sh", bill], env=environment, check=True)
    listed = {canonicalize_name(part["name"]): part["version"] for part in json.loads(bill.read_text())["components"]}
    listed.pop("pip")  # came with the empty environment, and installed uv
    assert listed == versions("cpu.txt", "build.txt")

    # A mirror that serves another file than the one that was tested.
    tampered = tmp_path / "lock.txt"
    lock = (LOCKS / "build.txt").read_text()
    tampered.write_text(re.sub(r"sha256:[0-9a-f]{4}", "sha256:0000", lock))
    command = [venv / "bin/uv", "pip", "install", "--reinstall", "--no-deps", "--require-hashes", "-r", tampered]
    done = subprocess.run(command, env=environment | {"VIRTUAL_ENV": str(venv)}, capture_output=True, text=True)
    assert done.returncode != 0 and "hash" in done.stderr.lower(), done.stderr
