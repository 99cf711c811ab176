"""The algorithms: one folder per paper. ``verl_gsd.extension`` is their interface to a run.

Importing one of these packages registers its extensions. It needs neither torch nor verl.
"""
