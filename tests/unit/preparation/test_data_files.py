"""A data set of somebody else leads ``prepare`` to no file outside of it."""

import json
import shutil
from contextlib import suppress

import datasets
import datasets.data_files
import pytest
from hostile_server import HostileServer, http
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.preparation import reading
from verl_gsd.preparation.data_files import only_inside
from verl_gsd.preparation.reading import sha256
from verl_gsd.regular_files import open_regular

ROW = json.dumps({"problem": "PRIVATE", "answer": "1"}) + "\n"
CHAIN = "reference://x.csv::file:///tmp/ref.json"
#: The configuration of a data set that has one file.
DEFAULT = {"config_name": "default", "data_files": [{"split": "train", "path": "train.json"}]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for place in ("private.jsonl", "hub/train.jsonl", "hub/data/train.jsonl"):
        (tmp_path / place).write_text(ROW if place == "private.jsonl" else ROW.replace("PRIVATE", "Public?"))
    return tmp_path / "hub"


def prepare(folder, *words):
    line = ["prepare", *(words or ["mine", "--input", str(folder)]), "--data", str(folder.parent / "data")]
    return CliRunner().invoke(app, line, env={"COLUMNS": "500"})


def rejected(folder, *words):
    """The message."""
    done = prepare(folder, *words)
    assert done.exit_code == 2 and not list(folder.parent.glob("data/**/*.parquet")), done.output
    return done.stderr


def declare(folder, name="README.md", **config):
    text = json.dumps({"configs": [{"config_name": "default", **config}]})
    (folder / name).write_text(f"---\n{text}\n---\n" if name == "README.md" else text)


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "pattern",
    ["{private}", "../private.jsonl", "data/../../private.jsonl", "file://{private}", CHAIN, "zip://*::x.zip"],
)
def test_a_data_set_names_no_file_outside_of_it(folder, file, pattern):
    pattern = pattern.format(private=folder.parent / "private.jsonl")
    declare(folder, file, data_files=[{"split": "train", "path": ["train.jsonl", pattern]}])
    line = 2 if file == "README.md" else 1
    assert f"{folder}: {file}, line {line}, sets data_files to '{pattern}'" in rejected(folder)


@pytest.mark.parametrize("names", [{"data_files": "*.jsonl"}, {}])
@pytest.mark.parametrize("place", ["..", "data/../..", "{absolute}", "../hub2"])
def test_a_data_set_names_no_folder_outside_of_it(folder, place, names):
    """The name of the last one begins as the data set's does."""
    (folder.parent / "hub2").mkdir()
    shutil.copy(folder.parent / "private.jsonl", folder.parent / "hub2")
    place = place.format(absolute=folder.parent)
    declare(folder, data_dir=place, **names)
    assert f"{folder}: README.md, line 2, sets data_dir to '{place}'" in rejected(folder)


@pytest.mark.parametrize("name", ["train-2.jsonl", "train-2.json", "data/train-2.jsonl"])
def test_a_link_in_a_data_set_leads_to_no_file_outside_of_it(folder, name):
    """``datasets`` reads JSON itself, and our own reader reads JSON lines."""
    (folder / name).symlink_to(folder.parent / "private.jsonl")
    private = folder.parent / "private.jsonl"
    assert f"{folder / name}: a link leads to {private}, outside the data set {folder}" in rejected(folder)


@pytest.mark.parametrize("name", ["README.md", "notes.txt", ".hidden/notes", "data/deep"])
@pytest.mark.parametrize("target", ["private.jsonl", "private", "missing"])
def test_no_link_leads_out_of_a_data_set_also_if_no_data_file_is_one(folder, name, target):
    """Some readers of ``datasets`` open files that the data set does not name."""
    (folder.parent / "private").mkdir()
    (folder / ".hidden").mkdir()
    (folder / name).symlink_to(folder.parent / target)
    assert f"{folder / name}: a link leads to {folder.parent / target}, outside the data set" in rejected(folder)


#: A file of each kind whose reader opens further files, or unpickles them.
OTHER_KINDS = ["tasks/a/task.toml", "a.png", "a.tar", "a.hdf5", "a.lance", "a.vortex", "a.xml"]


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_only_readers_that_open_nothing_else_are_used(folder, name):
    (folder / "train.jsonl").unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('[task]\nname="x/a"\ndescription="42"')
    (folder / name).with_name("instruction.md").write_text("PRIVATE")
    declare(folder, data_files=[{"split": "train", "path": name}])
    words = ["mine", "--input", str(folder), "--problem-column", "instruction", "--answer-column", "description"]
    message = rejected(folder, *words)
    assert f"{folder}: its files are of the kind " in message and "Use arrow, csv, json, parquet or text" in message


