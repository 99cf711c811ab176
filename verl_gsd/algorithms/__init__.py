"""One folder for each paper, with everything about it; ``verl_gsd.extension`` is what a run knows of them.

Importing one of these packages registers its extensions, and needs neither torch nor verl.
"""
