"""The kernel's counters of processes that it killed because memory ran out."""

from verl_gsd.run import memory_kills
from verl_gsd.run.memory_kills import killed_since, oom_kills


def tree(tmp_path, cgroup, vmstat="nr_free_pages 1\noom_kill 2\nthp 3\n", **files):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    if vmstat is not None:
        (proc / "vmstat").write_text(vmstat)
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, content in files.items():
        path = cgroups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return oom_kills(proc, cgroups)


EVENTS = "low 0\nhigh 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n"


def test_the_machines_and_the_containers_counter_are_read(tmp_path):
    assert tree(tmp_path / "machine", "0::/\n") == 2
    assert tree(tmp_path / "version_2", "0::/user/a\n", **{"user/a/memory.events": EVENTS}) == 4
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"
    cgroup = "9:name=systemd:/\n4:memory:/docker/ab\n3:cpu,cpuacct:/\n"
    assert tree(tmp_path / "version_1", cgroup, **{"memory/docker/ab/memory.oom_control": control}) == 7


def test_root_cgroup_is_read_if_the_hosts_path_does_not_exist(tmp_path):
    assert tree(tmp_path, "0::/system.slice/docker-ab.scope\n", **{"memory.events": EVENTS}) == 4


def test_result_is_none_without_counters(tmp_path):
    assert tree(tmp_path / "none", "0::/\n", vmstat=None) is None
    assert tree(tmp_path / "old kernel", "0::/\n", vmstat="nr_free_pages 1\n") is None
    assert oom_kills(tmp_path / "nowhere", tmp_path / "nowhere") is None


def test_this_machine_has_a_counter():
    assert isinstance(oom_kills(), int)


def test_increase_is_a_sentence_and_no_increase_is_none(monkeypatch):
    monkeypatch.setattr(memory_kills, "oom_kills", lambda: 5)
    assert " 1 process " in killed_since(4) and " 3 processes " in killed_since(2)
    assert killed_since(5) is None and killed_since(None) is None
    monkeypatch.setattr(memory_kills, "oom_kills", lambda: None)
    assert killed_since(5) is None
