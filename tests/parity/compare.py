"""Hold every answer against the referee: one table, case by case, and a verdict. No framework needed.

    python compare.py CASES ANSWERS REPORT

The error of a tensor is ``|got - want| / |want|`` in the Frobenius norm; a cell shows the largest over the
tensors of its rung. Writes ``parity.json`` and ``parity.md`` into REPORT; exits 1 if anything fails.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

RUNGS = ("op forward", "op VJP", "logits", "loss", "gradients", "weights", "losses", "masks", "exchange")
YARDSTICK = "yardstick"

# One tolerance for float32: the unit roundoff 6e-8, grown by sums over at most some hundred terms and two
# layers, stays near 1e-6; 1e-5 leaves room for another order of summation and for nothing else.
FLOAT32 = 1e-5
# In bfloat16 the measure is an ordinary program: at most twice the error of plain PyTorch on the same case.
# Where that error is luckily small (a single number, a copy), no program can be held to less than the
# rounding of its output: unit roundoff 2^-9 for tensors; a mean over a hundred losses gains a digit.
BFLOAT16_FACTOR = 2.0
BFLOAT16_FLOOR = {"loss": 5e-4, "losses": 5e-4}
BFLOAT16_FLOOR_ELSEWHERE = 2.0**-9
EXACT = 0.0


class Finding(NamedTuple):
    """The worst tensor of one rung in one case."""

    label: str
    precision: str
    case: str
    rung: str
    error: float
    tensor: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its tolerance; NaN never is. The yardstick is measured, not judged."""
        return self.label == YARDSTICK or self.error <= self.tolerance


def rung_of(kind: str, name: str) -> str:
    """The rung that a tensor of an answer belongs to."""
    if kind == "op":
        if name == "mask":
            return "masks"
        return "op VJP" if name.startswith("d_") else "op forward"
    head = name.partition(".")[0].removeprefix("forked_")
    return {"gradient": "gradients", "weight": "weights", "log_probs": "logits"}.get(head, head)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative Frobenius error in float64; infinite if shapes differ or anything is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got.astype(np.float64) - want) / max(np.linalg.norm(want), 1e-30))


def errors_of(answer: Path, expected: Path, kind: str) -> dict[tuple[str, str], float]:
    """Error of every tensor by ``(rung, tensor)``; a tensor that is missing has an infinite one."""
    got, want = load_file(answer), load_file(expected)
    if "losses" in got and "losses" in want:
        # an interpreted run may take fewer steps
        want["losses"] = want["losses"][: len(got["losses"])]
    return {
        (rung_of(kind, name), name): relative_error(got[name], value) if name in got else float("inf")
        for name, value in want.items()
    }


def tolerance(precision: str, rung: str, yardstick: float | None) -> float:
    """The largest error that passes."""
    if rung == "masks":
        return EXACT
    if precision == "float32" or rung == "exchange":
        return FLOAT32
    floor = BFLOAT16_FLOOR.get(rung, BFLOAT16_FLOOR_ELSEWHERE)
    return max(BFLOAT16_FACTOR * yardstick, floor) if yardstick is not None else floor


def folders(path: Path) -> list[Path]:
    """Folders below ``path`` in order."""
    return sorted(child for child in path.iterdir() if child.is_dir())


def answered(cases: Path, answers: Path) -> Iterator[tuple[str, str, str, str, dict[tuple[str, str], float]]]:
    """Label, precision, kind, case and errors of every answer there is."""
    for label in folders(answers):
        for precision in folders(label):
            for kind in ("op", "model"):
                for answer in sorted((precision / kind).glob("*.safetensors")):
                    expected = cases / kind / answer.stem / "expected.safetensors"
                    yield label.name, precision.name, kind, answer.stem, errors_of(answer, expected, kind)


def findings(cases: Path, answers: Path) -> list[Finding]:
    """The worst tensor of every rung, case, precision and label, against its tolerance."""
    everything = list(answered(cases, answers))
    plain = {
        (precision, case, *where): error
        for label, precision, _, case, errors in everything
        if label == YARDSTICK
        for where, error in errors.items()
    }
    found = []
    for label, precision, _, case, errors in everything:
        rungs = defaultdict(list)
        for (rung, name), error in errors.items():
            allowed = tolerance(precision, rung, plain.get((precision, case, rung, name)))
            rungs[rung].append(Finding(label, precision, case, rung, error, name, allowed))
        # the worst is the one that exceeds its own tolerance the most
        found += [max(each, key=excess) for each in rungs.values()]
    return found + list(exchanges(answers))