def test_files_of_other_kinds_than_those_of_our_readers_are_read(folder):
    (folder / "train.jsonl").unlink()
    shutil.rmtree(folder / "data")
    rows = [{"problem": f"What is {n}+1?", "answer": str(n + 1)} for n in range(3)]
    words = ["--input", str(folder), "--problem-column"]
    (folder / "train.json").write_text(json.dumps(rows))
    assert "3 rows read" in prepare(folder, "a", *words, "problem").output
    (folder / "train.json").unlink()
    (folder / "train.txt").write_text("What is 1+1?\nWhat is 2+2?\n")
    assert "2 rows read" in prepare(folder, "b", *words, "text", "--judged-by-model").output
    (folder / "train.txt").unlink()
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    (folder / "saved" / "data-00000-of-00001.arrow").rename(folder / "train.arrow")
    shutil.rmtree(folder / "saved")
    assert "3 rows read" in prepare(folder, "c", *words, "problem").output


def test_a_name_that_datasets_would_take_apart_is_not_read(folder):
    (folder / "train.json::b.json").write_text(ROW)
    assert "train.json::b.json: the name has ::" in rejected(folder)


def test_a_file_that_becomes_a_link_after_the_check_is_not_read(folder, monkeypatch):
    resolve = reading._resolve_config

    def resolve_and_replace(*arguments):
        found = resolve(*arguments)
        (folder / "train.jsonl").unlink()
        (folder / "train.jsonl").symlink_to(folder.parent / "private.jsonl")
        return found

    monkeypatch.setattr(reading, "_resolve_config", resolve_and_replace)
    assert f"a link leads out of {folder}" in rejected(folder)


def test_the_hash_of_a_data_set_tells_nothing_about_files_outside_of_it(folder):
    """A manifest publishes it. Whoever made the data set could test guesses of a private file's content with it."""
    private = folder.parent / "private.jsonl"
    without = sha256(folder)
    (folder / "notes.txt").symlink_to(private)
    before = sha256(folder)
    private.write_text("something else")
    assert sha256(folder) == before != without
    private.unlink()
    assert sha256(folder) == before
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("/elsewhere")
    assert sha256(folder) != before, "the text of the link counts"


def test_the_hash_of_a_data_set_is_that_of_its_contents_also_through_links_in_it(folder):
    shutil.copy(folder / "train.jsonl", folder / "copy.jsonl")
    before = sha256(folder)
    (folder / "copy.jsonl").unlink()
    (folder / "copy.jsonl").symlink_to("train.jsonl")
    assert sha256(folder) == before
    (folder / "train.jsonl").write_text("{}")
    assert sha256(folder) != before


def test_a_file_that_becomes_a_link_out_of_a_data_set_is_not_hashed(folder, monkeypatch):
    private = folder.parent / "private.jsonl"

    def stub_that_exchanges_the_file(path, **options):
        path.unlink()
        path.symlink_to(private)
        return open_regular(path, **options)

    monkeypatch.setattr(reading, "open_regular", stub_that_exchanges_the_file)
    with pytest.raises(OSError, match=f"a link leads out of {folder}"):
        sha256(folder)


def test_files_and_links_in_a_data_set_are_read(folder):
    (folder / "data" / "b.jsonl").symlink_to("../train.jsonl")
    declare(folder, data_dir="data", data_files=[{"split": "train", "path": ["*.jsonl"]}])
    link = folder.parent / "link"
    link.symlink_to(folder)
    done = prepare(link)
    assert done.exit_code == 0 and "2 rows read" in done.output, done.output


def test_the_cache_of_the_hub_has_links_to_its_blobs(tmp_path):
    repository = tmp_path / "datasets--someone--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / "def").write_text(ROW)
    (snapshot / "train.jsonl").symlink_to("../../blobs/def")
    assert prepare(snapshot, "mine", "--input", str(snapshot)).exit_code == 0
    (tmp_path / "private.jsonl").write_text(ROW)
    (snapshot / "train-2.jsonl").symlink_to(tmp_path / "private.jsonl")
    done = prepare(snapshot, "other", "--input", str(snapshot))
    assert done.exit_code == 2 and "a link leads to" in done.stderr


