"""Processes: what a competitor leaves, how it fails, and how a signal ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpt_compare import commands
from gpt_compare.competitor import Competitor, read_competitors
from gpt_compare.figures import Row
from gpt_compare.gauge import Gauge
from gpt_compare.running import last_line, mean_power, run_competitor
from gpt_compare_toy import SMALL, finished, metrics, text_folder
from gpt_data.stopping import StopFlag
from gpt_data.terminal import guarded
from gpt_trainer.errors import InputError

GOOD = [json.dumps(line) for line in metrics([3.0, 2.0], [2.0, 1.0])]
# what a competitor does in place of training, by its name
SCRIPTS = {
    "good": "write(); say('done')",
    "steps": "[(write(n), time.sleep(0.1)) for n in range(12)]",
    "saver": (
        "[(write(n), time.sleep(0.1)) for n in range(9)];[(say('saving'), time.sleep(0.1)) for _ in range(9)]"
    ),
    "scorer": (
        "[(write(n), time.sleep(0.1)) for n in range(9)]; say('scoring');"
        "[(note({'step': 2, 'share': n}), time.sleep(0.1)) for n in range(9)]"
    ),
    "slow": "say('begun'); write(); say('sleeping'); time.sleep(60)",
    "polite": (
        "signal.signal(signal.SIGTERM, lambda *_: (say('goodbye'), sys.exit(75)));"
        "say('begun'); time.sleep(60)"
    ),
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('begun'); time.sleep(60)",
    "talker": "[(say('compiling'), time.sleep(0.1)) for _ in range(25)]; write()",
    "refused": "say('a warning'); say('gpt-x: --flag is no flag\\n'); sys.exit(65)",
    "infinite": "say('gpt-x: step 3: loss nan; what was saved is as it was'); sys.exit(70)",
    "large": "say('gpt-x: out of memory: tried to allocate 20 GiB'); sys.exit(71)",
    "writer": "write(); say('step 2: sample\\nOnce upon\\n\\na time\\n\\ngenerating 8 texts failed')",
    "killed": "say('step 1'); os.kill(os.getpid(), signal.SIGKILL)",
    "traceback": "raise OSError('disk on fire')",
    "advised": "raise OSError('disk on fire\\n\\nDetails: it burns\\n\\nSet WATER=1 for more')",
}
HEAD = f"""
import os, signal, sys, time
from pathlib import Path
run = Path(sys.argv[1])
def say(text): print(text, flush=True)
def note(line): (run / "metrics.jsonl").open("a").write(str(line).replace("'", '"') + "\\n")
def write(again=0):
    lines = {GOOD!r}
    (run / "metrics.jsonl").write_text("\\n".join(lines[:2] + lines[1:2] * again + lines[2:3]) + "\\n")
    (run / "run.json").write_text('{{"made_by": {{"device": "toy", "attention": "none"}}}}')
