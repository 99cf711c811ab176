"""Question 5: which alpha, and do rollouts that follow disagreement help?"""

from studies.declaration import Arm, Study, Tuned

_ALPHAS = (-1.0, -0.5, 0.0, 1.5, 2.0)
_ROLLOUTS = {
    "budget": ("budget=adaptive",),
    "sampler": ("sampler=disagreement",),
    "budget_sampler": ("budget=adaptive", "sampler=disagreement"),
}
#: 60 steps visit 1,440 of the 2,560 prompts once, so that nothing is known of a prompt when it is visited. Of 480
#: prompts, each is visited three times.
_FEW = "data.train_max_samples=480"

STUDY = Study(
    name="dial",
    question="Which alpha learns fastest, and do an adaptive budget and a sampler of disagreement help?",
    hypothesis=(
        "GSD says that alpha moves the gradient from prompts of middle difficulty (low alpha) to hard and easy ones "
        "(high alpha). Then low alphas gain on middle levels, high ones on hard levels, and the sums differ little. "
        "Where prompts are visited several times, a budget and a sampler that follow disagreement should need fewer "
        "tokens for the same accuracy."
    ),
    measure=(
        "Exact held-out accuracy, averaged over the second half of a budget of tokens. Differences to alpha = 1 with "
        "uniform rollouts, and in the arms with 480 prompts to uniform rollouts of these, paired by seed."
    ),
    tuning=(
        "Per alpha, but for those of the study methods, on two seeds of their own: 6e-5, 1.2e-4 and 2.4e-4, then by "
        "factors of 2 beyond the best one while it is the lowest or the highest tried. Budget and sampler have the "
        "rate of alpha = 1."
    ),
    spread="As in the study methods: with 16 seeds, a difference of 0.01 is 3.8 standard errors.",
    tasks=("arithmetic",),
    baseline="alpha_1",
    arms=(
        # These two are runs of the study ``methods``.
        Arm("alpha_1", ("algo=grpo",), Tuned("methods", "grpo")),
        Arm("alpha_0.5", ("algo=gsd",), Tuned("methods", "gsd_0.5")),
        *(Arm(f"alpha_{alpha:g}", ("algo=gsd", f"algorithm.gsd.alpha={alpha}")) for alpha in _ALPHAS),
        *(Arm(name, ("algo=grpo", *words), Tuned("methods", "grpo")) for name, words in _ROLLOUTS.items()),
        *(
            Arm(f"{name}_480", ("algo=grpo", _FEW, *words), Tuned("methods", "grpo"), against="uniform_480")
            for name, words in ({"uniform": ()} | _ROLLOUTS).items()
        ),
    ),
    rates=(6e-5, 1.2e-4, 2.4e-4),
)
