"""A process in which the messages of verl's queue cannot be authenticated, although nothing in their source changed."""

import os

from omegaconf import OmegaConf


def run():
    import ray

    from verl_gsd.run import cluster_lock, our_runs
    from verl_gsd.trainer import queue_auth

    def fail(_):
        raise AttributeError("the queue has changed")

    queue_auth._patch_messages = fail

    def lock():
        raise LookupError("it goes on, and takes the lock")

    cluster_lock.take_lock = ray.init = lock
    import verl  # noqa: F401  loads our plugin, and then the queue
    import transfer_queue  # isort: skip

    def enter(name, conf=None):
        try:
            transfer_queue.init(conf)
        except Exception as error:
            print(f"{name}: {type(error).__name__} {error}")

    for name, mode in (("ours", "gsd_sync"), ("stock", "sync")):
        config = {"trainer": {"v1": {"trainer_mode": mode}}, "transfer_queue": {"enable": True}}
        enter(f"creating for {name}", OmegaConf.create(config).transfer_queue)
    os.environ[our_runs.MARK] = "1"
    enter("attaching in a worker of ours")


if __name__ == "__main__":
    run()