@pytest.mark.parametrize("base", ["hf://datasets/someone/name@abc", "hf://datasets/someone/name@abc/data"])
@pytest.mark.parametrize(
    ("tail", "pattern"), [("", "/etc/passwd"), ("", "../x"), ("", "hf://datasets/a/b/x"), ("", CHAIN), ("/../..", "x")]
)
def test_a_data_set_on_the_hub_names_no_file_outside_of_it(monkeypatch, base, tail, pattern):
    monkeypatch.setattr(datasets.data_files, "resolve_pattern", lambda *_: pytest.fail("it was resolved"))
    with pytest.raises(ValueError, match=r"someone/name: README\.md sets data_"), only_inside("someone/name"):
        datasets.data_files.resolve_pattern(pattern, base + tail)


def test_the_reason_is_shown_if_datasets_falls_back_to_its_cache(monkeypatch):
    """It does so after any error with a data set on the hub."""
    reason = pytest.raises(ValueError, match=r"sets data_files to '/etc/passwd'")
    with reason, only_inside("someone/name"), suppress(ValueError):
        datasets.data_files.resolve_pattern("/etc/passwd", "hf://datasets/someone/name@abc")


def test_files_of_a_data_set_on_the_hub_are_resolved(monkeypatch):
    base = "hf://datasets/someone/name@abc"
    found = [f"{base}/main/a.parquet"]
    monkeypatch.setattr(datasets.data_files, "resolve_pattern", resolve := lambda *_: found)
    with only_inside("someone/name"):
        assert datasets.data_files.resolve_pattern("main/*", base) == found
    assert datasets.data_files.resolve_pattern is resolve
    found.append("/etc/passwd")
    with pytest.raises(ValueError, match="sets data_files to '/etc/passwd'"), only_inside("someone/name"):
        datasets.data_files.resolve_pattern("main/*", base)


def test_a_folder_with_the_name_of_a_data_set_on_the_hub_is_not_read_instead(folder, monkeypatch):
    namesake = folder.parent / "HuggingFaceH4" / "MATH-500"
    namesake.mkdir(parents=True)
    (namesake / "test.jsonl").write_text(ROW)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(reading, "hub_revision", lambda *_: "abc")
    assert "HuggingFaceH4/MATH-500: the current folder" in rejected(folder, "math500")


def test_a_folder_that_takes_the_name_of_a_data_set_after_the_check_is_not_read(folder, monkeypatch):
    def revision(kind, name):
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / "test.jsonl").write_text(ROW)
        return "abc"

    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(reading, "hub_revision", revision)
    message = f"HuggingFaceH4/MATH-500: datasets would read {folder.parent}/HuggingFaceH4/MATH-500 instead of the hub"
    assert message in rejected(folder, "math500")


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_cell_leads_to_no_private_file_and_to_no_server(folder, tmp_path, monkeypatch, kind):
    """``datasets`` would open the path or URL of a cell. Its requests have the passwords of ~/.netrc."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (folder / "train.jsonl").unlink()
    types = [{"name": "problem", "dtype": "string"}, {"name": "answer", "dtype": kind}]
    text = json.dumps({"dataset_info": {"features": types}, "configs": [DEFAULT]})
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    with HostileServer(http(404)) as server:
        row = {"problem": "1+1?", "answer": f"{server.url}/internal"}
        (folder / "train.json").write_text(json.dumps(row) + "\n")
        message = rejected(folder)
        assert server.headers == []
    assert f"{folder}: column answer holds no text: its type is {kind.capitalize()}" in message


def test_a_column_that_nobody_reads_opens_nothing(folder):
    types = [{"name": name, "dtype": "string"} for name in ("problem", "answer")] + [{"name": "note", "dtype": "image"}]
    text = json.dumps({"dataset_info": {"features": types}, "configs": [DEFAULT]})
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    with HostileServer(http(404)) as server:
        row = {"problem": "What is 1+1?", "answer": "2", "note": f"{server.url}/internal"}
        (folder / "train.json").write_text(json.dumps(row) + "\n")
        done = prepare(folder)
        assert done.exit_code == 0 and "1 rows read" in done.output, done.output
        assert server.headers == []
