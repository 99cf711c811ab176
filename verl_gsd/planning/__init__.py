"""Planning before a run: how often groups are silent, how strong their signal is, and how large they should be.

All functions assume binary rewards and a prompt with solve rate p (arXiv 2607.00152). They need only numpy and scipy,
take scalars or arrays, broadcast, and return a float if every input is a scalar.
"""

from verl_gsd.planning.allocation import allocate, allocate_from_counts
from verl_gsd.planning.counts import (
    expected_std_from_counts,
    posterior_expected_std,
    posterior_gain,
    posterior_silent_rate,
    silent_rate_from_counts,
)
from verl_gsd.planning.rates import (
    expected_std,
    fidelity,
    gain,
    mixed_rate,
    required_group_size,
    silent_rate,
)

__all__ = [
    "allocate",
    "allocate_from_counts",
    "expected_std",
    "expected_std_from_counts",
    "fidelity",
    "gain",
    "mixed_rate",
    "posterior_expected_std",
    "posterior_gain",
    "posterior_silent_rate",
    "required_group_size",
    "silent_rate",
    "silent_rate_from_counts",
]
