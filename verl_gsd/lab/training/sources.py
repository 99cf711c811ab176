"""What a run of the laboratory was made from, so that seeds from changed code or data are not mixed with new ones."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.extension import active, is_ours, module_of
from verl_gsd.lab.training.seeds import is_finished
from verl_gsd.run.compose import write_yaml
from verl_gsd.run.dataset import fingerprints
from verl_gsd.rundir import RunDirectory

_DATA = ("data.train_files", "data.val_files")


def sources_of(config: DictConfig) -> dict[str, str]:
    """Name -> hash of everything outside a resolved config that a run's results depend on.

    These are the data, the model, the reward function, this package, and the modules of other people's stages and
    extensions.
    """
    modules = [name for name in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if name]
    modules += [module_of(declared) for declared in active(config.algorithm.gsd) if not is_ours(declared)]
    reward = str(OmegaConf.select(config, "reward.custom_reward_function.path") or "")
    if reward.startswith("pkg://"):
        modules.append(reward.removeprefix("pkg://"))
    specs = {name: importlib.util.find_spec(name) for name in modules}
    files = {name: Path(spec.origin) for name, spec in specs.items() if spec is not None and spec.origin}
    if Path(reward).is_file():
        files[reward] = Path(reward)
    package = Path(__file__).parents[2]
    code = b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
    sources = {name: _hash(path.read_bytes()) for name, path in files.items()} | {package.name: _hash(code)}
    for key in _DATA:
        names = OmegaConf.select(config, key)
        sources[key] = ", ".join(fingerprints(names if isinstance(names, str) else list(names)))
    model = Path(config.actor_rollout_ref.model.path)
    # The *.json files have the sizes of the model, its end tokens and its tokenizer.
    of_model = [str(path) for pattern in ("*.json", "*.safetensors") for path in sorted(model.glob(pattern))]
    return sources | {"actor_rollout_ref.model.path": ", ".join(fingerprints(of_model))}


def write_sources(run: RunDirectory, config: DictConfig) -> None:
    """Write the sources of a run that is about to start into its folder."""
    write_yaml(OmegaConf.create(sources_of(config)), run.sources)


def check_same_sources(run: RunDirectory, sources: Mapping[str, str]) -> None:
    """Raise a ConfigError if the folder has a finished run from other code, data or weights."""
    if not is_finished(run):
        return
    stored = run.read_yaml(run.sources) or {}
    if changed := [name for name in sources if stored.get(name) != sources[name]]:
        raise ConfigError(
            f"{run.path}: {' and '.join(changed)} changed since the run in this folder. Use another --label, or "
            "remove the folder."
        )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
