"""What every command owes its terminal: one line for each failure, an exit status, output that ends nothing.

Nothing beyond the standard library is imported here: a command enters ``guarded`` first and imports the rest
inside it, so that Ctrl-C is answered from the start.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from gpt_data.stopping import end_with_starter

BAD_INPUT, CANNOT_WRITE, OUT_OF_MEMORY, INTERRUPTED = 65, 73, 71, 130
MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")
MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Failed to CUDA calloc")
"""What XLA says, and NCCL, whose error torch and JAX hand on, of a GPU that is full."""
LESS = {
    "train": "; lower --micro-batch or --context; what was saved is as it was",
    "sample": "; lower --count or --tokens",
    "translate": "; lower --batch or --beam",
    "eval": "; lower --tokens-per-batch",
}
"""By the last word of a command's name: what makes it need less memory."""
NARROWEST_HELP = 40
AGAIN_SECONDS = 0.05
BY_UV = "UV_RUN_RECURSION_DEPTH"
"""What ``uv run`` sets for what it starts, whose commands the user's own shell does not find."""


class OutputError(Exception):
    """The standard output does not take what the command was run for."""

    exit_status = CANNOT_WRITE


def named(place: str) -> Any:
    """Import what has this name."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def enter(name: str, command: str, *given: str) -> NoReturn:
    """Import a command inside ``guarded``, run it, and end the process with the exit status that it gives."""
    sys.exit(guarded(name, lambda: named(command)(*map(named, given))))


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run a command and give its exit status; what the user can mend becomes one line on the standard error.

    An error's ``exit_status``, if it has one, is the command's. A reader that closes the pipe has what it
    wanted: status 0. Ctrl-C: status 130 and not a word.
    """
    tolerate_encodings()
    end_with_starter()
    with _interruptions() as heard:
        try:
            try:
                return command()
            finally:
                _flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            give_up_stdout()
            return 0
        except Exception as error:
            if heard:
                return INTERRUPTED
            status, line = _explain(name, error)
            if status is None:
                raise
            warn(f"{name}: {line}")
            return status


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """The interruptions that came: a library whose import one breaks off may turn it into another error.

    One that falls into an object's end, or into a callback as imports have them, comes again: there Python
    prints it and goes on.
    """
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        heard.append(number)
        signal.default_int_handler(number, frame)

    def lost(error: Any) -> None:
        if isinstance(error.exc_value, KeyboardInterrupt):
            # once Python is out of what swallowed it
            threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(error)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield heard
        return
    signal.signal(signal.SIGINT, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield heard
    finally:
        sys.unraisablehook = before
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _explain(name: str, error: Exception) -> tuple[int | None, str]:
    """Exit status and line of an error that the user can mend; no status for others."""
    text = (str(error).splitlines() or [""])[0]
    if hasattr(error, "exit_status"):
        return int(error.exit_status), str(error)
    # each framework has its own error for it
    if type(error).__name__ in MEMORY_ERRORS or any(words in str(error) for words in MEMORY_WORDS):
        return OUT_OF_MEMORY, f"out of memory: {text}{LESS.get(name.rpartition('-')[2], '')}"
    # somebody else's folder, a name that is too long, a disk that fails: each where its file is looked at
    if isinstance(error, OSError) and error.filename is not None:
        return BAD_INPUT, f"cannot read {error.filename}: {error.strerror}"
    return None, text


def typed(*words: str) -> str:
    """A command line as the user has to type it: behind ``uv run`` if that started this one."""
    return shlex.join(("uv", "run", *words) if BY_UV in os.environ else words)


def warn(line: str) -> None:
    """Print a line on the standard error that the user should see; one that takes nothing ends no work."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def emit(text: str, end: str = "\n") -> None:
    """Print what the command was run for.

    Raises:
        OutputError: If the standard output does not take it.
        BrokenPipeError: If nobody reads it any more.
    """
    with writing():
        print(text, end=end, flush=True)


def _flush() -> None:
    """Have everything written that was printed."""
    if sys.stdout is not None:
        with writing():
            sys.stdout.flush()


@contextmanager
def writing() -> Iterator[None]:
    """Within, an operating system's error is the standard output's.

    Raises:
        OutputError: If the standard output does not take what is written.
        BrokenPipeError: If nobody reads it any more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_stdout()
        raise OutputError(f"cannot write to the standard output: {error.strerror or error}") from None


def give_up_stdout() -> None:
    """Point the standard output at nothing, so that its last flush does not fail at exit either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    os.close(null)


def tolerate_encodings() -> None:
    """Have characters that an output's encoding lacks replaced, where they would be an error."""
    for stream in (sys.stdout, sys.stderr):
        # what stands in for an output, in a test or a notebook, may have no encoding to set
        if stream is not None and hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def can_show(text: str) -> bool:
    """Whether the standard output's encoding has all characters of ``text``."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def wide_enough(least: int = NARROWEST_HELP) -> Iterator[None]:
    """Have text wrapped at so many columns or more, whatever the environment and the terminal say."""
    columns = max(least, shutil.get_terminal_size().columns)
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
