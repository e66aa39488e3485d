r"""Finding the final answer in a completion, before any verifier compares it.

Four forms are read: `\boxed{}`, `<answer></answer>`, `Answer:` and `####`. The last statement wins, so a model may
correct itself; several answers side by side, with nothing but "or" or a comma between them, are all handed over, and
the verifier decides whether they contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# TeX boxes one token here, but whoever forgets the braces means the whole number.
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*(-?[0-9]+(?:(?:,[0-9]{3})+|\.[0-9]+)?)(?=[\s.,;:!$*]|\\[)\]]|$)")
# The innermost of opened tags, so that a flood of them is read once.
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r"(?:^|(?<=[\s*_>#.-]))answer(?:\s+is)?\s*(?:[*_]+\s*)?:\s*(?:[*_]+\s*)?", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*([^\n]*)", re.MULTILINE)
_SENTENCE_END = re.compile(r"\.\s+[A-Z]|\n")
# Behind the letter of a choice, what follows may be its text, or take it back: `A. 12`, `A. No, B`.
_LONE_LETTER = re.compile(r"[\W_]*[A-J][\W_]*")
_LINE_END = re.compile(r"\n")
_BETWEEN = re.compile(
    r"(?:[\s,;.:/|&$*_()\[\]-]|\\\\|\\text\s*\{[^{}]{0,9}\}|\\q?quad"
    r"|\b(?:or|and|the|final|answer|else|either|also|maybe|perhaps|possibly|alternatively|otherwise|could|be|it|is)\b)*",
    re.IGNORECASE,
)
# An answer is stated near the end; reading no further back bounds the work on a completion that is all markers.
_TAIL = 16_384
_MOST = 64


@dataclass(frozen=True, slots=True)
class Statement:
    """One place where a completion states an answer.

    Args:
        start, end: character positions of the whole statement.
        text: the answer stated there, trimmed.
    """

    start: int
    end: int
    text: str


def visible(completion: str) -> str:
    """The part of a completion after its reasoning; all of it if no reasoning was closed.

    >>> visible("<think>maybe 3</think> Answer: 4")
    ' Answer: 4'
    """
    return completion.rsplit("</think>", 1)[-1]


def spoken(completion: str) -> str:
    """The part of a completion after its reasoning; nothing if reasoning was opened and never closed.

    >>> spoken("<think>maybe 3</think> Answer: 4"), spoken("<think>Answer: 4")
    (' Answer: 4', '')
    """
    return "" if "<think>" in completion and "</think>" not in completion else visible(completion)


def after_hashes(truth: str) -> str:
    """What a ground truth says behind its last `####`, as GSM8K's worked solutions end; all of one that has none.

    >>> after_hashes("48 + 24 = 72\\n#### 72"), after_hashes("72")
    ('72', '72')
    """
    return truth.rsplit("####", 1)[-1].strip()


def final_answers(completion: str, whole_lines: bool = False) -> list[str]:
    r"""The answer stated last: one text; several if they stand side by side; none if nothing is stated.

    Args:
        completion: text with or without reasoning.
        whole_lines: what follows `Answer:` goes to the end of its line, not of its sentence.

    >>> final_answers(r"First \boxed{1}. No, it is \boxed{22}")
    ['22']
    >>> final_answers("Answer: 3. Wait, I forgot one. Answer: 4")
    ['4']
    >>> final_answers(r"\boxed{3} or \boxed{4}")
    ['3', '4']
    """
    text = visible(completion)[-_TAIL:]
    statements = _statements(text, _LINE_END if whole_lines else _SENTENCE_END)
    if not statements:
        return []
    last = [statements[-1]]
    for earlier in reversed(statements[:-1]):
        if not _BETWEEN.fullmatch(text, earlier.end, last[0].start):
            break
        last.insert(0, earlier)
    return list(dict.fromkeys(statement.text for statement in last))


def _statements(text: str, stop: re.Pattern[str]) -> list[Statement]:
    found = [*_boxes(text), *_labelled(text, stop)]
    found += [statement for pattern in (_BARE_BOX, _TAG, _HASHES) for statement in _matches(pattern, text)]
    found = sorted((s for s in found if s.text), key=lambda statement: statement.start)[-_MOST:]
    # `Answer: \boxed{4}` is one statement in two forms: the innermost form is the answer. A box is said as a whole.
    boxed = [s for s in found if _BOX.match(text, s.start)]
    found = [s for s in found if not any(o is not s and o.start <= s.start and s.end <= o.end for o in boxed)]
    return [s for s in found if not any(o is not s and s.start <= o.start and o.end <= s.end for o in found)]


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[Statement]:
    for match in pattern.finditer(text):
        yield Statement(match.start(), match.end(), _trim(match.group(1)))


def _labelled(text: str, stop: re.Pattern[str]) -> Iterator[Statement]:
    for match in list(_LABEL.finditer(text))[-_MOST:]:
        end = _first(stop, text, match.end())
        if _LONE_LETTER.fullmatch(text, match.end(), end):
            end = _first(_LINE_END, text, match.end())
        yield Statement(match.start(), end, _trim(text[match.end() : end]))


def _first(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.search(text, start)
    return found.start() if found else len(text)


def _boxes(text: str) -> Iterator[Statement]:
    for match in list(_BOX.finditer(text))[-_MOST:]:
        end = _closing_brace(text, match.end())
        if end is not None:
            yield Statement(match.start(), end + 1, _BOX.sub("{", text[match.end() : end]).strip())


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    index = start
    while index < len(text):
        if text[index] == "\\":
            index += 1  # an escaped brace, or a command's first letter: neither opens nor closes
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
        if depth == 0:
            return index
        index += 1
    return None


def _trim(answer: str) -> str:
    answer = answer.strip().strip("*_").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        bare = answer.rstrip(".")
        if bare.startswith(opening) and bare.endswith(closing) and len(bare) > len(opening) + len(closing):
            return bare[len(opening) : -len(closing)].strip()
    return answer
