"""What a command does to its terminal: failures, full outputs, Ctrl-C, narrow windows, encodings."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from gpt_data.display import display, waiting
from gpt_data.errors import InputError
from gpt_data.flags import FlagError, parse_flags
from gpt_data.progress import Progress
from gpt_data.stopping import StopFlag
from gpt_data.terminal import guarded, typed


def run_python(code: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code behind the imports that it needs; ``shell`` redirects its output."""
    code = f"import sys\nfrom gpt_data.terminal import emit, guarded\n{code}"
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


@dataclass(frozen=True)
class Options:
    """Some flags.

    Attributes:
        lr: Learning rate.
        micro_batch: Rows.
        plain: Plain lines.
    """

    lr: float = 1.0
    micro_batch: int = 2
    plain: bool = False


def flags(*argv: str) -> Options:
    found: Options = parse_flags(argv, {"options": Options}, prog="toy", description="A toy.").options
    return found


HELP = "__import__('gpt_data.flags').flags.parse_flags(['--help'], {}, prog='toy', description='')"


STARTER_OF = """import os, subprocess, time
from gpt_data.stopping import STARTER
for code in CODES:
    words = [sys.executable, "-c", "print('begun\\\\n', end='', flush=True)\\n" + code]
    subprocess.Popen(words, env=os.environ | {STARTER: str(os.getpid())})
time.sleep(DELAY)
os.kill(os.getpid(), 9)
"""
SLEEPS = "import time; from gpt_data.terminal import guarded; guarded('toy', lambda: time.sleep(60) or 0)"
STOPS = """import os
from gpt_data.stopping import STARTER, StopFlag
from gpt_data.terminal import guarded
stop = StopFlag()
with stop.installed():
    guarded('toy', lambda: [None for _ in iter(stop, True)] and 0)
print('saved', STARTER in os.environ)
"""


@pytest.mark.parametrize("delay", [0.0, 1.5], ids=["before it asks", "at work"])
def test_a_process_is_asked_to_stop_when_the_one_that_started_it_is_killed(delay: float) -> None:
    began = time.monotonic()
    # its output ends with the last process that has it
    done = run_python(f"CODES, DELAY = {[SLEEPS, STOPS]}, {delay}\n{STARTER_OF}")
    assert time.monotonic() - began < 30.0
    assert (sorted(done.stdout.splitlines()), done.stderr) == (["begun", "begun", "saved False"], "")


@pytest.mark.parametrize("call", ["emit('x')", "emit('x' * 10**6)", HELP])
def test_an_output_that_is_full_is_73_and_one_line(call: str) -> None:
    done = run_python(f"sys.exit(guarded('toy', lambda: {call} and 0 or 0))", "> /dev/full")
    assert done.returncode == 73
    assert done.stderr.partition(":")[2] == " cannot write to the standard output: No space left on device\n"


@pytest.mark.parametrize("call", ["emit('x' * 10**6)", "print('x' * 10**6)"])
def test_a_reader_that_has_enough_is_no_error(call: str) -> None:
    done = run_python(
        f"sys.exit(guarded('toy', lambda: {call} and 0 or 0))", "| head -c 3; exit ${PIPESTATUS[0]}"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "xxx", "")


def test_ctrl_c_is_130_and_not_a_word() -> None:
    done = run_python("def f():\n    raise KeyboardInterrupt\nsys.exit(guarded('toy', f))")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# once one in twenty during imports: Python printed a traceback there, and the command went on
