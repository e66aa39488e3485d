"""Constraints on the form of a response: length, lists, sections, JSON, case, punctuation, beginning and end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from poise.rewards.constraints.measure import bare, outermost, paragraphs, related, sentences, words
from poise.rewards.constraints.table import constraint

_BULLET = re.compile(r"^[ \t]*[*•-][ \t]+\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|(?<!\*)\*[^*\n]+\*(?!\*)")
_FENCED = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```\s*", re.DOTALL | re.IGNORECASE)


@constraint("length_constraints:number_words")
def word_count(response: str, num_words: int, relation: str | None = None) -> bool:
    return related(len(words(response)), relation, num_words)


@constraint("length_constraints:number_sentences")
def sentence_count(response: str, num_sentences: int, relation: str | None = None) -> bool:
    return related(len(sentences(response)), relation, num_sentences)


@constraint("length_constraints:number_paragraphs")
def paragraph_count(response: str, num_paragraphs: int) -> bool:
    """Paragraphs between `***` dividers, as IFEval asks for them."""
    return len(paragraphs(response, r"\s?\*\*\*\s?")) == num_paragraphs


@constraint("length_constraints:nth_paragraph_first_word")
def paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = paragraphs(response)
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    return bare(first_word) in outermost(parts[nth_paragraph - 1], 0)


@constraint("paragraphs:paragraphs")
def two_divided_paragraphs(response: str) -> bool:
    return len(paragraphs(response, r"\s?\*\*\*\s?")) == 2


@constraint("paragraphs:paragraphs2")
def two_paragraphs(response: str) -> bool:
    return len(paragraphs(response, r"\n\n")) == 2


@constraint("detectable_format:number_bullet_lists")
def bullet_count(response: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(response)) == num_bullets


@constraint("detectable_format:number_highlighted_sections")
def highlight_count(response: str, num_highlights: int) -> bool:
    return sum(bool(marked.strip("* \t")) for marked in _HIGHLIGHT.findall(response)) >= num_highlights


@constraint("detectable_format:multiple_sections")
def section_count(response: str, section_spliter: str, num_sections: int) -> bool:
    marks = re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", response)
    return len(marks) >= num_sections


@constraint("detectable_format:json_format")
def is_json(response: str) -> bool:
    """The whole response is JSON, as it is or in one code block."""
    fenced = _FENCED.fullmatch(response.strip())
    try:
        json.loads(fenced.group(1) if fenced else response, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


@constraint("detectable_format:title")
def has_title(response: str) -> bool:
    return any(title.strip(" <>") for title in re.findall(r"<<[^\n<>]+>>", response))


@constraint("detectable_format:constrained_response")
def is_one_of_the_options(response: str) -> bool:
    options = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    return sum(option in response for option in options) == 1


@constraint("detectable_format:square_brackets")
def every_word_in_brackets(response: str) -> bool:
    return all(re.fullmatch(r"\[[^\[\]\s]+\][.,;:!?]*", part) for part in response.split())


@constraint("detectable_format:bigram_wrapping")
def every_two_words_wrapped(response: str) -> bool:
    """Every two words stand in double angular brackets; a last odd word may stand alone in them."""
    pairs = re.findall(r"<<([^<>]*)>>", response)
    outside = re.sub(r"<<[^<>]*>>", "", response)
    if not pairs or words(outside):
        return False
    return all(len(pair.split()) == 2 for pair in pairs[:-1]) and len(pairs[-1].split()) in (1, 2)


@constraint("detectable_format:sentence_hyphens")
def sentences_joined_by_hyphens(response: str) -> bool:
    """Sentences are joined by hyphens, with no white space around them: nowhere does one end before a space."""
    text = response.strip()
    return "-" in text and not re.search(r"[.!?]\s+\S|\s-|-\s", text)


@constraint("detectable_content:number_placeholders")
def placeholder_count(response: str, num_placeholders: int) -> bool:
    return sum(bool(name.strip()) for name in re.findall(r"\[([^\[\]\n]+)\]", response)) >= num_placeholders


@constraint("detectable_content:postscript")
def has_postscript(response: str, postscript_marker: str) -> bool:
    letters = [re.escape(letter) for letter in postscript_marker.strip().rstrip(".").replace(".", "")]
    return (
        re.search(rf"^[^\S\n]*[*_]{{0,3}}{r'[.]?[ ]?'.join(letters)}\b", response, re.IGNORECASE | re.MULTILINE)
        is not None
    )


@constraint("combination:two_responses")
def two_responses(response: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@constraint("startend:end_checker")
def ends_with(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


@constraint("startend:quotation")
def in_quotation_marks(response: str) -> bool:
    text = response.strip()
    return len(text) > 2 and text[0] == '"' and text[-1] == '"' and bool(text[1:-1].strip())


@constraint("change_case:english_capital")
def all_capitals(response: str) -> bool:
    return _letters_are(str.isupper, response)


@constraint("change_case:english_lowercase")
def no_capitals(response: str) -> bool:
    return _letters_are(str.islower, response)


def _letters_are(case: Callable[[str], bool], response: str) -> bool:
    """Whether there are letters and all are of a case; letters of a script without case are of none."""
    letters = [letter for letter in response if letter.isalpha()]
    return bool(letters) and all(map(case, letters))


@constraint("change_case:capital_word_frequency")
def capital_words(response: str, capital_frequency: int, capital_relation: str | None = None) -> bool:
    return related(sum(word.isupper() for word in words(response)), capital_relation, capital_frequency)


@constraint("punctuation:no_comma")
def no_comma(response: str) -> bool:
    return not set(",，、،‚︐﹐､﹑⸲⹁") & set(response)


@constraint("punctuation:punctuation_dot")
def no_dot(response: str) -> bool:
    return not set(".．。․…｡﹒۔") & set(response)


@constraint("punctuation:punctuation_exclamation")
def no_exclamation(response: str) -> bool:
    return not set("!！¡﹗‼⁉❗❕") & set(response)
