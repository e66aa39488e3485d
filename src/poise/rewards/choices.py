"""Letters of multiple-choice answers, A to J, for the math reward: which one is said, and if it is the only one."""

from __future__ import annotations

import re

from poise.rewards.math_text import DRESSED

_LETTER = re.compile(r"\(?([A-J])\)?\.?")
_CHOICE = re.compile(r"(?:option|choice|answer)?\s*\(?([A-J])(?![^\W_])\)?", re.IGNORECASE)
# What is said behind a letter takes it back if it holds another letter or one of these words. A reason may name other
# letters; "A" and "I" may be words of a sentence.
_REASON = re.compile(r"\b(?:because|since)\b")
_SECOND_CHOICE = re.compile(
    r"(?<![A-Za-z])(?:[B-HJ]|[AI](?!\s+(?!(?:is|or)\b)[a-z]))(?![A-Za-z0-9])"
    r"|(?:\b(?i:or|and)\b|[,;/&|])[^A-Za-z0-9]*[a-j](?![A-Za-z])(?!\s+[a-z])"
    r"|\b(?i:wrong|incorrect|maybe|perhaps|instead|but|isn|(?:is|was|be)\s+not"
    r"|not\s+(?:the|it|right|correct|true|sure))\b"
)


def letter_of(truth: str) -> str | None:
    r"""The letter of a ground truth that is nothing but the letter of a choice.

    >>> letter_of("\\text{(C)}"), letter_of("B"), letter_of("2B")
    ('C', 'B', None)
    """
    match = _LETTER.fullmatch(DRESSED.sub(r"\1", truth).strip())
    return match and match.group(1)


def choice(text: str) -> str | None:
    r"""The letter of a multiple-choice answer, however it is dressed; None if it is taken back or is one of several.

    >>> choice("\\textbf{(B)} 12"), choice("option B."), choice("b"), choice("Both"), choice("B or C"), choice("b = 2")
    ('B', 'B', 'B', None, None, None)
    """
    if len(text) > 1000:
        return None
    bare = " ".join(DRESSED.sub(r" \1 ", text).replace("\\", " ").split())
    match = _CHOICE.match(bare)
    if match is None:
        return None
    said, rest = match.group(1), bare[match.end() :]
    if rest and not (said.isupper() and rest[0] in " .):,"):
        return None
    return None if _SECOND_CHOICE.search(_REASON.split(rest)[0]) else said.upper()
