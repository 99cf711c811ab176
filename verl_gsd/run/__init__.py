"""Runs training from a command line: composes and checks the config, launches the run's process, and watches it."""
