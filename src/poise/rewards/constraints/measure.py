"""What constraints count: words, sentences, paragraphs, occurrences. Simple rules, the same for every constraint."""

from __future__ import annotations

import re
import string
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_BLANK = "\u2800\u3164\uffa0\u115f\u1160"
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n+")


def seen(text: str) -> str:
    """A text without zero-width and blank characters, which hide a word from a search or fill an empty response.

    >>> seen("b\\u200bad \\u2800")
    'bad '
    """
    return "".join(c for c in text if c.isascii() or not (c in _BLANK or unicodedata.category(c) == "Cf"))


def words(text: str) -> list[str]:
    """Words and numbers, without punctuation.

    >>> words("It's 3 o'clock, _now_.")
    ["It's", '3', "o'clock", 'now']
    """
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences: what ends in a full stop, question or exclamation mark and white space, or at the end of a line.

    >>> sentences("One. Two? Three!")
    ['One.', 'Two?', 'Three!']
    """
    return [part.strip() for part in _SENTENCE_END.split(text) if words(part)]


def paragraphs(text: str, divider: str = r"\n\s*\n") -> list[str]:
    """Parts between dividers (blank lines by default), empty ones left out."""
    return [part.strip() for part in re.split(divider, text) if part.strip()]


def occurrences(word: str, text: str) -> int:
    """How often a word or phrase stands in a text on its own, in any case."""
    # Full-width and other compatible forms of a word are that word.
    text, word = (unicodedata.normalize("NFKC", part) for part in (text, word.strip()))
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def bare(word: str) -> str:
    """A word without punctuation around it, in lower case."""
    return word.strip().strip(string.punctuation + "“”‘’«»…").casefold()


def outermost(text: str, place: int) -> set[str]:
    """What may be called the first (place 0) or last (-1) word of a text, bare; more than one if it has hyphens.

    >>> sorted(outermost("Well-being, first.", 0)), outermost("So be it!", -1), outermost("...", 0)
    (['well', 'well-being'], {'it'}, set())
    """
    parts = [part for part in text.split() if words(part)]
    return {bare(words(parts[place])[place]), bare(parts[place])} if parts else set()


def related(count: int, relation: str | None, wanted: int) -> bool:
    """Whether a count stands in a relation to a number; without a relation the two must be equal.

    Raises:
        ValueError: the relation is none of those below.

    >>> related(3, "at least", 3), related(3, "less than", 3), related(3, None, 3)
    (True, False, True)
    """
    comparisons = {
        "at least": count >= wanted,
        "at most": count <= wanted,
        "more than": count > wanted,
        "less than": count < wanted,
        "fewer than": count < wanted,
        "exactly": count == wanted,
    }
    if (relation or "exactly") not in comparisons:
        raise ValueError(f"no relation is called {relation!r}; known are {', '.join(comparisons)}")
    return comparisons[relation or "exactly"]
