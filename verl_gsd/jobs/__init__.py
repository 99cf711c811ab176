"""Runs as jobs of a Ray cluster: what is sent to it (``submission.py``, ``package.py``) and how a job is watched
(``cluster.py``, ``following.py``). The cluster composes, checks and trains like ``verl-gsd train`` on any machine."""
