"""Settings that a budget and a sampler do not work with, and why."""

from verl_gsd.declaration import Conflict

BUDGET_CONFLICTS = (
    Conflict(
        "trainer.v1.trainer_mode!=gsd_sync",
        "it divides the rollouts of a step among the step's prompts, and only gsd_sync trains on exactly those prompts",
        "Set trainer.v1.trainer_mode=gsd_sync, or budget=uniform.",
    ),
    Conflict(
        "algorithm.filter_groups.enable=true",
        "dynamic sampling replaces groups by groups of other sizes, and the rollouts of an update no longer add up",
        "Set algorithm.filter_groups.enable=false, or budget=uniform.",
    ),
    Conflict(
        "trainer.v1.sampler.sync_refill_failed_groups=true",
        "a group that replaces a failed one has another size",
        "Set trainer.v1.sampler.sync_refill_failed_groups=false, or budget=uniform.",
    ),
    Conflict(
        "trainer.v1.sync.parameter_sync_step!=1",
        "verl then updates on parts of a step, and the rollouts of a part do not add up",
        "Set trainer.v1.sync.parameter_sync_step=1, or budget=uniform.",
    ),
)

SAMPLER_CONFLICTS = (
    Conflict(
        "data.dataloader_num_workers!=0",
        "workers fetch prompts before the result of the last step is known, and the sampler draws by that result",
        "Set data.dataloader_num_workers=0.",
    ),
    Conflict(
        "data.sampler",
        "only one of the two can draw prompts, and verl's V1 trainers do not read data.sampler",
        "Remove data.sampler, or set sampler=uniform.",
    ),
)
