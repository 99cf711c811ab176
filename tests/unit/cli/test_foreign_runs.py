"""Run folders of other people: nothing in them runs, and no secret is sent, unless the user trusts the folder."""

import errno
import os
import shlex
import shutil
import stat
from datetime import datetime
from pathlib import Path

import pytest
import typer
import yaml
from acls import grant
from checkpoint_files import write_checkpoint
from hostile_server import HostileServer, http
from omegaconf import OmegaConf, open_dict
from typer.testing import CliRunner

from verl_gsd.cli import train
from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.jobs.submission import resumed_run
from verl_gsd.judge.cache import TRUSTED
from verl_gsd.run import launch, trust
from verl_gsd.run.code_paths import CODE_KEYS
from verl_gsd.run.compose import parse_line
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.run.remote_paths import FILE_KEYS, MODEL_KEYS
from verl_gsd.rundir import RunDirectory

LINE = ["algo=grpo", "task=arithmetic", "hardware=cpu"]

pytestmark = pytest.mark.usefixtures("composing_is_fast")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without a key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint that this user started."""
    run = RunDirectory(tmp_path / "my run")
    run.path.mkdir()
    run.overrides.write_text(yaml.safe_dump(LINE))
    write_checkpoint(run.path, 4)
    trust.sign(run, run.overrides.read_bytes())
    return run


def resumed(run, *words):
    return train._line_to_resume(parse_line([f"resume={run.path}", *words]))


def test_an_own_run_is_resumed_without_a_further_word(run):
    assert set(LINE) <= set(resumed(run).words)
    assert stat.S_IMODE(trust.key_file().stat().st_mode) == 0o600


def test_a_foreign_run_runs_nothing_and_sends_nothing_even_in_a_dry_run(tmp_path, monkeypatch):
    """The reproduction of the audit: code to import, and a variable whose value a server gets as a key."""
    run = RunDirectory(tmp_path / "gift")
    run.path.mkdir()
    write_checkpoint(run.path, 1)
    (run.path / "verifier.py").write_text(
        f"open({str(tmp_path / 'owned')!r}, 'w')\ndef compute_score(*_): return 0.0\n"
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr-secret")
    with HostileServer(http(404)) as server:
        judge = "algorithm.gsd.dagrpo.judge"
        words = ["hardware=cpu", "task=arithmetic", "algo=dagrpo", f"{judge}.base_url={server.url}"]
        words += [f"{judge}.api_key_env=AWS_SECRET_ACCESS_KEY"]
        words += [f"reward.custom_reward_function.path={run.path}/verifier.py"]
        run.overrides.write_text(yaml.safe_dump(words))
        line = ["train", f"resume={run.path}", "+algorithm.gsd.state=fresh", "--dry-run"]
        done = CliRunner().invoke(app, line)
        assert server.headers == []
    assert not (tmp_path / "owned").exists()
    assert done.exit_code == 2
    assert all(f"  {word}\n" in done.stderr for word in words), "the message names what would run"
    first = done.stderr.splitlines()[1]
    assert "base_url" in first, "suspicious words come first"
    assert f"trust={run.path}" in done.stderr


def test_a_word_of_trust_for_this_folder_resumes_a_foreign_run(run):
    run.signature.unlink()
    with pytest.raises(ConfigError, match="nothing shows that you started this run"):
        resumed(run)
    assert set(LINE) <= set(resumed(run, f"trust={run.path}").words)
    assert not any(word.startswith("trust=") for word in resumed(run, f"trust={run.path}").words)
    with pytest.raises(ConfigError, match=r"trust=.*other: .*Set trust=.*my run"):
        resumed(run, f"trust={run.path.parent}/other")


def test_a_word_of_trust_in_the_folder_itself_has_no_effect(run):
    run.overrides.write_text(yaml.safe_dump([*LINE, f"trust={run.path}", f"resume={run.path}"]))
    with pytest.raises(ConfigError, match="nothing shows"):
        resumed(run)


@pytest.mark.parametrize("change", ["words", "copy", "key", "no key", "damaged"])
def test_words_of_somebody_else_are_not_resumed_with_a_signature_of_this_user(run, change, monkeypatch):
    if change == "words":
        run.overrides.write_text(yaml.safe_dump([*LINE, "reward.custom_reward_function.path=/a.py"]))
    elif change == "copy":  # it may have other checkpoints
        shutil.copytree(run.path, run.path.parent / "copy")
        run = RunDirectory(run.path.parent / "copy")
    elif change == "key":
        trust.key_file().unlink()
        other = RunDirectory(run.path.parent / "other")
        other.path.mkdir()
        other.overrides.write_text(yaml.safe_dump(LINE))
        trust.sign(other, other.overrides.read_bytes())
    elif change == "no key":
        trust.key_file().unlink()
    else:
        run.signature.write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="nothing shows that you started this run"):
        resumed(run)


@pytest.mark.parametrize("question", ["resume", "distrust"])
def test_a_folder_that_becomes_a_link_to_an_own_run_is_not_trusted(run, tmp_path, monkeypatch, question):
    """Its owner could make it a link during the check. A signature is valid for the run's own folder only."""
    gift = RunDirectory(tmp_path / "gift")
    gift.path.mkdir()
    shutil.copy(run.overrides, gift.overrides)

    def stub_that_exchanges_the_folder(real=trust._read_key):
        if not gift.path.is_symlink():
            gift.path.rename(tmp_path / "before")
            gift.path.symlink_to(run.path)
        return real()

    monkeypatch.setattr(trust, "_read_key", stub_that_exchanges_the_folder)
    if question == "distrust":
        assert "nothing shows that you started this run" in (trust.distrust(gift) or "")
    else:
        with pytest.raises(ConfigError, match="nothing shows that you started this run"):
            trust.stored_words(gift, None, trusted=False)


