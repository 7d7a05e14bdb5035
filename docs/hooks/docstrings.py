"""Show cross-references in docstrings as plain code."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:func|class|mod|meth|attr):(?=<code>)")


def on_page_content(content: str, **_: Any) -> str:
    """Remove Sphinx roles, which Markdown does not have."""
    return _ROLE.sub("", content)
