"""What each framework costs: the table of the README, out of a report of gpt-compare.

    python shared/site/costs.py          # what stands in the README

The columns are those that say what a step costs and where it leads; the others stand in ``report.md``.
"""

from __future__ import annotations

from pathlib import Path

from gpt_compare.comparison import read_report
from gpt_compare.report import DOLLARS, GENERATION, JOULES, table_of

REPORT = Path(__file__).parents[2] / "packages" / "gpt-compare" / "results" / "h200-25-seconds"
COLUMNS = (
    "", "ms a step", "tokens/s", "peak memory", JOULES, DOLLARS, "kernels", "first step after", "steps",
    "bits per byte", GENERATION,
)  # fmt: skip


def markdown(folder: Path = REPORT) -> str:
    """The report's table, those columns alone."""
    heading, *rows = table_of(read_report(folder))
    kept = [heading.index(name) for name in COLUMNS if name in heading]
    lines = [[line[place] for place in kept] for line in (heading, ["---", *["--:"] * len(heading)], *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(markdown())
