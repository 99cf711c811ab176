#!/usr/bin/env bash
# Write a bill of materials (CycloneDX, JSON) of the environment: every package, its version and its license.
#   scripts/sbom.sh FILE
#   VENV=.venv   the environment
# Known vulnerabilities of the locked packages, where PyPI's JSON service can be reached:
#   uv tool run pip-audit --disable-pip --require-hashes --requirement scripts/locks/cpu.txt
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath --canonicalize-missing "${VENV:-$root/.venv}")
file=${1:?"sbom: name the file to write, for example: scripts/sbom.sh sbom.json"}

# In an environment of its own, so that the tool is not part of the list.
"$venv/bin/uv" tool run --quiet --from 'cyclonedx-bom>=7,<8' cyclonedx-py environment "$venv/bin/python" \
  --pyproject "$root/pyproject.toml" --output-reproducible --output-file "$file"
