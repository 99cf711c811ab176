"""Random bytes that the processes of one Ray job share, and that other users cannot know or guess.

The first process that needs them stores them in the key-value store of Ray's control service, and the others read them
there, because

- it reaches every node without a shared disk, and needs no launcher, so it also works under verl's ``main_ppo``;
- they are never in an environment, a config, a log, a file or Ray's job metadata;
- only those who may use the Ray cluster can read them, and they can run code in it anyway. With Ray's token, which Ray
  enables by default in clusters that it starts for a run, these are the owners of the token. If Ray's authentication
  is disabled, everyone who reaches the cluster can run code in it, and this module cannot change that.
"""

from __future__ import annotations

import secrets

#: Namespace of our entries in Ray's key-value store.
_NAMESPACE = "verl_gsd"
_BYTES = 32


def job_secret(name: str) -> bytes:
    """The 32 bytes that this process's Ray job shares under ``name``.

    Raises:
        RuntimeError: Ray is not initialized in this process.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    if not ray.is_initialized():  # otherwise, the next call would start a cluster
        raise RuntimeError(f"The run's processes share {name} through Ray, and Ray is not initialized in this process")
    entry = f"{name}_{ray.get_runtime_context().get_job_id()}"
    _internal_kv_put(entry, secrets.token_bytes(_BYTES), overwrite=False, namespace=_NAMESPACE)
    secret = _internal_kv_get(entry, namespace=_NAMESPACE)
    assert secret is not None and len(secret) == _BYTES
    return secret
