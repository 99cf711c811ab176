"""Solve rates of prompts, from whatever a user has: tables, rollout dumps, records of a run."""