"""


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(competitor: Competitor, plan: Path, out: Path, keep: bool) -> list[str]:
        return [sys.executable, "-c", f"{HEAD}\n{SCRIPTS[competitor.name]}", str(out)]

    monkeypatch.setattr(Competitor, "command", command)
    monkeypatch.setattr("gpt_compare.running.POLL_SECONDS", 0.02)
    monkeypatch.setattr("gpt_compare.running.PATIENCE_SECONDS", 2.0)


def competitor(name: str) -> Competitor:
    return read_competitors([name])[0]


def test_a_finished_run_has_figures_and_leaves_its_log(tmp_path: Path) -> None:
    row = run_competitor(competitor("good"), tmp_path / "plan.toml", StopFlag())
    assert row.error is None
    assert row.figures is not None
    assert (row.figures.losses, row.figures.first_step_seconds) == ((3.0, 2.0), 2.0)
    assert row.made_by == {"device": "toy", "attention": "none"}
    assert row.first_step_after is not None
    assert row.total_seconds is not None
    assert 0.0 < row.first_step_after <= row.total_seconds
    assert {path.name for path in (tmp_path / "1-good").iterdir()} == {
        "metrics.jsonl",
        "run.json",
        "output.txt",
    }
    assert (tmp_path / "1-good" / "output.txt").read_text() == "done\n"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("refused", "exit status 65: gpt-x: --flag is no flag"),
        ("killed", "killed by SIGKILL: step 1"),
        ("infinite", "exit status 70: gpt-x: step 3: loss nan; what was saved is as it was"),
        ("large", "exit status 71: gpt-x: out of memory: tried to allocate 20 GiB"),
        ("traceback", "exit status 1: OSError: disk on fire"),
        ("advised", "exit status 1: OSError: disk on fire"),
    ],
)
def test_a_failure_is_told_by_its_last_line(tmp_path: Path, name: str, error: str) -> None:
    row = run_competitor(competitor(name), tmp_path / "plan.toml", StopFlag())
    assert (row.error, row.figures) == (error, None)
    assert not (tmp_path / f"1-{name}" / "checkpoints").exists()


def test_one_that_says_nothing_any_more_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_compare.running.SILENCE_SECONDS", 1.0)
    began = time.monotonic()
    row = run_competitor(competitor("deaf"), tmp_path / "plan.toml", StopFlag())
    assert row.error == "wrote nothing for 1 s: begun"
    assert time.monotonic() - began < 20.0


def test_one_that_takes_no_step_but_says_what_it_does_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_compare.running.SILENCE_SECONDS", 1.0)
    assert run_competitor(competitor("talker"), tmp_path / "plan.toml", StopFlag()).error is None


def test_what_it_wrote_at_its_end_is_kept_and_what_it_saw_of_itself(tmp_path: Path) -> None:
    assert run_competitor(competitor("writer"), tmp_path / "plan.toml", StopFlag()).sample == (
        "Once upon\n\na time"
    )
    seen = {"compile_seconds": 2.5, "generation": [[8, 100.0, 20.0]]}
    write = f"(run / 'observed.json').write_text({json.dumps(seen)!r})"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCRIPTS, "good", f"write(); {write}")
        row = run_competitor(competitor("good"), tmp_path / "plan.toml", StopFlag())
    assert (row.sample, row.compile_seconds, row.generation) == ("", 2.5, ((8, 100.0, 20.0),))


class Meter(Gauge):
    """100 watts until it rests, and none then."""

    rests = False

    def __init__(self) -> None:
        self.began = time.monotonic()

    def joules(self) -> float:
        if not self.rests:
            self.used = 100.0 * (time.monotonic() - self.began)
        return self.used

    def throttled(self) -> bool:
        return True


def test_a_counter_that_begins_again_tells_no_power() -> None:
    assert mean_power([(0.0, 10.0), (1.0, 110.0), (3.0, 210.0)]) == pytest.approx(200.0 / 3.0)
    # a CPU's counters do, after some hours: once with less than was used since, once with more
    assert mean_power([(0.0, 10.0), (1.0, 110.0), (3.0, 5.0)]) is None
    assert mean_power([(0.0, 10.0), (1.0, 2.0), (3.0, 500.0)]) is None
    assert mean_power([(0.0, 10.0)]) is None


def test_power_is_that_of_the_steps_and_throttling_is_remembered(tmp_path: Path) -> None:
    row = run_competitor(competitor("steps"), tmp_path / "plan.toml", StopFlag(), gauge=Meter())
    assert row.watts == pytest.approx(100.0, rel=0.05)
    assert row.throttled
    assert row.figures is not None
    assert row.joules_per_token == pytest.approx(row.watts / row.figures.tokens_per_second)
    silent = run_competitor(competitor("good"), tmp_path / "plan.toml", StopFlag())
    assert (silent.watts, silent.throttled) == (None, False)


@pytest.mark.parametrize("name", ["saver", "scorer"])
def test_a_device_that_rests_after_the_last_step_has_not_trained_with_less(tmp_path: Path, name: str) -> None:
    meter = Meter()

    def show(line: str) -> None:
        meter.rests = meter.rests or line in ("saving", "scoring")

    row = run_competitor(competitor(name), tmp_path / "plan.toml", StopFlag(), gauge=meter, show=show)
    assert row.watts == pytest.approx(100.0, rel=0.1)


def test_turns_go_forth_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def run(competitor: Competitor, *_: object, turn: int, **__: object) -> Row:
        order.append(f"{competitor.name}{turn}")
        if competitor.name == "refused":
            return Row(competitor.label, "no")
        seconds = {"good1": 3.0, "good2": 1.0, "good3": 2.0}[order[-1]]
        return finished("good", [3.0, 2.0], [9.0, seconds])

    monkeypatch.setattr("gpt_compare.turns.run_competitor", run)
    words = [
        *SMALL,
        "--data",
        f"text:{text_folder(tmp_path / 'text')}",
        "--data-cache",
        str(tmp_path / "cache"),
    ]
    words += ["--out", str(tmp_path / "out"), "--repeat", "3", "--runs", "good", "refused"]
    assert commands.run(words) == 1
    # one that failed has no further turn
    assert order == ["good1", "refused1", "good2", "good3"]
    good, refused = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert (good["turns"], good["figures"]["step_seconds"][1]) == ([3.0, 1.0, 2.0], 2.0)
    assert refused["error"] == "no"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "no order follows" in report
    (tmp_path / "out" / "report.md").unlink()
    assert commands.run(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.md").read_text() == report
    assert commands.run(["diff", *[str(tmp_path / "out")] * 2]) == 0


@pytest.mark.parametrize("name", ["report", "diff"])
def test_report_and_diff_say_what_they_take(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"gpt-compare {name} ")
    with pytest.raises(SystemExit, match="0"):
        commands.run(["--help"])
    assert f"gpt-compare {name} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("> /dev/full", 73, "toy: cannot write to the standard output: No space left on device\n"),
        ("| head -c 1; exit ${PIPESTATUS[0]}", 0, ""),
    ],
    ids=["full", "a reader that has enough"],
)
def test_a_table_that_cannot_be_shown(shell: str, status: int, said: str) -> None:
    code = """import sys