def excess(finding: Finding) -> float:
    """Error in units of its tolerance."""
    return finding.error / max(finding.tolerance, 1e-30)


def exchanges(answers: Path) -> Iterator[Finding]:
    """Second halves after a change of backend, against the saver's uninterrupted run."""
    for label in folders(answers):
        for resumed in sorted((label / "resumed").glob("*/*.safetensors")):
            saver = resumed.parent.name
            whole = load_file(answers / saver / "float32" / "model" / resumed.name)["losses"]
            got = load_file(resumed)["losses"]
            error = relative_error(got, whole[-len(got) :])
            case = f"{resumed.stem} from {saver}"
            yield Finding(label.name, "float32", case, "exchange", error, "losses", FLOAT32)


def table_of(found: list[Finding]) -> tuple[list[str], list[tuple[list[str], list[Finding | None]]]]:
    """Header, and for each backend, precision and case a finding per rung."""
    rungs = [rung for rung in RUNGS if any(each.rung == rung for each in found)]
    rows: dict[tuple[str, str, str], dict[str, Finding]] = defaultdict(dict)
    for each in found:
        rows[each.label, each.precision, each.case][each.rung] = each
    return rungs, [(list(key), [cells.get(rung) for rung in rungs]) for key, cells in rows.items()]


def show(found: list[Finding], console: Console) -> None:
    """Print the table, then each failure with its tensor."""
    rungs, rows = table_of(found)
    table = Table(title="largest relative error against the float64 referee", header_style="bold")
    for column in ("backend", "precision", "case"):
        table.add_column(column, no_wrap=True)
    for rung in rungs:
        table.add_column(rung, justify="right", no_wrap=True)
    for key, cells in rows:
        colours = ["" if each is None else "green" if each.passed else "bold red" for each in cells]
        texts = ["" if each is None else f"{each.error:.0e}" for each in cells]
        table.add_row(*key, *(f"[{c}]{t}[/]" if c else t for c, t in zip(colours, texts, strict=True)))
    console.print(table)
    for each in found:
        if not each.passed:
            console.print(
                f"[bold red]FAIL[/] {each.label} {each.precision} {each.case}: {each.rung} of {each.tensor} "
                f"is off by {each.error:.1e}, allowed {each.tolerance:.0e}",
                soft_wrap=True,
                highlight=False,
            )
    judged = [each for each in found if each.label != YARDSTICK]
    failed = sum(not each.passed for each in judged)
    console.print(f"{len(judged) - failed} passed, {failed} failed")


def markdown(found: list[Finding]) -> str:
    """The worst over all cases, one line per backend and precision: what the README shows."""
    worst: dict[tuple[str, str], dict[str, Finding]] = defaultdict(dict)
    for each in found:
        row = worst[each.label, each.precision]
        if each.rung not in row or excess(each) > excess(row[each.rung]):
            row[each.rung] = each
    rungs = [rung for rung in RUNGS if any(rung in row for row in worst.values())]
    lines = ["| backend | precision | " + " | ".join(rungs) + " |", "|---|---|" + "--:|" * len(rungs)]
    for (label, precision), row in worst.items():
        cells = [
            "" if rung not in row else f"{row[rung].error:.0e}" + ("" if row[rung].passed else " **fails**")
            for rung in rungs
        ]
        lines.append(f"| {label} | {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Compare, print, write; 1 if anything fails."""
    cases, answers, report = (Path(each) for each in argv)
    # the yardstick is the measure, not the measured: in bfloat16 it has no tolerance of its own
    found = [
        each for each in findings(cases, answers) if each.label != YARDSTICK or each.precision == "float32"
    ]
    show(found, Console(width=None if sys.stdout.isatty() else 200))
    report.mkdir(parents=True, exist_ok=True)
    infos = {
        f"{path.parent.parent.name} {path.parent.name}": json.loads(path.read_text())
        for path in sorted(answers.glob("*/*/info.json"))
    }
    facts = {"findings": [each._asdict() | {"passed": each.passed} for each in found], "backends": infos}
    (report / "parity.json").write_text(json.dumps(facts, indent=1) + "\n")
    (report / "parity.md").write_text(markdown(found))
    return int(any(not each.passed for each in found) or not found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
