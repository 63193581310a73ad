"""A comparison as it is reported, and as ``report.json`` keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt_data.store.reading import read_bytes
from gpt_trainer.errors import InputError
from gpt_trainer.run.record import PACKAGES

from gpt_compare.figures import SPREAD, WINDOW, Row, row_from_json, with_gaps
from gpt_compare.reference import Reference, reference_from_json

FORMAT = 3
UNKNOWN = "unknown device"
JSON_NAME = "report.json"
LARGEST_REPORT = 256 << 20
FAIR_SPREAD = 1.3
"""Turns of one competitor, or its steps, that differ by more say nothing about which competitor is faster."""
VERSIONS = ("python", "torch", "triton", "cuda", "jax", "jaxlib", "transformers", *PACKAGES)


@dataclass(frozen=True)
class Comparison:
    """What is reported.

    Attributes:
        preset: The preset's name.
        settings: What all had in common: every flag's value by its name.
        rows: One for each competitor.
        command: What the user typed.
        date: UTC, ISO 8601; all of them where rows of others were taken in.
        driver: The GPU driver's version, if it is known.
        price_per_hour: Dollars for an hour of this machine, if the user said so.
        disturbances: What else went on before the first began: a line each.
        reference: A published curve that is drawn beside; None if there is none.
    """

    preset: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    command: str
    date: str
    driver: str | None
    price_per_hour: float | None = None
    disturbances: Sequence[str] = ()
    reference: Reference | None = None

    @property
    def device(self) -> str:
        """As its vendor names it; unknown if nothing ran."""
        names = [row.made_by["device"] for row in self.rows if row.made_by]
        return names[0] if names else UNKNOWN

    @property
    def versions(self) -> Mapping[str, str]:
        """Of everything that any competitor used."""
        used = {name: row.made_by[name] for row in self.rows for name in VERSIONS if name in row.made_by}
        return {name: used[name] for name in VERSIONS if name in used}

    @property
    def title(self) -> str:
        """Model, precision, step and device in one line."""
        given = self.settings
        tokens = given["tokens_per_step"]
        rows = "as many as fit" if tokens is None else tokens // given["context"]
        size = f"{self.length} of {rows} x {given['context']} tokens"
        return f"{self.preset}, {given['precision']}, {size}, on {self.device}"

    @property
    def length(self) -> str:
        """How long each trains, in words; a report of before knows steps alone."""
        given = self.settings
        if given.get("minutes") is not None:
            return f"{60.0 * given['minutes']:,.0f} seconds of steps"
        if given.get("train_tokens") is not None:
            return f"{given['train_tokens']:,} tokens in steps"
        return f"{given['steps']} steps"

    @property
    def budgeted(self) -> bool:
        """Whether each had as much time, or as many tokens, and not as many steps."""
        return any(self.settings.get(name) is not None for name in ("minutes", "train_tokens"))

    @property
    def warnings(self) -> list[str]:
        """Why the figures may not be compared: a line each, none if they may."""
        found = list(self.disturbances)
        for row in self.rows:
            if row.spread > FAIR_SPREAD:
                found.append(
                    f"{row.label}: its turns differ {row.spread:.2f} times: no order follows from them"
                )
            _, median, late = row.figures.step_seconds if row.figures else (1.0, 1.0, 1.0)
            if late > FAIR_SPREAD * median:
                slow = f"a fifth of its steps took {late / median:.2f} times the median or longer"
                found.append(f"{row.label}: {slow}: something disturbed it")
            if row.throttled:
                found.append(f"{row.label}: the device was throttled, for heat or for want of power")
        return found

    def taking_in(self, other: Comparison) -> Comparison:
        """This one with the other's rows, each in place of the one of its name, or behind them all.

        Raises:
            InputError: If the two had other things in common.
        """
        devices = {self.device, other.device} - {UNKNOWN}
        if self.settings != other.settings or len(devices) > 1:
            raise InputError(
                f"{other.title} had other settings than {self.title}: they are not one comparison"
            )
        rows = {row.label: row for row in (*self.rows, *other.rows)}
        joined = replace(
            self,
            command=f"{self.command}\n{other.command}",
            date=", ".join(dict.fromkeys([*self.date.split(", "), other.date])),
            disturbances=tuple(dict.fromkeys([*self.disturbances, *other.disturbances])),
        )
        return joined.of([replace(row, gap=None) for row in rows.values()])

    def of(self, rows: Sequence[Row]) -> Comparison:
        """This one with other rows, and their gaps where step n of one is step n of the other."""
        return replace(self, rows=rows if self.budgeted else with_gaps(rows))

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "format": FORMAT, "title": self.title, "preset": self.preset, "command": self.command,
            "date": self.date, "device": self.device, "driver": self.driver, "versions": dict(self.versions),
            "config": dict(self.settings), "percentiles": list(SPREAD), "window": WINDOW,
            "price_per_hour": self.price_per_hour, "disturbances": list(self.disturbances),
            "reference": None if self.reference is None else self.reference._asdict(),
            "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip


def read_report(folder: Path) -> Comparison:
    """The comparison that a folder reports, written by this version or one before it.

    Raises:
        InputError: If there is no such report, or it is damaged.
    """
    path = folder / JSON_NAME
    raw = read_bytes(path, LARGEST_REPORT, follow_link=True)
    try:
        values = json.loads(raw)
        return Comparison(
            values["preset"],
            values["config"],
            [row_from_json(row) for row in values["rows"]],
            values["command"],
            values["date"],
            values["driver"],
            values.get("price_per_hour"),
            tuple(values.get("disturbances", ())),
            reference_from_json(values.get("reference")),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not a report of gpt-compare: {error}") from None