def test_a_run_of_another_home_directory_is_not_resumed_without_its_key(run, tmp_path, monkeypatch):
    shared = trust.key_file().parents[1]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config of the pod"))
    with pytest.raises(ConfigError, match=r"another home directory, for example in a container.*set XDG_CONFIG_HOME"):
        resumed(run)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(shared))
    assert set(LINE) <= set(resumed(run).words)


def test_a_run_is_found_under_another_name_of_the_same_folder(run):
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    assert set(LINE) <= set(resumed(RunDirectory(link)).words)


def test_files_that_others_can_write_are_not_resumed(run, monkeypatch):
    shard = run.checkpoint(4) / "actor" / "model_world_size_1_rank_0.pt"
    for path, mode in ((run.path, 0o777), (shard.parent, 0o757), (shard, 0o646), (run.overrides, 0o666)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"other users can write {path}.*chmod -R go-w"):
            resumed(run)
        path.chmod(before)
    shard.chmod(0o664)
    assert set(LINE) <= set(resumed(run).words), "the group of the user's own name has no other members"
    monkeypatch.setattr(trust.file_access, "is_own_group", lambda group: False)
    with pytest.raises(ConfigError, match=f"other users can write {shard}"):
        resumed(run)
    assert set(LINE) <= set(resumed(run, f"trust={run.path}").words)


def test_links_to_folders_do_not_hide_files_that_others_can_write(run, tmp_path):
    actor = run.checkpoint(4) / "actor"
    elsewhere = actor.rename(tmp_path / "elsewhere")
    actor.symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(run.path)  # a loop
    assert set(LINE) <= set(resumed(run).words)
    (elsewhere / "model_world_size_1_rank_0.pt").chmod(0o646)
    with pytest.raises(ConfigError, match=r"other users can write .*/actor/model_world_size_1_rank_0\.pt"):
        resumed(run)


def test_a_checkpoint_for_a_new_run_must_not_be_writable_for_others(run, tmp_path):
    """No signature covers a checkpoint of another run, so that only its files are checked."""
    checkpoint = run.checkpoint(4)
    words = [*LINE, "trainer.resume_mode=resume_path", f"trainer.resume_from_path='{checkpoint}'"]
    words.append(f"trainer.default_local_dir='{tmp_path}/new'")
    _, config = train._compose(words)
    assert config.trainer.resume_from_path == str(checkpoint)
    (checkpoint / "actor").chmod(0o777)
    with pytest.raises(ConfigError, match=r"trainer\.resume_from_path=.*: other users can write .*/actor\b.*copy it"):
        train._compose(words)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_checkpoint_of_another_user_is_not_resumed(run):
    shard = run.checkpoint(4) / "actor" / "model_world_size_1_rank_0.pt"
    os.chown(shard, 65534, -1)
    with pytest.raises(ConfigError, match=f"{shard} belongs to the user"):
        resumed(run)


