"""Settings that a budget and a sampler do not work with, and the reasons."""

from verl_gsd.declaration import Conflict

BUDGET_CONFLICTS = (
    Conflict(
        "trainer.v1.trainer_mode!=gsd_sync",
        "it divides the rollouts of a step among the step's prompts, and only gsd_sync trains on exactly those prompts",
        "Set trainer.v1.trainer_mode=gsd_sync, or budget=uniform.",
    ),
    Conflict(
        "algorithm.filter_groups.enable=true",
        "dynamic sampling replaces groups by groups of other sizes, which changes the number of rollouts per update",
        "Set algorithm.filter_groups.enable=false, or budget=uniform.",
    ),
    Conflict(
        "trainer.v1.sampler.sync_refill_failed_groups=true",
        "a group that replaces a failed one has another size",
        "Set trainer.v1.sampler.sync_refill_failed_groups=false, or budget=uniform.",
    ),
    Conflict(
        "trainer.v1.sync.parameter_sync_step!=1",
        "verl then updates on parts of a step, whose numbers of rollouts differ",
        "Set trainer.v1.sync.parameter_sync_step=1, or budget=uniform.",
    ),
    Conflict(
        "algorithm.use_kl_in_reward=true",
        "the weights that give prompts equal parts in the update follow from the recorded rewards, which lack the KL "
        "penalty. The parts would depend on the sizes of groups for every alpha but 0",
        "Set algorithm.use_kl_in_reward=false, budget=uniform, or algorithm.gsd.alpha=0. To keep a KL term, set "
        "actor_rollout_ref.actor.use_kl_loss=true.",
        when="algorithm.gsd.alpha!=0",
    ),
)

SAMPLER_CONFLICTS = (
    Conflict(
        "data.dataloader_num_workers!=0",
        "workers fetch prompts before the last step has ended, but the sampler needs the results of that step",
        "Set data.dataloader_num_workers=0.",
    ),
    Conflict(
        "data.sampler",
        "only one of the two can sample prompts, and verl's V1 trainers do not read data.sampler",
        "Remove data.sampler, or set sampler=uniform.",
    ),
)
