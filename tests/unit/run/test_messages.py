"""Messages are read once, completely and in order, even if the file has other lines."""

import json

from verl_gsd.run.messages import Message, MessageReader, MessageWriter, read_messages


def test_messages_are_read_once_and_in_order(tmp_path):
    path = tmp_path / "messages" / "attempt_1.jsonl"
    reader = MessageReader(path)
    assert list(reader.new()) == []
    writer = MessageWriter(path)
    writer.write("note", "first\nof two lines")
    writer.write("stop", "the engine died", pid=7)
    assert list(reader.new()) == [Message("note", "first\nof two lines"), Message("stop", "the engine died", 7)]
    assert list(reader.new()) == []
    writer.write("warning", "third")
    assert list(reader.new()) == [Message("warning", "third")] and len(read_messages(path)) == 3


def test_invalid_lines_are_skipped_and_incomplete_lines_are_read_later(tmp_path):
    path = tmp_path / "attempt_1.jsonl"
    whole = json.dumps({"kind": "note", "text": "whole", "pid": "no number"}) + "\n"
    path.write_text('[1]\n{"kind": "other", "text": ""}\nnoise\n' + whole + whole[:9])
    reader = MessageReader(path)
    assert list(reader.new()) == [Message("note", "whole")]
    with path.open("a") as file:
        file.write(whole[9:])
    assert list(reader.new()) == [Message("note", "whole")]


def test_long_text_is_cut_and_write_errors_do_not_raise(tmp_path, capsys):
    path = tmp_path / "attempt_1.jsonl"
    MessageWriter(path).write("warning", "x" * 100_000)
    (message,) = read_messages(path)
    assert len(message.text) < 10_000 and message.text.endswith("[cut]")
    (theirs := tmp_path / "bashrc").write_text("precious")
    (link := tmp_path / "attempt_2.jsonl").symlink_to(theirs)
    MessageWriter(link).write("warning", "not through a link")
    assert theirs.read_text() == "precious" and f"{link} cannot be written" in capsys.readouterr().err
    MessageWriter(path / "below_a_file").write("stop", "read me on standard error")
    assert "stop: read me on standard error" in capsys.readouterr().err