from gpt_compare.report import Screen
from gpt_data.terminal import guarded
def show():
    for _ in range(2000):
        Screen().print('x' * 99)
    return 0
sys.exit(guarded('toy', show))"""
    words = ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.parametrize("words", [["report"], ["diff", "a"], ["diff", "a", "b", "c"]])
def test_report_and_diff_take_folders(words: list[str]) -> None:
    with pytest.raises(InputError, match=f"^{words[0]} takes"):
        commands.run(words)


@pytest.mark.parametrize(
    ("name", "until", "error", "last"),
    [
        ("slow", "sleeping", "stopped after step 2", "sleeping"),
        ("polite", "begun", "stopped after step 0", "goodbye"),
        ("deaf", "begun", "stopped after step 0", "begun"),
    ],
)
def test_a_signal_ends_the_process_asking_first(
    tmp_path: Path, name: str, until: str, error: str, last: str
) -> None:
    stop = StopFlag()

    def show(line: str) -> None:
        if line == until:
            stop.received = signal.SIGINT

    began = time.monotonic()
    row = run_competitor(competitor(name), tmp_path / "plan.toml", stop, show=show)
    assert time.monotonic() - began < 20.0
    assert (row.error, row.figures) == (error, None)
    assert last_line(tmp_path / f"1-{name}" / "output.txt") == last


def test_a_killed_comparison_takes_its_competitor_along(tmp_path: Path) -> None:
    child = "from gpt_data.terminal import guarded; import time; guarded('toy', lambda: time.sleep(60) or 0)"
    code = f"""import os, sys, threading
