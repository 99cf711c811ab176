"""Workers as forks of a server: what a fork must have of its own, and what happens where no server answers."""

import json


def test_what_is_imported_before_forking_does_not_import_ray(import_probe):
    """Two forks of a process that has used Ray's random generator give two tasks one identifier, and Ray aborts."""
    assert not json.loads(import_probe.output().splitlines()[-1])["ray is imported with the modules"]
