"""The parts of ``scripts/gpu_check.sh``: each is a module with ``check(report)``. ``__main__`` runs one."""