@pytest.mark.parametrize("fault", ["others can read it", "it is empty"])
def test_a_key_that_others_can_read_or_that_is_damaged_is_not_used(run, fault):
    if fault == "it is empty":
        trust.key_file().write_bytes(b"")
    else:
        trust.key_file().chmod(0o644)
    with pytest.raises(ConfigError, match="this key is damaged, or other users can read it"):
        resumed(run)
    run.signature.unlink()
    trust.sign(run, run.overrides.read_bytes())
    assert not run.signature.exists() and "this key is damaged" in trust.why_unsigned()
    with pytest.raises(ConfigError, match=f"{trust.key_file()}: this key is damaged"):
        resumed(run)  # the key is the reason, and not the missing signature


def test_a_file_system_without_hard_links_has_a_key(run, monkeypatch):
    def stub_without_hard_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", stub_without_hard_links)
    trust.key_file().unlink()
    assert trust.why_unsigned() is None
    key = trust.key_file().read_bytes()
    trust.sign(run, run.overrides.read_bytes())
    assert set(LINE) <= set(resumed(run).words) and trust.key_file().read_bytes() == key
    assert stat.S_IMODE(trust.key_file().stat().st_mode) == 0o600 and len(key) == 32
    assert list(trust.key_file().parent.iterdir()) == [trust.key_file()], "no temporary file stays"


def test_a_new_key_is_on_the_disk_before_it_gets_its_name(home, monkeypatch):
    """Otherwise a crash of the machine leaves an empty file."""
    done = []
    link, fsync = os.link, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: done.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "link", lambda *paths: done.append("link") or link(*paths))
    assert trust.why_unsigned() is None
    assert done == ["fsync", "link"]


def test_a_run_that_cannot_be_signed_warns_at_its_start_with_the_reason(run, home, monkeypatch, capsys):
    def stub_that_trains_nothing(*_, **__):
        raise RunStoppedError("stopped")

    monkeypatch.setattr(launch, "train", stub_that_trains_nothing)
    monkeypatch.setattr(train, "held_out_prompts", lambda config: {})
    for key_works in (True, False):
        if not key_works:
            (home / "file").touch()
            monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "file"))
        line, config = train._compose([*LINE, f"trainer.default_local_dir={home}/new-{key_works}"])
        with pytest.raises(typer.Exit):
            train._run(config, line)
        warned = capsys.readouterr().err
        assert ("warning: this run will not be signed" in warned) != key_works
    assert f"{home}/file/verl_gsd/key: your key cannot be read or created (Not a directory). Set XDG" in warned
    with pytest.raises(ConfigError, match=r"your key cannot be read \(Not a directory\)"):
        resumed(run)


def test_without_a_place_for_a_key_a_run_starts_unsigned(run, tmp_path, monkeypatch):
    run.signature.unlink()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    trust.sign(run, run.overrides.read_bytes())
    assert not run.signature.exists()


ALIASES = b"- &a x\n- *a\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{a: 1}", "not a list"),
        (b"[1]", "not a list"),
        (b"\xff", "cannot be read"),
        (b"[" * 5_000, "cannot be read"),
        (b"a: [", "cannot be read"),
        (ALIASES, "cannot be read: it has an alias"),
    ],
    ids=range(6),
)
def test_words_that_are_no_list_are_an_error(run, content, problem):
    run.overrides.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"overrides\.yaml: {problem}"):
        resumed(run)


def test_the_list_of_words_is_safe_to_print(run):
    words = [f"+a{number}=1" for number in range(200)]
    run.overrides.write_text(yaml.safe_dump([*words, "+path=\x1b]52;c;cm0gLXJm\x07", f"+y=/{'b' * 1000}"]))
    with pytest.raises(ConfigError) as rejected:
        resumed(run)
    text = str(rejected.value)
    assert "\x1b" not in text and r"\x1b]52" in text
    assert "bbb [cut]\n" in text and "and 102 more in" in text


