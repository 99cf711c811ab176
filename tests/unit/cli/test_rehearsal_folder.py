"""The folder of a rehearsal: nobody else can put another one in its place while the rehearsal runs."""

import stat

import pytest
import typer

from verl_gsd.cli import rehearse

pytestmark = pytest.mark.usefixtures("composing_is_fast")


@pytest.fixture
def rehearsing(tmp_path, compose_fast, monkeypatch):
    """(what runs in place of the rehearsal, words) -> rehearses the run tmp_path/shared/run. shared is sticky."""
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)

    def start(rehearsal, *words):
        monkeypatch.setattr(rehearse, "_rehearse", lambda line, composed, config, folder, findings: rehearsal(folder))
        run = f"trainer.default_local_dir={shared}/run"
        config, line = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu", run, *words)
        rehearse.rehearse(line, config, config)

    return start


def test_the_folder_is_made_before_anything_else_and_for_this_user_alone(rehearsing, tmp_path):
    """The reproduction of a review: a link that was put there during the checks led into a folder of the user."""
    seen = []

    def rehearsal(folder):
        with pytest.raises(FileExistsError):
            (tmp_path / "shared/run-rehearsal").symlink_to(tmp_path)
        seen.append((folder, stat.S_IMODE(folder.stat().st_mode)))

    rehearsing(rehearsal)
    assert seen == [(tmp_path / "shared/run-rehearsal", 0o700)]


def test_a_folder_in_which_nothing_was_written_is_removed(rehearsing, tmp_path):
    def failing(folder):
        raise KeyboardInterrupt

    rehearsing(lambda folder: None)
    assert list((tmp_path / "shared").iterdir()) == []
    with pytest.raises(typer.Exit):
        rehearsing(failing)
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_folder_with_files_is_kept_and_gets_the_report(rehearsing, tmp_path):
    rehearsing(lambda folder: (folder / "model").mkdir())
    assert sorted(path.name for path in (tmp_path / "shared/run-rehearsal").iterdir()) == ["model", "report.txt"]


@pytest.mark.parametrize("lies_there", ["a folder", "a link", "a link to nothing"])
def test_nothing_is_written_where_something_is(rehearsing, tmp_path, capsys, lies_there):
    taken = tmp_path / "shared/run-rehearsal"
    (tmp_path / "project").mkdir()
    if lies_there == "a folder":
        taken.mkdir()
    else:
        taken.symlink_to(tmp_path / ("project" if lies_there == "a link" else "nothing"))
    with pytest.raises(typer.Exit):
        rehearsing(lambda folder: pytest.fail("it began"))
    assert f"{taken} exists" in capsys.readouterr().err.replace("\n", " ").replace("  ", " ")
    assert taken.is_symlink() or taken.is_dir()
    assert not (tmp_path / "nothing").exists() and list((tmp_path / "project").iterdir()) == []


def test_a_folder_that_others_could_replace_is_rejected_unless_it_is_trusted(rehearsing, tmp_path, capsys):
    """By then, the run's folder was checked; another user could have made the folders above it since."""
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(typer.Exit):
        rehearsing(lambda folder: pytest.fail("it began"))
    assert "other users can write" in " ".join(capsys.readouterr().err.split())
    assert list((tmp_path / "shared").iterdir()) == []
    rehearsing(lambda folder: (folder / "model").mkdir(), f"trust={tmp_path}/shared")
    assert (tmp_path / "shared/run-rehearsal/model").is_dir()


def test_a_link_above_the_folder_is_not_followed(rehearsing, tmp_path, capsys):
    """Links were resolved before, so that a link which is there now was put there meanwhile."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shared").rmdir()
    (tmp_path / "shared").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(typer.Exit):
        rehearsing(lambda folder: pytest.fail("it began"))
    assert "symbolic link" in " ".join(capsys.readouterr().err.split())
    assert list((tmp_path / "elsewhere").iterdir()) == []