def test_ctrl_c_in_an_objects_end_is_not_lost() -> None:
    code = """import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Ending:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def work():
    Ending()
    time.sleep(50)
    return 0
sys.exit(guarded('toy', work))"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert (
        "ValueError: lost"
        in run_python(
            code.replace("signal.raise_signal(signal.SIGINT)", "raise ValueError('lost')").replace("50", "0")
        ).stderr
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_cannot_be_shown_is_replaced(encoding: str) -> None:
    done = run_python(
        "sys.exit(guarded('toy', lambda: emit('a\\u65e5\\ud800\\ufffd') and 0 or 0))",
        PYTHONIOENCODING=encoding,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a???\n", "")


def test_a_file_that_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    # as somebody else's folder, which the first look into it meets
    def fail() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "their/run")

    assert guarded("toy", fail) == 65
    assert capsys.readouterr().err == "toy: cannot read their/run: Permission denied\n"


def test_an_error_with_a_status_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise InputError("no such text")

    assert guarded("toy", fail) == 65
    assert capsys.readouterr().err == "toy: no such text\n"


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes",
        "NCCL error, unhandled cuda error\nLast error:\nFailed to CUDA calloc async 8 bytes",
    ],
    ids=["XLA", "NCCL"],
)
@pytest.mark.parametrize(
    ("name", "advice"),
    [("gpt-x-train", "lower --micro-batch or --context"), ("x-translate", "lower --batch or --beam")],
)
def test_a_gpu_that_is_full_is_71_and_one_line(
    name: str, advice: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> int:
        raise RuntimeError(said)

    assert guarded(name, full) == 71
    line = capsys.readouterr().err
    assert line.startswith(f"{name}: out of memory: {said.splitlines()[0]}; {advice}")
    assert line.count("\n") == 1


@pytest.mark.parametrize("columns", [1, 5, 39])
def test_help_has_40_columns_at_least(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        flags("--help")
    # the first line says how it is called, and is not wrapped
    assert max(map(len, capsys.readouterr().out.splitlines()[1:])) == 40
    assert os.environ["COLUMNS"] == str(columns)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--learning-rate=3", "unknown flag --learning-rate: perhaps you meant --lr"),
        ("--batch-size", "unknown flag --batch-size: perhaps you meant --micro-batch"),
        ("--micro-bacth", "unknown flag --micro-bacth: perhaps you meant --micro-batch"),
        ("--zzz", "unknown flag --zzz; --help lists all flags"),
    ],
)
def test_an_unknown_flag_is_told_what_may_be_meant(given: str, said: str) -> None:
    with pytest.raises(FlagError, match=said):
        flags(given)


def test_a_value_that_a_section_refuses_is_one_line() -> None:
    @dataclass(frozen=True)
    class Careful(Options):
        """Checked flags."""

        def __post_init__(self) -> None:
            if self.micro_batch < 1:
                raise ValueError(f"micro_batch={self.micro_batch} is not positive")

    with pytest.raises(FlagError, match="micro_batch=0 is not positive"):
        parse_flags(["--micro-batch=0"], {"options": Careful()}, prog="toy", description="A toy.")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--lr", "--lr takes a value"),
        ("--lr fast", "--lr takes a number, not 'fast'"),
        ("--micro-batch 2.5", "--micro-batch takes a whole number, not '2.5'"),
        ("--micro-batch 2 stray", "no flag in front of: stray"),
        ("--kind blue", "--kind takes one of green, red, not 'blue'"),
        ("--most 1e9", "--most takes a whole number, not '1e9'"),
        ("--hours soon", "--hours takes a number, not 'soon'"),
        ("--tint blue", "--tint takes one of green, red, not 'blue'"),
        ("--tint None", "--tint takes one of green, red, not 'None'"),
        ("--sizes x", "--sizes does not take 'x'"),
    ],
)
def test_a_mistyped_flag_is_65_and_one_line(argv: str, said: str, encoding: str) -> None:
    code = """
from dataclasses import dataclass
from typing import Literal
from gpt_data.flags import parse_flags
@dataclass(frozen=True)
class Options:
    "Some flags."
    lr: float = 1.0
    micro_batch: int = 2
    kind: Literal['red', 'green'] = 'red'
    most: int | None = None
    hours: float | None = None
    tint: Literal['red', 'green'] | None = None
    sizes: tuple[int, ...] = ()
given = {'options': Options()}
sys.exit(guarded('toy', lambda: parse_flags(ARGV, given, prog='toy', description='') and 0))
"""
    done = run_python(code.replace("ARGV", repr(argv.split())), PYTHONIOENCODING=encoding, COLUMNS="40")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == f"toy: {said}; --help lists all flags\n"


def test_a_flag_that_has_no_default_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Needed:
        data: str
        out_dir: str
        lr: float = 1.0

    with pytest.raises(FlagError, match=r"^--out-dir must be given; --help lists all flags$"):
        parse_flags(["--data=x"], {"options": Needed}, prog="toy", description="A toy.")


def test_flags_may_be_written_in_every_usual_way() -> None:
    assert flags("--micro_batch=3", "--lr", "-1.5", "--plain") == Options(-1.5, 3, plain=True)
    assert flags("--no-plain") == Options()


DEAF = """
import hashlib, sys
from gpt_data.stopping import StopFlag
stop = StopFlag()
with stop.installed("it is saved first", after=float(sys.argv[1])):
    print("ready", flush=True)
    # one long call of C, as a compilation is: Python calls no handler meanwhile
    hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000)
"""


def deaf(after: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, str(after)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # Python still takes signals between the word and the call
    time.sleep(0.3)
    return process


def test_a_second_signal_needs_no_word_of_the_first() -> None:
    with deaf(60.0) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_signal_is_heard_at_once_and_the_second_one_ends_the_process() -> None:
    with deaf(0.0) as process:
        assert process.stderr is not None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "SIGTERM heard: it is saved first\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert time.monotonic() - began < 2.0


def test_a_command_is_proposed_as_its_user_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert typed("gpt-toy-sample", "--model", "a run") == "gpt-toy-sample --model 'a run'"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert typed("gpt-toy-sample", "--model", "a run") == "uv run gpt-toy-sample --model 'a run'"


def test_what_takes_the_time_is_said_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(**how: bool) -> str:
        with waiting("loading", **how) as tell:
            tell("drawing 2 of 5")
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    assert wait() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "drawing 2 of 5" in wait()
    assert wait(plain=True) == ""


def test_a_signal_is_said_above_a_live_display(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written beside it, the line was drawn over with the next picture, a quarter of a second later."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    stop = StopFlag()
    with display(plain=False) as show, stop.installed("it ends soon"):
        show(Progress("tokens", documents=3))
        os.kill(os.getpid(), signal.SIGINT)
        while not stop():
            time.sleep(0.01)
    assert "SIGINT heard: it ends soon\n" in capsys.readouterr().err