def renames_failing(monkeypatch, at, error):
    """A stub: the rename number ``at`` (from 0) raises ``error``. Returns the renames so far."""
    done, replace = [], Path.replace

    def stub_that_fails(self, target):
        done.append(target)
        if len(done) == at + 1:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stub_that_fails)
    return done


def resume_config(run):
    trainer = {"default_local_dir": str(run.path), "resume_mode": "auto"}
    return OmegaConf.create({"trainer": trainer, "ray_kwargs": {"ray_init": {"runtime_env": {}}}})


@pytest.mark.parametrize("at", range(5))
def test_a_kill_at_any_moment_of_a_resume_leaves_a_run_that_can_be_resumed(run, monkeypatch, at):
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        done = renames_failing(patches, at, KeyboardInterrupt)
        with launch.new_attempt(resume_config(run), [*LINE, "+a=1"], resuming=True):
            pytest.fail("the resume was killed")
    assert done[-1] == [run.config, run.attempt_config(1), run.signature, run.overrides, run.signature][at]
    assert set(LINE) <= set(resumed(run).words)


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_at_any_moment_of_a_resume_restores_the_run(run, monkeypatch, at):
    words, signature = run.overrides.read_bytes(), run.signature.read_bytes()
    with monkeypatch.context() as patches, pytest.raises(ConfigError, match=r"my run: .*No space.*Free some space"):
        renames_failing(patches, at, OSError(errno.ENOSPC, "No space left on device"))
        with launch.new_attempt(resume_config(run), [*LINE, "+a=1"], resuming=True):
            pytest.fail("the disk is full")
    assert (run.overrides.read_bytes(), run.signature.read_bytes()) == (words, signature)
    assert set(LINE) <= set(resumed(run).words)


@pytest.mark.parametrize("at", range(5, 10))
def test_a_kill_while_a_rejected_resume_is_undone_leaves_a_run_that_can_be_resumed(run, monkeypatch, at):
    run.config.write_text("{}")
    with monkeypatch.context() as patches, pytest.raises((KeyboardInterrupt, ConfigError)):
        renames_failing(patches, at, KeyboardInterrupt)
        with launch.new_attempt(resume_config(run), [*LINE, "+a=1"], resuming=True):
            raise ConfigError("refused")
    assert set(LINE) <= set(resumed(run).words)


def test_after_a_resume_the_signature_is_of_the_new_words_only(run):
    before = run.overrides.read_bytes()
    with launch.new_attempt(resume_config(run), [*LINE, "+a=1"], resuming=True):
        assert "+a=1" in resumed(run).words
    run.overrides.write_bytes(before)
    with pytest.raises(ConfigError, match="nothing shows"):
        resumed(run)


def test_words_that_were_not_signed_are_not_signed_by_a_resume_that_trusts_them(run, monkeypatch):
    run.overrides.write_text(yaml.safe_dump([*LINE, "+b=1"]))
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        renames_failing(patches, 2, KeyboardInterrupt)
        with launch.new_attempt(resume_config(run), [*LINE, "+a=1"], resuming=True):
            pytest.fail("the resume was killed")
    with pytest.raises(ConfigError, match="nothing shows"):
        resumed(run)


def test_a_submitted_resume_takes_the_word_along():
    job = resumed_run("/runs/a", ["trust=/runs/a"], datetime(2026, 1, 1))
    line = parse_line(shlex.split(job.entrypoint)[4:])
    assert (str(line.resume), str(line.trust)) == ("/runs/a", "/runs/a")


