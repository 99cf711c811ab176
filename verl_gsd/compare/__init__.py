"""Learning curves of several runs, compared."""
