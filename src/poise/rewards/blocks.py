"""The code blocks of a completion, for the rewards that look for a program or for calls in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FENCE = re.compile(r"([ \t]*)```[ \t]*([\w+-]*)")


def code_blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """A text's closed code blocks: the white space before the fence, the language, and what is inside.

    >>> list(code_blocks("So:\\n```python\\nx = 1\\n```\\nThat is\\n```\\n1\\n```"))
    [('', 'python', 'x = 1\\n'), ('', '', '1\\n')]
    """
    opened, inside = None, []
    for line in text.split("\n"):
        if opened is None:
            opened, inside = _FENCE.match(line), []
        elif line.strip(" \t") == "```":
            yield opened.group(1), opened.group(2).lower(), "".join(inside)
            opened = None
        else:
            inside.append(line + "\n")
