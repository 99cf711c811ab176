"""What can be wrong with a run, found before Ray starts."""
