"""Convert TeX to MathML when the site is built, so that pages need no script for formulas."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# The output of pymdownx.arithmatex: \(...\) within a span, \[...\] within a div.
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>',
    re.DOTALL,
)


def on_page_content(content: str, **_: Any) -> str:
    """Convert every formula of a page."""
    return _FORMULA.sub(_render, content)


def _render(match: re.Match[str]) -> str:
    display = "inline" if match[2] == "(" else "block"
    return str(convert(html.unescape(match[3]).strip(), display=display))
