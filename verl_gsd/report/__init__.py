"""Reports of runs: a page and PNGs of charts from records and metrics, with findings about what went wrong."""