def test_a_new_run_in_a_folder_where_others_can_write_needs_a_word_of_trust(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    folder = tmp_path / "shared" / "run"
    words = [*LINE, f"trainer.default_local_dir={folder}"]
    with pytest.raises(ConfigError, match=rf"default_local_dir={folder}: .*{folder.parent} .*trust={folder}"):
        train._compose(words)
    for trusted in (folder, folder.parent):
        line, config = train._compose([*words, f"trust={trusted}"])
        assert config.trainer.default_local_dir == str(folder) and str(line.trust) == str(trusted)
        assert not any("trust" in word for word in line.words)
    with pytest.raises(ConfigError, match=rf"trust={tmp_path}/other: .*Set trust={folder}"):
        train._compose([*words, f"trust={tmp_path}/other"])


def test_the_word_of_trust_of_a_resume_reaches_its_start_and_a_stored_one_does_not(run):
    run.overrides.write_text(yaml.safe_dump([*LINE, f"trust={run.path}"]))
    trust.sign(run, run.overrides.read_bytes())
    assert resumed(run).trust is None
    assert resumed(run, f"trust={run.path}").trust == run.path


def test_the_laboratory_has_no_use_for_trust():
    from verl_gsd.lab.training.checks import parse_lab_line

    with pytest.raises(ConfigError, match=r"trust=/a: .*Remove it"):
        parse_lab_line(["algo=grpo", "task=arithmetic", "trust=/a"])


def test_a_named_user_of_an_acl_who_can_write_is_another_user(run, tmp_path, monkeypatch):
    """The mode alone looks as if only the user's private group could write."""
    monkeypatch.setattr(trust.file_access, "is_own_group", lambda group: True)
    shard = run.checkpoint(4) / "actor" / "model_world_size_1_rank_0.pt"
    grant(shard, 65534, os.R_OK | os.W_OK)
    with pytest.raises(ConfigError, match=f"other users can write {shard}.*chmod -R go-w"):
        resumed(run)
    shard.chmod(0o640)  # what the message recommends
    assert set(LINE) <= set(resumed(run).words)
    grant(tmp_path, 65534, os.R_OK | os.W_OK | os.X_OK, default=True)
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=rf"default_local_dir={tmp_path}/new: .*setfacl -k {tmp_path}"):
        train._compose([*LINE, f"trainer.default_local_dir={tmp_path}/new"])


def test_a_run_stays_in_the_folder_that_was_checked_if_a_link_to_it_is_changed(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    _, config = train._compose([*LINE, f"trainer.default_local_dir={tmp_path}/link/new"])
    assert config.trainer.default_local_dir == f"{tmp_path}/new"
    _, config = train._compose([*LINE, f"trainer.default_local_dir={tmp_path}/link/new", f"trust={tmp_path}/link"])
    assert config.trainer.default_local_dir == f"{tmp_path}/new"
    link = tmp_path / "link" / run.path.name
    assert resumed(RunDirectory(link)).resume == run.path
    checkpoint = train._chosen_checkpoint(parse_line([f"resume={link}/global_step_4"]))
    assert checkpoint == run.checkpoint(4)


def test_a_link_that_takes_the_place_of_a_new_run_is_not_followed(tmp_path):
    """Its folder was checked when nothing was there."""
    (tmp_path / "mine").mkdir()
    config = resume_config(RunDirectory(tmp_path / "run"))
    (tmp_path / "run").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/run: the path leads through a symbolic link.*{tmp_path}/mine"):
        launch.new_attempt(config, LINE, resuming=False).__enter__()
    assert not RunDirectory(tmp_path / "mine").config.exists()


def test_a_checkpoint_for_a_new_run_must_not_be_replaceable_and_is_used_without_links(run, tmp_path):
    (tmp_path / "link").symlink_to(run.checkpoint(4))
    words = [*LINE, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/link"]
    words.append(f"trainer.default_local_dir='{tmp_path}/new'")
    _, config = train._compose(words)
    assert config.trainer.resume_from_path == str(run.checkpoint(4))
    run.path.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"resume_from_path={tmp_path}/link: other users can write {run.path} "):
        train._compose(words)


def test_a_link_in_a_checkpoint_must_lead_through_folders_that_others_cannot_write(run, tmp_path):
    shard = run.checkpoint(4) / "actor" / "model_world_size_1_rank_0.pt"
    (tmp_path / "shared").mkdir()
    shard.rename(tmp_path / "shared" / "shard")
    shard.symlink_to(tmp_path / "shared" / "shard")
    assert set(LINE) <= set(resumed(run).words)
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(ConfigError, match=rf"{shard} is a link, and other users can write {tmp_path}/shared"):
        resumed(run)
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(ConfigError, match=rf"{shard} cannot be examined \(Too many levels of symbolic links\)"):
        resumed(run)


CODE = "reward.custom_reward_function.path"


@pytest.mark.parametrize(
    "word", [f"{CODE}=verifier.py", f"++{CODE}='verifier.py'", "reward.custom_reward_function={path:verifier.py}"]
)
@pytest.mark.parametrize("folder", ["plain", "it's a, {folder}"])
def test_a_relative_path_of_code_is_stored_as_the_file_that_it_named_at_the_start(tmp_path, monkeypatch, word, folder):
    """A resume may be started in another folder, where somebody else has put a file of the same name."""
    (here := tmp_path / folder).mkdir()
    (here / "verifier.py").touch()
    monkeypatch.chdir(here)
    words = [*LINE, word, "data.custom_cls.path=pkg://verl.x", f"trainer.default_local_dir={tmp_path}/new"]
    line, config = train._compose(words)
    assert OmegaConf.select(config, CODE) == f"{here}/verifier.py"
    assert config.data.custom_cls.path == "pkg://verl.x"
    _, again = train._compose(line.words)
    assert again == config


def test_a_file_scheme_is_no_absolute_path_and_a_missing_file_stays(tmp_path, monkeypatch):
    (tmp_path / "verifier.py").touch()
    monkeypatch.chdir(tmp_path)
    tools = "actor_rollout_ref.rollout.multi_turn.tool_config_path"
    words = [*LINE, f"{CODE}=file://verifier.py", f"{tools}=examples/tools.yaml"]
    _, config = train._compose(words)
    assert OmegaConf.select(config, CODE) == f"{tmp_path}/verifier.py"
    assert OmegaConf.select(config, tools) == "examples/tools.yaml", "verl looks for it in its own package"
    assert set(CODE_KEYS) <= set(FILE_KEYS)


def test_a_stored_relative_path_of_code_is_not_resumed(run, tmp_path, monkeypatch):
    """Older versions stored it."""
    words = [*LINE, f"{CODE}=verifier.py"]
    run.overrides.write_text(yaml.safe_dump(words))
    trust.sign(run, run.overrides.read_bytes())
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "verifier.py").touch()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ConfigError, match=rf"{CODE}=verifier.py: .*relative.*Add {CODE}= with the absolute path"):
        train._compose([f"resume={run.path}"])
    line, config = train._compose([f"resume={run.path}", f"{CODE}={tmp_path}/verifier.py"])
    assert (
        OmegaConf.select(config, CODE) == f"{tmp_path}/verifier.py" and f"{CODE}={tmp_path}/verifier.py" in line.words
    )
    line, config = train._compose([f"resume={run.path}", f"{CODE}=verifier.py"])
    assert OmegaConf.select(config, CODE) == f"{elsewhere}/verifier.py", "the new words name a file here"


