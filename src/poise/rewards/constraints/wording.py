"""Constraints on the words of a response: keywords, counts, letters, position, repetition, language."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from poise.rewards.constraints.language import language_of
from poise.rewards.constraints.measure import bare, occurrences, outermost, paragraphs, related, sentences, words
from poise.rewards.constraints.table import constraint


@constraint("keywords:existence")
def has_keywords(response: str, keywords: list[str]) -> bool:
    return all(occurrences(keyword, response) for keyword in keywords)


@constraint("keywords:frequency", "keywords:word_count_different_numbers")
def keyword_count(response: str, keyword: str, frequency: int, relation: str | None = None) -> bool:
    return related(occurrences(keyword, response), relation, frequency)


@constraint("keywords:word_once")
def keyword_once(response: str, keyword: str) -> bool:
    return occurrences(keyword, response) == 1


@constraint("keywords:forbidden_words")
def no_forbidden_words(response: str, forbidden_words: list[str]) -> bool:
    return not any(occurrences(word, response) for word in forbidden_words)


@constraint("keywords:exclude_word_harder")
def no_keyword(response: str, keyword: str) -> bool:
    return occurrences(keyword, response) == 0


@constraint("keywords:letter_frequency", "letters:letter_counting2")
def letter_count(response: str, letter: str, let_frequency: int, let_relation: str | None = None) -> bool:
    return related(response.casefold().count(letter.casefold()), let_relation, let_frequency)


@constraint("letters:letter_counting")
def all_letters(response: str, N: int, relation: str | None = None) -> bool:
    return related(sum(letter.isalpha() for letter in response), relation, N)


@constraint("keywords:palindrome")
def has_palindrome(response: str) -> bool:
    return any(len(word) > 2 and word.casefold() == word.casefold()[::-1] for word in words(response))


@constraint("keywords:keyword_specific_position")
def keyword_position(response: str, keyword: str, n: int, m: int) -> bool:
    """The keyword is the m-th word of the n-th sentence."""
    said = sentences(response)
    if not 1 <= n <= len(said) or not 1 <= m <= len(words(said[n - 1])):
        return False
    return bare(words(said[n - 1])[m - 1]) == bare(keyword)


@constraint("keywords:start_end")
def same_first_and_last_word(response: str) -> bool:
    said = words(response)
    return len(said) > 1 and said[0].casefold() == said[-1].casefold()


@constraint("keywords:no_adjacent_consecutive")
def no_neighbours_in_the_alphabet(response: str) -> bool:
    """No word starts with the letter that follows the first letter of the word before it."""
    initials = [ord(word[0].casefold()[0]) for word in words(response)]
    return all(second - first != 1 for first, second in pairwise(initials))


@constraint("count:lowercase_counting")
def few_lowercase_words(response: str, N: int) -> bool:
    return sum(word.islower() for word in words(response)) <= N


@constraint("count:count_unique")
def all_words_differ(response: str) -> bool:
    return max(Counter(word.casefold() for word in words(response)).values(), default=0) == 1


@constraint("count:count_increment_word")
def once_and_twice(response: str, keyword1: str, keyword2: str) -> bool:
    return occurrences(keyword1, response) == 1 and occurrences(keyword2, response) == 2


@constraint("count:counting_composition")
def composed(response: str, n_sent: int, n_words: int) -> bool:
    """Three paragraphs between `***` lines, each of n_sent sentences of n_words words."""
    parts = paragraphs(response, r"\*\*\*")
    return len(parts) == 3 and all(
        len(sentences(part)) == n_sent and all(len(words(each)) == n_words for each in sentences(part))
        for part in parts
    )


@constraint("first_word:first_word_answer")
def first_word(response: str, first_word: str) -> bool:
    return bare(first_word) in outermost(response, 0)


@constraint("first_word:first_word_sent")
def first_word_of_sentences(response: str, first_word: str) -> bool:
    return all(bare(first_word) in outermost(each, 0) for each in sentences(response))


@constraint("last_word:last_word_answer")
def last_word(response: str, last_word: str) -> bool:
    return bare(last_word) in outermost(response, -1)


@constraint("last_word:last_word_sent")
def last_word_of_sentences(response: str, last_word: str) -> bool:
    return all(bare(last_word) in outermost(each, -1) for each in sentences(response))


@constraint("copy:copy", "copy:copying_simple", "combination:repeat_prompt")
def starts_with_the_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


@constraint("copy:copying_multiple")
def repeats_the_prompt(response: str, prompt_to_repeat: str, N: int) -> bool:
    """The prompt N times, with six asterisks between."""
    parts = [part.strip().casefold() for part in response.split("******")]
    return len(parts) == N and all(part == prompt_to_repeat.strip().casefold() for part in parts)


@constraint("new:copy_span_idx")
def copies_a_span(response: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return prompt_to_repeat[n_start:n_end].strip().casefold() in response.casefold()


@constraint("copy:repeat_phrase")
def repeats_a_phrase(response: str, phrase: str, small_n: int) -> bool:
    """The phrase small_n times, its first and last word kept, exactly one word in between replaced each time."""
    pattern = [word.casefold() for word in words(phrase)]
    said = [word.casefold() for word in words(response)]
    if len(pattern) < 3:
        return False
    spans = [said[start : start + len(pattern)] for start in range(len(said) - len(pattern) + 1)]
    framed = [span for span in spans if (span[0], span[-1]) == (pattern[0], pattern[-1])]
    return len(framed) == small_n and all(
        sum(one != other for one, other in zip(span, pattern, strict=True)) == 1 for span in framed
    )


@constraint("language:response_language")
def in_language(response: str, language: str) -> bool:
    return language_of(response) == language.lower().split("-")[0]
