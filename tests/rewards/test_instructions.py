"""Each constraint kept and broken by a literal response; how they compose; what cannot be checked is a failure."""

import json
import time

import pytest

from poise.rewards import resolve
from poise.rewards.constraints import CONSTRAINTS, Constraint, UnknownConstraintError, holds, read_constraints
from poise.rewards.constraints.language import language_of
from poise.rewards.constraints.measure import paragraphs, sentences, words

CASES = [
    ("keywords:existence", {"keywords": ["sun", "sea"]}, "The sun, the Sea.", "The sunshine and the sea."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, go, go!", "Go, goes."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Go!", "Go, go."),
    ("keywords:word_count_different_numbers", {"keyword": "a", "frequency": 2}, "a b a", "a a a"),
    ("keywords:word_once", {"keyword": "fox"}, "A fox.", "A fox and a fox."),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "Badly done.", "A bad thing."),
    ("keywords:exclude_word_harder", {"keyword": "bad"}, "Good.", "bad"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eleven e", "eve"),
    ("letters:letter_counting2", {"letter": "z", "let_frequency": 1, "let_relation": "less than"}, "none", "zoo"),
    ("letters:letter_counting", {"N": 5, "relation": "at least"}, "abcde 1", "abc 12"),
    ("keywords:palindrome", {}, "See the kayak.", "See the boat, a I."),
    ("keywords:keyword_specific_position", {"keyword": "two", "n": 2, "m": 3}, "One. It is two.", "It is two. No."),
    ("keywords:start_end", {}, "Yes, I say yes.", "Yes, I say no."),
    ("keywords:no_adjacent_consecutive", {}, "cat sat mat", "apple boat"),
    ("count:lowercase_counting", {"N": 1}, "UPPER lower", "two words"),
    ("count:count_unique", {}, "each word differs", "the cat saw The dog"),
    ("count:count_increment_word", {"keyword1": "a", "keyword2": "b"}, "a b b", "a b"),
    ("count:counting_composition", {"n_sent": 1, "n_words": 2}, "Go on.***Be good.***Sit down.", "Go on.***Be.***Sit."),
    ("first_word:first_word_answer", {"first_word": "Well"}, "Well, yes.", "Oh well."),
    ("first_word:first_word_sent", {"first_word": "we"}, "We go. We see!", "We go. They see."),
    ("first_word:first_word_answer", {"first_word": "well-being"}, "Well-being first.", "Wellness."),
    ("first_word:first_word_sent", {"first_word": "Well-being"}, "*Well-being* is. Well-being!", "Well-being is. Yes."),
    ("last_word:last_word_answer", {"last_word": "well-being"}, "It is “well-being”.", "It is well-known."),
    ("last_word:last_word_sent", {"last_word": "being"}, "It is well-being. A being.", "It is. A being."),
    ("last_word:last_word_answer", {"last_word": "end"}, "This is the end.", "The end is near."),
    ("last_word:last_word_sent", {"last_word": "go"}, "I go. They go!", "I go. They stay."),
    ("copy:copy", {"prompt_to_repeat": "Say hi"}, "say hi\nhi", "hi"),
    ("copy:copying_multiple", {"prompt_to_repeat": "Hi", "N": 2}, "Hi\n******\nHi", "Hi\n******\nHi\n******\nHi"),
    ("new:copy_span_idx", {"prompt_to_repeat": "abcdef", "n_start": 1, "n_end": 4}, "here: bcd", "abc def"),
    (
        "copy:repeat_phrase",
        {"phrase": "we sell red cars", "small_n": 2},
        "we buy red cars, we sell old cars",
        "we buy old cars",
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why?"}, "Why? Because.", "Because."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein sehr kurzer Satz, und er ist gut.",
        "This is the answer.",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one, two"),
    ("length_constraints:number_words", {"num_words": "2"}, "two words", "one"),
    ("length_constraints:number_words", {"num_words": 2.0}, "two words", "one"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One only.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen more.",
        "Then.\n\nFirst.",
    ),
    ("paragraphs:paragraphs", {}, "one\n***\ntwo", "one two"),
    ("paragraphs:paragraphs2", {}, "one\n\ntwo", "one\ntwo"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\nx\nPart 2\ny",
        "Part 1 x",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<Of mice>>\ntext", "<< >>\ntext"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "My answer is yes. My answer is no."),
    ("detectable_format:square_brackets", {}, "[all] [words], [here].", "[all] words"),
    ("detectable_format:bigram_wrapping", {}, "<<I am>> <<at home>> <<now>>", "<<I am at>> <<home>>"),
    ("detectable_format:sentence_hyphens", {}, "I came.-I saw.-I won.", "I came. I saw-I won."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name] of [town]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text.\nP.S. more", "Text with P.S. inside"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text.\np.p.s more", "Text.\nP.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text.\n **P.S.** more", "Text.\n****P.S. more"),
    ("startend:end_checker", {"end_phrase": "That is all."}, "Yes. That is all.", "That is all. Really."),
    ("startend:quotation", {}, '"Quoted."', '"Quoted." Not.'),
    ("change_case:english_capital", {}, "LOUD, 3!", "LOUd"),
    ("change_case:english_lowercase", {}, "quiet, 3.", "Quiet"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "NO and NO", "NO"),
    ("punctuation:no_comma", {}, "No such mark.", "Yes, one."),
    ("punctuation:punctuation_dot", {}, "none here!", "One."),
    ("punctuation:punctuation_exclamation", {}, "none here.", "One!"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "kept", "broken"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_constraint(name, arguments, kept, broken):
    assert holds(Constraint(name, arguments), kept)
    assert not holds(Constraint(name, arguments), broken)
    for wordless in (" \n", "!", "...", "_"):
        assert not holds(Constraint(name, arguments), wordless)


def test_every_constraint_has_a_case():
    # Two ids of copying mean the same check as others above.
    assert set(CONSTRAINTS) - {case[0] for case in CASES} == {"copy:copying_simple"}


VERIFY = resolve("instructions")
BOTH = json.dumps([{"id": "punctuation:no_comma"}, {"id": "keywords:existence", "kwargs": {"keywords": ["tea"]}}])


def test_all_must_be_kept_and_partial_gives_the_share():
    assert VERIFY("Some tea.", {"answer": BOTH}).score == 1.0
    verdict = VERIFY("Some tea, please.", {"answer": BOTH})
    assert (verdict.score, verdict.note) == (0.0, "broken: punctuation:no_comma")
    assert resolve("instructions-partial")("Some tea, please.", {"answer": BOTH}).score == 0.5


def test_only_what_the_response_shows_is_checked():
    assert VERIFY("<think>well, tea, or</think>Tea it is.", {"answer": BOTH}).score == 1.0
    assert VERIFY("<think>tea it is", {"answer": BOTH}).score == 0.0
    assert VERIFY("<answer>Tea</answer>", {"answer": BOTH}).score == 1.0
    assert VERIFY("", {"answer": BOTH}).score == 0.0


EVASIONS = [
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, ["b\u200bad", "b\u00adad", "ｂａｄ"]),
    ("punctuation:no_comma", {}, ["a‚ b", "a﹐ b", "a､ b"]),
    ("punctuation:punctuation_dot", {}, ["a․ b", "a… b", "a｡ b"]),
    ("punctuation:punctuation_exclamation", {}, ["a‼ b", "a﹗ b", "¡a"]),
    ("change_case:english_capital", {}, ["你好", "HELLO 世界", "ª", "123"]),
    ("change_case:english_lowercase", {}, ["你好", "hello 世界", "123"]),
    ("startend:quotation", {}, ['""', '" "', '"\u200b"']),
    ("detectable_format:json_format", {}, ["NaN", "[Infinity]"]),
    ("detectable_format:title", {}, ["<<\u200b>> text"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, ["*   *", "**  **"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, ["[ ]", "[\u200b]"]),
    ("length_constraints:number_words", {"num_words": 0}, ["\u200b", "\u2800", "\u3164"]),
]


@pytest.mark.parametrize(("name", "arguments", "responses"), EVASIONS, ids=[name for name, *_ in EVASIONS])
def test_look_alikes_and_invisible_characters_keep_nothing(name, arguments, responses):
    for response in responses:
        assert VERIFY(response, {"answer": json.dumps([{"id": name, "kwargs": arguments}])}).score == 0.0, response


def test_a_keyword_with_a_joiner_is_found():
    wanted = [{"id": "keywords:existence", "kwargs": {"keywords": ["می\u200cرود"]}}]
    assert VERIFY("او می\u200cرود.", {"answer": json.dumps(wanted)}).score == 1.0


def test_published_forms_are_read():
    literal = "[{'instruction_id': ['punctuation:no_comma', 'keywords:word_once'], 'kwargs': [None, {'keyword': 'x'}]}]"
    assert [each.id for each in read_constraints(literal)] == ["punctuation:no_comma", "keywords:word_once"]
    ifeval = json.dumps({"instruction_id_list": ["startend:quotation"], "kwargs": [{"num_words": None}]})
    assert holds(read_constraints(ifeval)[0], '"x"')
    nested = json.dumps([json.dumps({"instruction_id": ["startend:quotation"], "kwargs": [None]})])
    assert read_constraints(nested) == [Constraint("startend:quotation")]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('[{"id": "no:such"}]', "no constraint is called 'no:such'"),
        ('[{"id": "keywords:frequency", "kwargs": {"keyword": "a"}}]', "lacks frequency"),
        ("not a list", "cannot be read"),
        ("__import__('os').system('true')", "cannot be read"),
        ("[]", "there are no constraints"),
        ("[3]", "no known form"),
        (
            '[{"id": "length_constraints:number_words", "kwargs": {"num_words": 2, "relation": "roughly"}}]',
            "no relation is called 'roughly'",
        ),
        (
            '[{"id": "length_constraints:number_words", "kwargs": {"num_words": "many", "relation": "at least"}}]',
            "unreadable",
        ),
    ],
)
def test_what_cannot_be_checked_is_a_failure(answer, said):
    verdict = VERIFY("some text", {"answer": answer})
    assert verdict.score is None
    assert said in verdict.failure


def test_unknown_constraints_raise_where_they_are_asked():
    with pytest.raises(UnknownConstraintError, match="no:such"):
        holds(Constraint("no:such"), "text")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "I have no idea what you are talking about, but it is fine."),
        ("es", "No sé de qué me estás hablando, pero está muy bien para los dos."),
        ("pt", "Eu não sei do que você está falando, mas isso é muito bom para os dois."),
        ("fr", "Je ne sais pas de quoi vous parlez, mais ce n'est pas grave pour nous."),
        ("it", "Non so di che cosa stai parlando, ma è molto bello per la nostra casa."),
        ("ru", "Я не знаю, о чём вы говорите, но это было хорошо."),
        ("uk", "Я не знаю, про що ви говорите, але це було її рішення."),
        ("hi", "मुझे नहीं पता कि आप क्या कह रहे हैं, लेकिन यह ठीक है।"),
        ("ja", "何を言っているのか分かりませんが、大丈夫です。"),
        ("zh", "我不知道你在说什么，但是没关系。"),
        ("ko", "무슨 말을 하는지 모르겠지만 괜찮아요."),
        ("ar", "لا أعرف ما الذي تتحدث عنه ولكن لا بأس."),
        ("fa", "نمی‌دانم درباره چه چیزی صحبت می‌کنید، اما خوب است."),
        ("th", "ฉันไม่รู้ว่าคุณกำลังพูดถึงอะไร"),
        ("bn", "আমি জানি না আপনি কী বলছেন।"),
        ("vi", "Tôi không biết bạn đang nói về cái gì, nhưng mà điều này là rất tốt."),
        ("sw", "Sijui unazungumza nini, lakini hii ni nzuri sana kwa watu wa hapa."),
        (None, "1234 5678"),
        (None, "xyzzy plugh"),
    ],
)
def test_languages(language, text):
    assert language_of(text) == language


def test_measures():
    assert words("Don't stop—now; it's 3.5!") == ["Don't", "stop", "now", "it's", "3", "5"]
    assert sentences('He said "Go." Then left.\nNew line') == ['He said "Go.', "Then left.", "New line"]
    assert paragraphs("a\n\n\nb\n \nc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "flood",
    [
        "*" * 200_000,
        "[" * 200_000,
        "<<" * 100_000,
        "a " * 100_000,
        "```\n" * 50_000,
        "." * 200_000,
        "\n" * 200_000 + "x",
        "```" + "\n" * 200_000 + "x",
    ],
)
def test_floods_are_checked_in_bounded_time(flood):
    everything = [Constraint(name, arguments) for name, arguments, _, _ in CASES]
    start = time.process_time()
    for wanted in everything:
        holds(wanted, flood)
    assert time.process_time() - start < 20