MODEL = "actor_rollout_ref.model.path"


@pytest.mark.parametrize("key", [key for key in MODEL_KEYS if key.startswith("actor_rollout_ref.model.")])
def test_a_relative_path_of_a_model_is_stored_as_the_folder_that_it_named_at_the_start(tmp_path, monkeypatch, key):
    """With trust_remote_code, the folder of a model names code, and so does that of its config or tokenizer."""
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    line, config = train._compose([*LINE, f"++{key}=models/mine", f"trainer.default_local_dir={tmp_path}/new"])
    assert OmegaConf.select(config, key) == f"{tmp_path}/models/mine"
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert train._compose(line.words)[1] == config


@pytest.mark.parametrize("word", [f"{MODEL}=Qwen/Qwen3-0.6B", "model=Qwen/Qwen3-0.6B"])
def test_a_model_on_the_hub_keeps_its_name_and_no_folder_takes_its_place_in_a_resume(run, tmp_path, monkeypatch, word):
    """The reproduction of a review: the resume was started in a folder of somebody else, who had put a model there."""
    words = [*LINE, word]
    run.overrides.write_text(yaml.safe_dump(words))
    trust.sign(run, run.overrides.read_bytes())
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert OmegaConf.select(train._compose([f"resume={run.path}"])[1], MODEL) == "Qwen/Qwen3-0.6B"
    (elsewhere / "Qwen/Qwen3-0.6B").mkdir(parents=True)
    key = word.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"{key}=Qwen/Qwen3-0.6B: .*a folder of that name.*another folder.*add {key}="
    ):
        train._compose([f"resume={run.path}"])
    _, config = train._compose([f"resume={run.path}", f"{key}={elsewhere}/Qwen/Qwen3-0.6B"])
    assert OmegaConf.select(config, MODEL) == f"{elsewhere}/Qwen/Qwen3-0.6B"


