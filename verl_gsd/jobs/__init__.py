"""A run as a job of a Ray cluster: what is sent there (``submission.py``, ``package.py``) and how it is watched
(``cluster.py``, ``following.py``). The cluster composes, checks and trains as ``verl-gsd train`` does anywhere."""
