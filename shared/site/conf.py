"""Sphinx's settings, and the two things that it does not have: MathML, and code in three dialects."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from cells import DIALECTS, Call, call_tree, cut, step_table
from kept import drawn, strips
from many import RESULTS, heading, read_lines, whole
from wire import PERFORMANCE, narrow, strong, table, tabulate, weak

project = "Pretty JAX, Mighty Triton"
html_title = project
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
autodoc_default_options = {"members": True, "undoc-members": False, "member-order": "bysource"}
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_use_ivar = True
# three dialects have the same names: a type that is meant by one is not looked for in the others
# and what a README links to beside itself is text where the README is included
suppress_warnings = ["ref.python", "myst.xref_missing"]

LABELS = {"jax": "JAX", "torchfunc": "torch.func", "triton": "Triton"}
STEPS = {
    "jax": (("train_step",), ("step.py", "loss.py", "model.py", "attention.py", "gathering.py", "dropout.py",
                              "dropped_attention.py", "optimizer.py")),
    "torchfunc": (("accumulate", "finish"), ("step.py", "gradients.py", "loss.py", "model.py", "attention.py",
                                             "gathering.py", "dropout.py", "optimizer.py")),
    "triton": (("accumulate", "finish"), ("step.py", "loss.py", "model.py", "dropout.py", "optimizer.py",
                                          "reference/layers.py", "reference/attention.py",
                                          "reference/cross_entropy.py", "reference/optimizer.py")),
}  # fmt: skip
"""One step in each dialect: functions of ``step.py``, and the files through which calls are followed."""


class TrainingStep(SphinxDirective):
    """Every op of ``step.toml``: its formula, and the three dialects side by side."""

    def run(self) -> list[nodes.Node]:
        """Links to all ops, then a section for each."""
        self.env.note_dependency(str(Path(__file__).with_name("step.toml")))
        titles = [op["title"] for op in step_table()]
        links = [f'<a href="#{nodes.make_id(title)}">{escape(title)}</a>' for title in titles]
        contents = nodes.raw("", f"<nav class='ops'>{' '.join(links)}</nav>", format="html")
        return [contents, *(self._section(number, op) for number, op in enumerate(step_table()))]

    def _section(self, number: int, op: dict[str, Any]) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(op["title"])])
        section += nodes.title(text=op["title"])
        section += nodes.paragraph(text=op["words"])
        if op["formula"]:
            section += nodes.math_block(op["formula"], op["formula"], nowrap=False, number=None)
        columns = {label: "".join(map(self._cell_of(key), op[key])) for key, label in LABELS.items()}
        section += nodes.raw("", tabs(f"op{number}", columns), format="html")
        return section

    def _cell_of(self, dialect: str) -> Any:
        package = DIALECTS[dialect]

        def cell(text: str) -> str:
            if text.startswith("= "):
                return f'<p class="derived">{escape(text[2:])}</p>'
            found = cut(package, text)
            self.env.note_dependency(found.path)
            code = highlight(found.text, PythonLexer(), HtmlFormatter(nowrap=True))
            return (
                f"<p class='path'>{found.path}:{found.line}</p><div class='highlight'><pre>{code}</pre></div>"
            )

        return cell


class Calls(SphinxDirective):
    """Who calls whom in one step, in three dialects."""

    def run(self) -> list[nodes.Node]:
        """Nested lists."""
        self.env.note_reread()  # it is of many files
        trees = {}
        for key, (roots, files) in STEPS.items():
            parts = [_tree(call_tree(DIALECTS[key], f"step.py:{root}", files)) for root in roots]
            trees[LABELS[key]] = f"<ul class='calls'>{''.join(parts)}</ul>"
        return [nodes.raw("", tabs("calls", trees), format="html")]


class Kept(SphinxDirective):
    """What a block keeps for its backward, in three dialects."""

    def run(self) -> list[nodes.Node]:
        """One picture."""
        self.env.note_reread()
        return [nodes.raw("", drawn(strips()), format="html")]


class Wire(SphinxDirective):
    """What GPUs send each other, on paper or as seen; the argument says which."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table."""
        for source in (PERFORMANCE, RESULTS):
            self.env.note_dependency(str(source))
        plans = {"weak": weak, "strong": strong, "narrow": narrow}
        kind = self.arguments[0]
        return [nodes.raw("", _seen() if kind == "seen" else table(plans[kind]()), format="html")]


def _seen() -> str:
    lines = read_lines()
    return f"<p>{heading(lines)}</p>{tabulate(whole(lines))}"


def tabs(name: str, columns: dict[str, str]) -> str:
    """Columns on a wide page, tabs on a narrow one, without a line of script.

    Args:
        name: Unique on its page.
        columns: HTML by label.
    """
    parts = []
    for place, (label, content) in enumerate(columns.items()):
        checked = " checked" if place == 0 else ""
        mark = f'id="{name}-{place}" name="{name}"'
        parts.append(f'<input type="radio" {mark}{checked}><label for="{name}-{place}">{label}</label>')
        parts.append(f"<div>{content}</div>")
    return f'<div class="dialects">{"".join(parts)}</div>'


def _tree(call: Call) -> str:
    file, _, name = call.name.partition(":")
    inner = f"<ul>{''.join(map(_tree, call.calls))}</ul>" if call.calls else ""
    return f"<li><code>{name}</code> <small>{file}</small>{inner}</li>"


def mathml(formula: str, display: str) -> str:
    """A formula as MathML, which browsers draw by themselves.

    Args:
        formula: LaTeX; backquotes around it are GitHub's.
        display: ``inline`` or ``block``.
    """
    # browsers ignore the alphabets that are attributes: these letters have code points of their own
    letters = {r"\mathbb R": "\N{DOUBLE-STRUCK CAPITAL R}", r"\mathbf 1": "\N{MATHEMATICAL BOLD DIGIT ONE}"}
    text = formula.strip("`")
    for command, letter in letters.items():
        text = text.replace(command, letter)
    return convert(text, display=display)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _plain_bars(*arguments: Any) -> None:
    """The bars of a norm are no substitution."""
    lines = arguments[-1]
    lines[:] = [line.replace("|", r"\|") for line in lines]


def _as_text(app: Sphinx, page: nodes.document, name: str) -> None:
    """A README's link to what lies beside it leads nowhere from a page."""
    del app, name
    for link in list(page.findall(nodes.reference)):
        if "/" in link.get("refid", ""):
            link.replace_self(link.children)


def _look_for_dead_ends(app: Sphinx, error: Exception | None) -> None:
    """Warn of links to a place that the page does not have."""
    for path in [] if error else sorted(Path(app.outdir).glob("*.html")):
        text = path.read_text("utf-8")
        places = {*re.findall(r'\bid="([^"]+)"', text)}
        for link in sorted({*re.findall(r'href="#([^"]+)"', text)} - places):
            logging.getLogger(__name__).warning(f"{path.name} has no place #{link}, to which it links")


def setup(app: Sphinx) -> None:
    """Register the directives, the formulas' renderer, and what looks after links."""
    app.connect("doctree-resolved", _as_text)
    app.connect("build-finished", _look_for_dead_ends)
    app.connect("autodoc-process-docstring", _plain_bars)
    app.add_directive("training-step", TrainingStep)
    app.add_directive("calls", Calls)
    app.add_directive("kept", Kept)
    app.add_directive("wire", Wire)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
