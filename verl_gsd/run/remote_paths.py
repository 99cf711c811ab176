"""The keys of verl 0.9.1 that name files and models, and which remote paths verl can read.

Other remote paths are rejected before Ray starts.

Models: verl copies ``hdfs://`` folders to the local disk (verl/utils/fs.py). It passes all other paths to transformers,
which reads local folders and models on the Hugging Face Hub.

Data files: verl copies ``hdfs://`` files in the same way. It passes all other paths to ``datasets``, which reads every
scheme that fsspec supports. For most schemes fsspec needs an additional package, for example s3fs for ``s3://``.
"""

from __future__ import annotations

import importlib.util
import re
import shutil

import fsspec

_ROLLOUT = "actor_rollout_ref.rollout"
#: The keys of verl's config that name files or folders. Their values can have a scheme, for example hdfs:// or pkg://.
FILE_KEYS = (
    "data.train_files",
    "data.val_files",
    "data.custom_cls.path",
    "data.tool_config_path",
    "data.function_tool_path",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
    "reward.reward_model.rollout.quantization_config_file",
    "custom_reward_function.path",
    "reward_model.reward_loop_module_path",
    f"{_ROLLOUT}.multi_turn.tool_config_path",
    f"{_ROLLOUT}.multi_turn.function_tool_path",
    f"{_ROLLOUT}.agent.agent_loop_config_path",
    f"{_ROLLOUT}.agent.custom_async_server.path",
    f"{_ROLLOUT}.router_config_path",
    f"{_ROLLOUT}.quantization_config_file",
    "actor_rollout_ref.actor.qat.quantization_config_path",
    "actor_rollout_ref.actor.fsdp_config.qat.quantization_config_path",
    "actor_rollout_ref.ref.fsdp_config.qat.quantization_config_path",
    "critic.fsdp.qat.quantization_config_path",
    "trainer.v1.sampler.custom_sampler.path",
    "trainer.resume_from_path",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "ray_kwargs.timeline_json_file",
)
#: The keys of verl's config that name a model: a folder, or a name on the hub.
MODEL_KEYS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.hf_config_path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.lora_adapter_path",
    "actor_rollout_ref.model.lora.adapter_path",
    "critic.model.path",
    "critic.model.hf_config_path",
    "critic.model.tokenizer_path",
    "critic.model.lora_adapter_path",
    "critic.model.lora.adapter_path",
    "reward.reward_model.model_path",
    "reward_model.model.path",
    "distillation.teacher_models.teacher_model.model_path",
)

_HDFS = "hdfs"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(path: str) -> str | None:
    """The scheme of a path, for example ``hdfs`` for ``hdfs://namenode/file``; None for local paths and hub names."""
    match = _SCHEME.match(path)
    return match[1] if match else None


def unreadable_model(path: str) -> str | None:
    """Why verl cannot read a model from the remote ``path`` on any machine, with the fix; None if it can."""
    if scheme_of(path) == _HDFS:
        return None
    return (
        f"verl reads models only from local folders, from the Hugging Face Hub and from {_HDFS}://. Download the model "
        "or mount its storage, and set the key to the local folder."
    )


def unreadable_file(path: str) -> str | None:
    """Why verl cannot read data from the remote ``path`` on any machine, with the fix; None if it can."""
    if not path.endswith((".parquet", ".json", ".jsonl")):
        return "verl detects the file format by the suffix. Use a path that ends in .parquet, .json or .jsonl."
    scheme = scheme_of(path)
    if scheme == _HDFS or scheme in fsspec.available_protocols():
        return None
    return (
        f"verl cannot read {scheme}:// files. Download the file or mount its storage, and set the key to the local "
        "path."
    )


def missing_client(path: str) -> str | None:
    """The client for the remote ``path`` that this machine lacks, with the fix; None if nothing is missing."""
    scheme = scheme_of(path)
    if scheme == _HDFS:
        # verl prefers the package hdfs_io if it is installed. Without both, verl would run "None dfs -get".
        if shutil.which("hdfs") or importlib.util.find_spec("hdfs_io"):
            return None
        return (
            "verl copies it with the command hdfs, which is not on the PATH of this machine. Install the Hadoop client "
            "and add hdfs to PATH, or download the path and set the key to the local copy."
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        # The error names the package to install.
        return f"{error}, or download the path and set the key to the local copy."
    except ValueError:  # fsspec does not know the scheme
        return None
    return None
