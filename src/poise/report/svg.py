"""Figures as pieces of the page: inline SVG whose colours follow the page's, small enough to have many of them."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from poise.report.style import COLOURS, INK, LINE, SOFT, STYLE

_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"} | {
    colour: f"--c{index}" for index, colour in enumerate(COLOURS)
}
_DROPPED = (
    re.compile(r"\A.*?(?=<svg)", re.DOTALL),  # XML declaration and document type
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", re.DOTALL),  # would apply to the whole page
    re.compile(r"<!--.*?-->", re.DOTALL),
)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"([^>]*?)', re.DOTALL)
_HEIGHT = re.compile(r'(<svg[^>]*?) height="[^"]*"', re.DOTALL)
_PATH = re.compile(r' (?:d|x|y|transform)="[^"]*"')
_LONG_NUMBER = re.compile(r"(?<=\d)(\.\d{2})\d+")


def inline(figure: Figure, name: str, label: str) -> str:
    """An `<svg>` element: text as text, colours as the page's variables, names that clash with no other figure's.

    Args:
        figure: what to draw.
        name: unique on the page; prefixes every id.
        label: what a screen reader says.
    """
    drawn = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    for pattern in _DROPPED:
        text = pattern.sub("", text)
    text = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1\2", text, count=1), count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = _PATH.sub(lambda found: _LONG_NUMBER.sub(r"\1", found[0]), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
