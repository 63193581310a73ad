"""``report.html``: the whole report in one file, without network, for light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

CAPTIONS = {
    "speed": "Tokens per second",
    "memory": "Memory at the peak",
    "energy": "Energy",
    "loss-by-step": "Training loss by step",
    "loss-by-time": "Training loss by time, and what evaluations between the ends told",
    "step": "Where a step's time goes, by each framework's own profiler",
    "generation": "Texts continued: reading their beginnings, and adding to them",
}
STYLE = """
:root { color-scheme: light dark; --line: #d8d8d8; --quiet: #666; --back: #fff; --fore: #1b1b1b;
  --box: #f5f5f5 }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3a3a; --quiet: #a0a0a0; --back: #141414; --fore: #e8e8e8; --box: #1f1f1f }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--back); color: var(--fore);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; line-height: 1.3 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: .95rem; margin: 1rem 0 .25rem } pre { white-space: pre-wrap; overflow-wrap: anywhere }
p.origin, figcaption, dd { color: var(--quiet) }
p.beware { border-left: .25rem solid #d55e00; padding-left: .75rem }
pre, .wide { overflow-x: auto } pre { background: var(--box); padding: .75rem; border-radius: .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; min-width: 7.5rem;
  vertical-align: top }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--back); font-weight: normal;
  color: var(--quiet) }
th span, td span { white-space: nowrap }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0 } svg { width: 100%; height: auto; color: var(--fore) } svg text { fill: currentColor }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 } dd { margin: 0 }
summary { color: var(--quiet); cursor: pointer }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .5rem }
  figure { overflow-x: auto } svg { width: 28rem } }
"""


def page(
    title: str,
    origin: str,
    command: str,
    warnings: Sequence[str],
    table: Sequence[Sequence[str]],
    notes: Mapping[str, str],
    pictures: Mapping[str, str],
    samples: Mapping[str, str],
    settings: Mapping[str, Any],
) -> str:
    """The page; every text is escaped.

    Args:
        warnings: Why the figures may not be compared.
        pictures: SVG by name.
        samples: What a competitor wrote at its end, by its label.
    """
    beware = "".join(f'<p class="beware">{escape(warning)}</p>' for warning in warnings)
    plots = "".join(
        f"<figure>{svg}<figcaption>{CAPTIONS[name]}</figcaption></figure>" for name, svg in pictures.items()
    )
    made = _list({name: how for name, how in notes.items() if name in table[0]})
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1><p class="origin">{escape(origin)}</p>{beware}
<details><summary>Made by</summary><pre>{escape(command)}</pre></details>
{_table(table)}<h2>Pictures</h2><div class="plots">{plots}</div>
{_samples(samples)}<h2>How each figure is made</h2>{made}<h2>What all had in common</h2>{_list(settings)}
</body></html>
"""


def _samples(samples: Mapping[str, str]) -> str:
    if not samples:
        return ""
    texts = "".join(f"<h3>{escape(label)}</h3><pre>{escape(text)}</pre>" for label, text in samples.items())
    return f"<h2>What each wrote at its end</h2>{texts}"


def _table(table: Sequence[Sequence[str]]) -> str:
    """A column for each competitor, so that all figures are seen at once; a failure is a line below."""
    heading, *lines = table
    # an error stands in the second place, and nothing behind it
    finished = [line for line in lines if any(line[2:])]
    failures = [line for line in lines if not any(line[2:])]
    head, *body = zip(heading, *finished, strict=True)
    rows = "".join(f"<tr>{_cells(line, 'td')}</tr>" for line in body if finished)
    below = "".join(f'<p class="beware">{escape(label)}: {escape(why)}</p>' for label, why, *_ in failures)
    shown = f"<table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide">{shown}</div>{below}' if finished else below


def _cells(line: Sequence[str], kind: str) -> str:
    """The first names what stands beside it."""
    first, *others = (_unbroken(cell) for cell in line)
    return f"<th>{first}</th>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in others)


def _unbroken(cell: str) -> str:
    """Words that part at spaces alone: a browser would part a flag or a range at its hyphen."""
    return " ".join(f"<span>{word}</span>" if "-" in word else word for word in escape(cell).split(" "))


def _list(values: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items())
    return f"<dl>{items}</dl>"
