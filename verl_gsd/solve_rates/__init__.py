"""Solve rates of prompts, read from tables, histograms, verl's rollout dumps or the records of a run."""

from verl_gsd.solve_rates.joining import join
from verl_gsd.solve_rates.rates import SolveRates
from verl_gsd.solve_rates.reading import read_solve_rates

__all__ = ["SolveRates", "join", "read_solve_rates"]
