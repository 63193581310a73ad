"""How fast text becomes shards: MB of text (10^6 bytes of UTF-8) a second by the clock, beside reading alone.

    python shared/gpt-data/bench/bench_prepare.py TEXTS --tokenizer tokenizer.json --cores 1 2 16

Paragraphs of TEXTS are shuffled anew for every file that is written, as ``.jsonl.zst`` and ``.parquet``. Each
job runs twice, over little and over much of the text, fresh processes each time: what the difference takes is
the speed, and what is left of the shorter time is the start-up. ``parts`` is one process a core, each bound
to its own, with ``--part k/N`` of the files. Nothing is written to a disk if ``--work`` lies in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt_data.settings import MAX_DOCUMENT_BYTES
from gpt_data.sources.text_files import read_documents

KINDS = ("jsonl.zst", "parquet")
FIRST = """
import atexit, os, sys, time
from pathlib import Path
os.sched_setaffinity(0, {})
peak = lambda: next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
atexit.register(lambda: print(time.process_time(), peak()))
"""
"""Each process says last what it took: seconds of processors, and kB at its peak, without its parent's."""
PREPARE = "from gpt_data.command import main; main()"
READ = """
from gpt_data.sources.text_files import read_documents
for name in sys.argv[1:]:
    for text in read_documents(Path(name), 2**26): pass
"""
UNPACK = """
from gpt_data.store.unpacking import open_unpacked
for name in sys.argv[1:]:
    with open_unpacked(Path(name)) as file:
        while file.read(2**20): pass
"""


class Job(NamedTuple):
    """Processes that are started together: the code of each, its arguments, the cores it may use."""

    code: str
    arguments: list[list[str]]
    cores: list[set[int]]


class Cost(NamedTuple):
    """What a job took.

    Attributes:
        clock: Seconds until its last process ended.
        processors: Seconds of all its processes.
        megabytes: The most that one of them held.
    """

    clock: float
    processors: float
    megabytes: float


def write_files(texts: list[str], folder: Path, seed: int) -> int:
    """Write the texts, paragraphs shuffled, as one file of each kind; return the bytes of text in one.

    Args:
        folder: Holds a folder of each kind, in which the file is named by ``seed``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from backports import zstd

    paragraphs = [part for text in texts for part in text.split("\n")]
    random.Random(seed).shuffle(paragraphs)
    each = -(-len(paragraphs) // len(texts))
    mixed = ["\n".join(paragraphs[at : at + each]) for at in range(0, len(paragraphs), each)]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in mixed)
    (folder / KINDS[0] / f"{seed:03d}.jsonl.zst").write_bytes(zstd.compress(lines.encode()))
    table = pa.table({"text": mixed})
    pq.write_table(table, folder / KINDS[1] / f"{seed:03d}.parquet", compression="zstd", row_group_size=1000)
    return sum(len(text.encode()) for text in mixed)


def run(job: Job) -> Cost:
    """Run a job's processes side by side, each bound to its cores."""
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST.format(cores) + job.code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for arguments, cores in zip(job.arguments, job.cores, strict=True)
    ]
    said = [process.communicate() for process in running]
    seconds = time.perf_counter() - start
    for process, (_, complaint) in zip(running, said, strict=True):
        if process.returncode:
            raise SystemExit(complaint.decode())
    last = [out.split()[-2:] for out, _ in said]
    return Cost(seconds, sum(float(one) for one, _ in last), max(float(peak) for _, peak in last) / 1e3)


def jobs(kind: str, files: list[Path], tokenizer: Path, work: Path, cores: Sequence[int]) -> dict[str, Job]:
    """What is timed over these files of one kind, by name."""
    have = sorted(os.sched_getaffinity(0))
    names = [str(file) for file in files]
    folder = work / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in files:
        os.link(file, folder / file.name)
    flags = ["--data", f"text:{folder}", "--tokenizer", str(tokenizer), "--plain", "--out"]
    one, most = {have[-1]}, max(cores)
    found = {}
    for count in sorted(cores, reverse=True):
        found[f"prepare, {count} cores"] = Job(PREPARE, [[*flags, str(work / "out")]], [set(have[-count:])])
    singles = [{core} for core in have[-most:]]
    parts = [[*flags, str(work / "out" / str(k)), "--part", f"{k}/{most}"] for k in range(1, most + 1)]
    found[f"prepare, {most} parts"] = Job(PREPARE, parts, singles)
    found[f"read, {most} parts"] = Job(READ, [names[k::most] for k in range(most)], singles)
    found["read, 1 core"] = Job(READ, [names], [one])
    if kind == KINDS[0]:
        found["unpack, 1 core"] = Job(UNPACK, [names], [one])
    return found


def measure(given: argparse.Namespace, work: Path, sizes: list[int]) -> None:
    """Run every job over few and over many files; print a line of each."""
    print(f"{'files':<10} {'job':<18} MB/s  MB a CPU s  start-up, s  peak, MB a process  all, s")
    many, most = len(sizes), max(given.cores)
    for kind in KINDS:
        files = sorted((work / kind).iterdir())

        def timed(name: str, count: int, files: list[Path] = files, kind: str = kind) -> Cost:
            found = jobs(kind, files[:count], given.tokenizer, work, given.cores)[name]
            shutil.rmtree(work / "out", ignore_errors=True)
            return run(found)

        for name in jobs(kind, files, given.tokenizer, work, given.cores):
            few, much = (most, many) if "parts" in name else (1, given.files)
            short, long = (min(timed(name, count) for _ in range(given.repeats)) for count in (few, much))
            text = sum(sizes[few:much]) / 1e6
            rate = text / (long.clock - short.clock)
            each = text / (long.processors - short.processors)
            start = short.clock - sum(sizes[:few]) / 1e6 / rate
            speeds = f"{rate:>4.0f}  {each:>10.0f}  {start:>11.2f}"
            print(f"{kind:<10} {name:<18} {speeds}  {long.megabytes:>18.0f}  {long.clock:>6.2f}", flush=True)


def main() -> None:
    """Write the files, run every job, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--files", type=int, default=5, help="what one process reads, at most; also a part")
    parser.add_argument("--megabytes", type=float, default=30, help="of text in a file")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    texts, left = list[str](), given.megabytes * 1e6
    for text in chain.from_iterable(read_documents(path, MAX_DOCUMENT_BYTES) for path in given.texts):
        texts.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    with tempfile.TemporaryDirectory(dir=given.work) as folder, ProcessPoolExecutor(max(given.cores)) as pool:
        work, count = Path(folder), max(given.files, 6 * max(given.cores))
        for kind in KINDS:
            (work / kind).mkdir()
        sizes = list(pool.map(write_files, [texts] * count, [work] * count, range(count)))
        # compiles the kernels, if this machine has not
        run(
            jobs(KINDS[0], sorted((work / KINDS[0]).iterdir())[:1], given.tokenizer, work, [1])[
                "prepare, 1 cores"
            ]
        )
        measure(given, work, sizes)


if __name__ == "__main__":
    main()
