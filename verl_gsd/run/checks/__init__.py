"""Checks of a run's config, data and machine before Ray starts."""
