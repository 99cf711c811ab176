"""The limit on CPU time of this process's control groups, which containers set."""

import pytest

from verl_gsd.lab.training import processes
from verl_gsd.run.cgroups import cpu_quota


@pytest.fixture
def quota(tmp_path):
    """(content of /proc/self/cgroup, file -> content) -> the quota."""

    def read(cgroup, files):
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        return cpu_quota(tmp_path / "proc", tmp_path / "cgroup")

    return read


VERSION_1 = "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/user/a\n", {"user/a/cpu.max": "400000 100000"}, 4),
        # A group that contains this process's group has the smaller limit.
        ("0::/user/a\n", {"user/a/cpu.max": "max 100000", "user/cpu.max": "20000 10000"}, 2),
        ("0::/user/a\n", {"user/a/cpu.max": "50000 100000", "user/cpu.max": "200000 100000"}, 0.5),
        # The path is the host's, and the container sees only its own group.
        ("0::/system.slice/docker-ab.scope\n", {"cpu.max": "300000 100000"}, 3),
        (
            VERSION_1,
            {"cpu/docker/ab/cpu.cfs_quota_us": "250000", "cpu/docker/ab/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (VERSION_1, {"cpu/docker/ab/cpu.cfs_quota_us": "-1", "cpu/docker/ab/cpu.cfs_period_us": "100000"}, None),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
        ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1", "cpu.max": "7 1"}, 7),
        ("4:memory:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None),
        ("0::/\n", {"cpu.max": "damaged"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_smallest_limit_counts(cgroup, files, cores, quota):
    assert quota(cgroup, files) == cores


def test_there_is_no_limit_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path, tmp_path) is None


@pytest.mark.parametrize(("limit", "cores"), [(None, 4), (16.0, 4), (4.0, 4), (3.0, 3), (1.5, 2), (0.2, 1)])
def test_runs_use_the_cores_that_affinity_and_limit_allow(limit, cores, monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda process: {0, 2, 3, 5})
    monkeypatch.setattr(processes, "cpu_quota", lambda: limit)
    assert processes.cores() == cores
