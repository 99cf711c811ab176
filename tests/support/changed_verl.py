"""A process with a verl in which a name that our trainer imports is gone."""

import logging


def run():
    import verl  # noqa: F401  loads our plugin
    from verl.trainer.ppo import core_algos, padding_utils

    del padding_utils.SYNTHETIC_PADDING_SEQ_LEN
    logging.basicConfig(format="%(levelname)s %(message)s")
    from verl.trainer.ppo.v1 import get_trainer_cls

    print("stock trainer:", get_trainer_cls("sync").__name__)
    print("estimator registered:", "gsd" in core_algos.ADV_ESTIMATOR_REGISTRY)
    for mode in ("gsd_sync", "gsd_colocate_async", "gsd_separate_async"):
        try:
            get_trainer_cls(mode)({})
        except ValueError as error:
            print(mode, type(error).__name__, error)
