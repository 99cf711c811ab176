"""Names and texts that come from other people's data, runs and clusters, as the commands print them."""

import io
import logging
import re
import subprocess
import sys
import traceback
from collections import Counter
from types import SimpleNamespace

import pytest
from report_runs import config, group, metrics, records
from typer.testing import CliRunner

from verl_gsd.cli import jobs, train
from verl_gsd.cli.main import app
from verl_gsd.cli.step_display import StepDisplay
from verl_gsd.console import SafeConsole, protect_stderr
from verl_gsd.jobs import cluster
from verl_gsd.jobs.submission import RUN_KEY

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4K\x1b\\"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


@pytest.fixture
def out(monkeypatch):
    """The text that ``train`` and ``jobs`` print."""
    file = io.StringIO()
    for module in (train, jobs):
        monkeypatch.setattr(module, "out", SafeConsole(file=file, width=300))
    return file


def test_data_sources_with_brackets_and_slashes_are_printed_as_they_are(out):
    sources = ("maths[/hard]", "openai/gsm8k", "openai/math", f"[bold]{CLIPBOARD}")
    scalars = {f"val-core/{source}/acc/mean@1": 0.5 for source in sources}
    StepDisplay(10, train.out).show(3, scalars)
    train.out.print(train.result_table([(0, scalars), (3, scalars)], Counter({"maths[/hard]": 4})))
    step, _, table = out.getvalue().partition("\n")
    assert not CONTROL.search(step + table.replace("\n", ""))
    for source in (*sources[:3], "[bold]\\x1b]52;c;"):
        assert f"held-out {source}" in step and f"held-out accuracy, {source}" in table


def test_a_mean_reward_is_called_one_in_a_step_and_in_the_result(out):
    """verl logs it for a data source whose verifier returns no acc."""
    first, last = ({"val-core/code/reward/mean@1": value, "val/prompts/code": 8} for value in (0.25, 0.5))
    StepDisplay(10, train.out).show(3, last)
    assert "held-out code reward 0.500" in out.getvalue()
    train.out.print(train.result_table([(0, first), (3, last)], Counter(code=8)))
    assert "held-out reward, code (8 prompts)" in out.getvalue()
    assert "0.250 at step 0 -> 0.500 at step 3" in out.getvalue(), "without an interval"
    assert "none: the verifier returned no acc" in out.getvalue()


def test_a_result_of_1_and_minus_1_is_not_called_an_accuracy(out):
    first, last = ({"val-core/code/acc/mean@1": value, "val/prompts/code": 8} for value in (-0.25, 0.5))
    train.out.print(train.result_table([(0, first), (3, last)], Counter(code=8)))
    assert "held-out acc, not in [0, 1], code (8 prompts)" in out.getvalue()
    assert "-0.250 at step 0 -> 0.500 at step 3" in out.getvalue()
    assert "none: the verifier returned an acc outside [0, 1]" in out.getvalue()


def test_a_report_does_not_pass_control_sequences_of_a_data_source_or_a_folder_on(tmp_path):
    run = tmp_path / "run[/x]\x1b[2J"
    source = f"math{CLIPBOARD}"
    for step in range(1, 9):
        records(run, step, (group([1, 1], source=source), "trained"), (group([0, 1], source=source), "trained"))
    accuracies = [0.9, 0.1, 0.1, 0.1]
    prompts = {f"val/prompts/{source}": 2000}
    lines = [
        (2 * step, {f"val-core/{source}/acc/mean@1": value} | prompts) for step, value in enumerate(accuracies, start=1)
    ]
    metrics(run, lines)
    config(run, data__max_response_length=512)
    done = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "Held-out accuracy fell" in done.output and r"math\x1b]52;c;" in done.output, "what the test is about"
    assert r"run[/x]\x1b[2J" in done.output
    assert not CONTROL.search(done.output.replace("\n", ""))
    page = (run / "report.html").read_text()
    assert r"math\x1b]52;c;" in page and "\x1b]52" not in page


def test_libraries_cannot_write_control_sequences_to_standard_error(monkeypatch):
    """Logs, tracebacks and print write to it. Only our own consoles may move the cursor."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    protect_stderr()
    protect_stderr()
    logger, handler = logging.getLogger("test.of.a.library"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.warning("rope_type %s", CLIPBOARD)
    try:
        raise ValueError(f"bad {CLIPBOARD}\rgood")
    except ValueError:
        traceback.print_exc()
    print(f"\x1b[1mverl{CLIPBOARD}", file=sys.stderr)
    sys.stderr.writelines([CLIPBOARD, "\n"])
    text = terminal.getvalue()
    assert not CONTROL.search(text.replace("\n", "")) and text.count(r"\x1b]52;c;") == 4
    assert r"\rgood" in text and "verl\\x1b" in text and sys.stderr.isatty()


def test_progress_bars_work_on_a_protected_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    protect_stderr()
    sys.stderr.write("\rof a library: 1/2")
    sys.stderr.write("\rof a library: 2/2\n")
    assert terminal.getvalue() == "\rof a library: 1/2\rof a library: 2/2\n"
    console = SafeConsole(stderr=True, force_terminal=True)
    with console.status(f"waiting {CLIPBOARD}"):
        print(f"meanwhile {CLIPBOARD}", file=sys.stderr)
    text = terminal.getvalue()
    assert "\x1b[?25l" in text and "\\x1b[?25l" not in text, "the status hides the cursor"
    assert "\x1b]52" not in text and "meanwhile" in text


def test_every_command_protects_standard_error():
    code = "import sys, verl_gsd.cli.main as main\n"
    code += "try:\n    main.app(['--help'])\nexcept SystemExit:\n    pass\nraise ValueError('\\x1b]52;c;x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r"ValueError: \x1b]52;c;x" in done.stderr and "\x1b" not in done.stderr


class Terminal(io.StringIO):
    """A stream in memory that says it is a terminal."""

    def isatty(self):
        return True


class ClusterStub:
    """Stands in for a cluster on which another user has submitted a job with hostile texts."""

    job = SimpleNamespace(
        submission_id="gsd[/x]",
        status=SimpleNamespace(value="FAILED"),
        start_time=1,
        end_time=2,
        metadata={RUN_KEY: f"/runs/{CLIPBOARD}[/y]"},
        message=f"failed {CLIPBOARD}[/z]",
    )

    def stop_job(self, identifier):
        return True

    def get_job_logs(self, identifier):
        return f"\x1b[36m(worker)\x1b[0m {CLIPBOARD} [/w]\r\n"


@pytest.mark.parametrize("words", [["status"], ["status", "gsd[/x]"], ["stop", "gsd[/x]"], ["logs", "gsd[/x]"]])
def test_jobs_of_other_users_cannot_write_to_the_terminal(monkeypatch, words):
    monkeypatch.setattr(cluster, "connect", lambda address: ClusterStub())
    monkeypatch.setattr(cluster, "get_job", lambda client, identifier: client.job)
    monkeypatch.setattr(cluster, "submitted_jobs", lambda client: [client.job])
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert r"\x1b]52;c;" in done.output and "[/" in done.output
    assert not CONTROL.search(done.output.replace("\n", ""))
    assert "(worker)" not in done.output or "[36m" not in done.output, "colours are left out"
