"""Studies: one file per question. ``benchmarks/study.py`` runs them."""