from pathlib import Path
from gpt_compare.competitor import Competitor, read_competitors
from gpt_compare.running import run_competitor
from gpt_data.stopping import StopFlag
child = [sys.executable, "-c", {"import os; print(os.getpid(), flush=True); " + child!r}]
Competitor.command = lambda *_: child
show = lambda line: line and os.kill(os.getpid(), 9)
run_competitor(read_competitors(["toy"])[0], Path(sys.argv[1]) / "plan.toml", StopFlag(), show=show)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    process = Path("/proc") / last_line(tmp_path / "1-toy" / "output.txt")
    end = time.monotonic() + 20.0
    while process.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not process.exists()


def compare(tmp_path: Path, *names: str) -> int:
    data = text_folder(tmp_path / "text")
    where = [
        "--data",
        f"text:{data}",
        "--data-cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "out"),
    ]
    return guarded("gpt-compare", lambda: commands.run([*SMALL, *where, "--runs", *names]))


def rows_of(tmp_path: Path) -> dict[str, str | None]:
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return {row["label"]: row["error"] for row in report["rows"]}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own action for Ctrl-C, which a shell takes from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_child_and_reports_what_is_finished(
    tmp_path: Path, interruptible: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "out" / "2-slow" / "output.txt"

    def interrupt() -> None:
        while last_line(log) != "sleeping":
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    assert compare(tmp_path, "good", "slow", "killed") == 130
    assert time.monotonic() - began < 40.0
    assert rows_of(tmp_path) == {"good": None, "slow": "stopped after step 2", "killed": "not begun"}
    assert "slow: stopped after step 2" in capsys.readouterr().out
    assert not (tmp_path / "out" / "3-killed").exists()


def test_a_failure_leaves_the_others_alone_and_shows_in_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "killed", "good", "refused") == 1
    errors = rows_of(tmp_path)
    assert errors["good"] is None
    assert errors["killed"] == "killed by SIGKILL: step 1"
    assert errors["refused"] == "exit status 65: gpt-x: --flag is no flag"
    shown = capsys.readouterr().out
    assert shown.startswith(f"{tmp_path / 'out'}: killed, good, refused, one after another\n")
    assert "refused: exit status 65: gpt-x: --flag is no flag" in shown
    assert "report.md and report.html, with report.json and the plots beside them" in shown
    # nothing was trained, so nothing is drawn
    (tmp_path / "none").mkdir()
    assert compare(tmp_path / "none", "refused") == 1
    assert "report.md and report.html, with report.json beside them" in capsys.readouterr().out


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("an older one")
    assert compare(tmp_path, "good") == 65
    assert capsys.readouterr().err == f"gpt-compare: {tmp_path / 'out'} is not empty: choose another --out\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--data", "text:none"], 65, "none"),
        (["--out", "file/x"], 73, "cannot create file/x"),
        (["--preset", "huge"], 65, "unknown preset 'huge'"),
    ],
)
def test_what_keeps_all_from_running_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], status: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    typed = ["--device", "cpu", "--runs", "good", *flags]
    assert guarded("gpt-compare", lambda: commands.run(typed)) == status
    error = capsys.readouterr().err
    assert words in error
    assert (error.startswith("gpt-compare: "), error.count("\n")) == (True, 1)
    assert not list(tmp_path.glob("comparisons/*"))


def test_comparisons_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = text_folder(tmp_path / "text")
    for _ in range(2):
        commands.run([*SMALL, "--data", f"text:{data}", "--data-cache", "cache", "--runs", "good"])
    assert sorted(path.name for path in Path("comparisons").iterdir()) == ["cpu-demo-1", "cpu-demo-2"]


def test_the_last_line_is_found_behind_blank_ones(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"x" * 20_000 + b"\nlast \xff\n\n  \n")
    assert last_line(tmp_path / "log") == "last \ufffd"
