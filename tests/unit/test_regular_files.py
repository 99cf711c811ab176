"""Files that others may have made: a named pipe or a device in their place stops no command."""

import os
import subprocess
from pathlib import Path

import pytest

from verl_gsd.python_commands import code_command
from verl_gsd.regular_files import SMALL, lines_of, open_regular, read_regular


def test_a_file_is_read_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "file") == read_regular(tmp_path / "link") == b"abc"
    with pytest.raises(OSError, match="link"):
        open_regular(tmp_path / "link", follow_links=False)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing")


def test_a_file_is_opened_in_a_folder_that_is_open(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with open_regular("file", folder=descriptor) as file:
            assert file.read() == b"abc"
    finally:
        os.close(descriptor)


def test_what_is_not_a_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path / "pipe", tmp_path / "zeros", tmp_path):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    run, private = tmp_path / "run", tmp_path / "private"
    (run / "below").mkdir(parents=True)
    private.mkdir()
    (private / "file").write_bytes(b"secret")
    (run / "below" / "file").write_bytes(b"abc")
    (run / "inside").symlink_to("below/file")
    (run / "outside").symlink_to(private / "file")
    (run / "folder").symlink_to(private)
    (tmp_path / "alias").symlink_to(run)
    assert read_regular(tmp_path / "alias" / "inside", within=tmp_path / "alias") == b"abc"
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (run / "outside", run / "folder" / "file", run / ".." / "private" / "file"):
        assert read_regular(path) == b"secret"
        with pytest.raises(OSError, match=f"a link leads out of {run}"):
            read_regular(path, within=run)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def offered(tmp_path):
    """A folder that another user can replace, because it is in a folder that others can write, and a private one."""
    for name in ("shared/run", "private"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(name.encode())
    (tmp_path / "shared").chmod(0o777)
    return tmp_path / "shared" / "run"


def test_a_folder_that_is_a_link_of_another_user_is_not_read(offered, tmp_path):
    """The link may lead to a private folder. All of its files are in the folder to which it leads."""
    assert read_regular(offered / "file", within=offered) == b"shared/run"
    offered.rename(tmp_path / "before")
    offered.symlink_to(tmp_path / "private")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=f"the link {offered} belongs to user id .* other users can write"):
        read_regular(offered / "file", within=offered)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (tmp_path / "shared").chmod(0o755)
    assert read_regular(offered / "file", within=offered) == b"private", "nobody else can replace it"


@pytest.mark.parametrize("back", [False, True], ids=["a link stays", "the folder is back"])
def test_a_folder_that_becomes_a_link_while_a_file_is_opened_is_not_read(offered, tmp_path, monkeypatch, back):
    opened = os.open

    def stub_that_exchanges_the_folder(path, *arguments, **options):
        if path != offered / "file":
            return opened(path, *arguments, **options)
        offered.rename(tmp_path / "before")
        offered.symlink_to(tmp_path / "private")
        descriptor = opened(path, *arguments, **options)
        if back:
            offered.unlink()
            (tmp_path / "before").rename(offered)
        return descriptor

    monkeypatch.setattr(os, "open", stub_that_exchanges_the_folder)
    with pytest.raises(OSError, match=f"a link leads out of {offered}" if back else f"the link {offered} belongs"):
        read_regular(offered / "file", within=offered)


def test_a_link_that_is_changed_after_the_file_is_open_hides_nothing(tmp_path, monkeypatch):
    """The place of the open file counts. Another user could change the link between opening and checking."""
    (tmp_path / "run").mkdir()
    (tmp_path / "private").write_bytes(b"secret")
    (tmp_path / "run" / "harmless").write_bytes(b"abc")
    link = tmp_path / "run" / "file"
    link.symlink_to(tmp_path / "private")
    opened = os.open

    def stub_that_changes_the_link(path, *arguments, **options):
        descriptor = opened(path, *arguments, **options)
        if path == link:
            link.unlink()
            link.symlink_to("harmless")
        return descriptor

    monkeypatch.setattr(os, "open", stub_that_changes_the_link)
    with pytest.raises(OSError, match="a link leads out"):
        read_regular(link, within=tmp_path / "run")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    """It takes no space on the disk. Reading hundreds of gigabytes would fill the memory."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, SMALL + 1)
    with pytest.raises(OSError, match="larger than 67,108,864 bytes"):
        read_regular(path)
    path.write_bytes(b"12345")
    assert read_regular(path, limit=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(path, limit=4)


def test_lines_are_read_up_to_one_that_is_too_long(tmp_path):
    (tmp_path / "file").write_bytes(b"ab\ncd\ne")
    with open_regular(tmp_path / "file") as file:
        assert list(lines_of(file, limit=3)) == [b"ab\n", b"cd\n", b"e"]
    with open_regular(tmp_path / "file") as file:
        lines = lines_of(file, limit=2)
        with pytest.raises(OSError, match="a line is longer than 2 bytes"):
            next(lines)


REFUSED = "it is not a regular file"
#: What reads a file of a run: (the file, code that reads it, what the code prints or raises).
READERS = {
    "the number of ranks": (
        "global_step_1/actor/fsdp_config.json",
        "from verl_gsd.checkpoints import world_size; world_size(path.parent)",
        REFUSED,
    ),
    "the attempt of a checkpoint": (
        "global_step_1/gsd/metrics.json",
        "from verl_gsd.checkpoints import whole_checkpoints; print(list(whole_checkpoints(path.parents[2])))",
        "[]",
    ),
    "a run's words": (
        "overrides.yaml",
        "from verl_gsd.run.trust import stored_words; stored_words(RunDirectory(path.parent), None, trusted=True)",
        REFUSED,
    ),
    "a run's signature": (
        "signature",
        "from verl_gsd.run import trust; (path.parent / 'overrides.yaml').write_text('[]'); trust.why_unsigned()\n"
        "trust.stored_words(RunDirectory(path.parent), None, trusted=False)",
        "nothing shows that you started this run",
    ),
    "the key": ("verl_gsd/key", "from verl_gsd.run.trust import why_unsigned; print(why_unsigned())", REFUSED),
    "curves": ("curves.json", "from verl_gsd.compare.comparison_file import read_curves; read_curves(path)", REFUSED),
    "an evaluation": (
        "result.json",
        "from verl_gsd.evaluation.results import read_result; read_result(path.parent, within=path.parent)",
        REFUSED,
    ),
    "a state": (
        "global_step_1/gsd/state.json",
        "from verl_gsd.state import saved_torch_version; print(saved_torch_version(path.parents[1]))",
        "None",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_in_place_of_a_file_does_not_stop_its_reader(tmp_path, reader):
    """A process of its own, because the old code waits for a writer for ever."""
    name, code, expected = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    before = f"from pathlib import Path\nfrom verl_gsd.rundir import RunDirectory\npath = Path({str(path)!r})\n"
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    command = code_command(before + code)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert expected in done.stdout + done.stderr