#: Keys that name a place outside the run's folder to which the run writes, and the place for a folder of it.
WRITTEN = {
    "trainer.rollout_data_dir": "{folder}",
    "trainer.validation_data_dir": "{folder}",
    "algorithm.gsd.dagrpo.judge.cache": "{folder}/judge.sqlite",
}


@pytest.fixture(params=WRITTEN)
def written(request, tmp_path, monkeypatch):
    """(key, the place in a folder, the words of a new run without that key)"""
    monkeypatch.setenv(TRUSTED, "")  # a run that trusts a cache sets it
    algorithm = "algo=dagrpo" if "judge" in request.param else "algo=grpo"
    words = [algorithm, *LINE[1:], f"trainer.default_local_dir={tmp_path}/run"]
    return request.param, lambda folder: WRITTEN[request.param].format(folder=folder), words


def test_a_folder_where_others_can_write_is_not_written_without_trust(written, tmp_path):
    """Another user could put a link there, and the run would overwrite a file of this user."""
    key, place, words = written
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for folder in (tmp_path / "open", tmp_path / "open" / "new"):
        message = rf"{key}={place(folder)}: other users can write {tmp_path}/open .*add trust="
        with pytest.raises(ConfigError, match=message):
            train._compose([*words, f"{key}={place(folder)}"])
        _, config = train._compose([*words, f"{key}={place(folder)}", f"trust={tmp_path}"])
        assert OmegaConf.select(config, key) == place(folder)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = f"trainer.default_local_dir={tmp_path}/elsewhere/run"
    with pytest.raises(ConfigError, match=f"{key}="):
        train._compose([*words, elsewhere, f"{key}={place(tmp_path / 'open')}", f"trust={tmp_path}/elsewhere"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_written(written, tmp_path):
    key, place, words = written
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    named = place(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=rf"{key}={named}: {tmp_path}/theirs belongs to user id 65534"):
        train._compose([*words, f"{key}={named}"])


def test_own_places_are_used_without_links(written, tmp_path):
    key, place, words = written
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for folder, real in ((tmp_path / "link", tmp_path / "mine"), (tmp_path / "run" / "in", tmp_path / "run" / "in")):
        _, config = train._compose([*words, f"{key}={place(folder)}"])
        assert OmegaConf.select(config, key) == place(real)


def test_a_folder_of_a_trusted_run_need_not_be_trusted_if_it_is_in_it(written, tmp_path):
    key, place, words = written
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    _, config = train._compose([*words, f"{key}={place(tmp_path / 'run' / 'in')}", f"trust={tmp_path}/run"])
    assert OmegaConf.select(config, key) == place(tmp_path / "run" / "in")


def test_a_trusted_cache_is_trusted_where_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv(TRUSTED, "")
    cache, words = tmp_path / "judge.sqlite", ["algo=dagrpo", *LINE[1:], f"trainer.default_local_dir={tmp_path}/run"]
    line = [*words, f"algorithm.gsd.dagrpo.judge.cache={cache}"]
    train._compose(line)
    assert os.environ[TRUSTED] == ""
    train._compose([*line, f"trust={tmp_path}"])
    assert os.environ[TRUSTED] == str(cache)
    config = resume_config(RunDirectory(tmp_path / "run"))
    with launch.new_attempt(config, LINE, resuming=False, trusted=True):
        assert config.ray_kwargs.ray_init.runtime_env.env_vars[TRUSTED] == str(cache)


def test_a_folder_that_somebody_else_creates_after_the_check_is_not_written(written, tmp_path):
    key, place, _ = written
    (tmp_path / "mine").mkdir()
    config = resume_config(RunDirectory(tmp_path / "run"))
    with open_dict(config):
        OmegaConf.update(config, key, place(tmp_path / "new"))
    with launch.new_attempt(config, LINE, resuming=False):
        assert (tmp_path / "new").is_dir(), "nobody can create it now"
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "new").rmdir()
    (tmp_path / "new").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=rf"{key}={place(tmp_path / 'new')}: the path leads through a symbolic link"):
        launch.new_attempt(config, LINE, resuming=False).__enter__()
