"""What a run's records and metrics amount to: one page, PNGs, and in words what is wrong."""
