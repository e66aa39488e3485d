r"""What stands around the value of a mathematical answer: names, units, words, and whether they change it.

Used by the math reward, between the spelling (`math_text`) and the computation. Nothing here evaluates an expression.
"""

from __future__ import annotations

import re
from fractions import Fraction

from poise.rewards.math_text import LONGEST, canonical, plain_number

_RELATION = re.compile(r"=|\\approx(?![A-Za-z])|\\equiv(?![A-Za-z])|≈|≡")
_CURRENCY = re.compile(r"(?:USD|EUR|GBP|[€£])\s*(?=[-+0-9.\\])")
_UNIT = r"(?:[A-Za-z]+\.?|[€£])(?:\s*\^\{?-?[1-3]\}?)?"
_MEASURE = re.compile(
    rf"(?<![A-Za-z\\])\(?\s*(?:/\s*(?=[A-Za-z]{{3}}))?({_UNIT}(?:(?:\s*/\s*|\s+){_UNIT}){{0,5}})\s*\)?$"
)
# Words that change a number or take it back instead of measuring it.
_NOT_UNITS = re.compile(
    r"\b(?:(?:hundred|thousand|[mbtrquad]+illion|lakh|crore|dozen|ten|half|halve|third|quarter|percent|percentage"
    r"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|[mb]illion)th)s?|zero|one|two|three|four|five"
    r"|six|seven|eight|nine|eleven|twelve|[a-z]+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|gross|point|pi|squared"
    r"|cubed|factorial|times|plus|minus|negative|over|under|above|below|beyond|within|mod|modulo|sqrt|log|ln|sin|cos|tan"
    r"|exp|root|choose|and|or|nor|not|no|non|to|than|through|until|between|either|neither|both|at|about|around|approx"
    r"|approximately|roughly|nearly|almost|maybe|perhaps|possibly|probably|but|except|unless|if|else|instead|rather"
    r"|otherwise|also|then|so|wrong|incorrect|false|never|is|isn|was|wasn|are|be|it|up)\b|\bper\s*(?:cent|mille?)\b",
    re.IGNORECASE,
)
# What may remain of a number when its name and its unit are gone, for math-verify to work out.
_EXPRESSION = re.compile(r"(?:[-+0-9./:^{}()\[\]| %]|\\(?:[{}%]|(?:[dtc]?frac|sqrt|pi|times|cdot|circ)(?![A-Za-z])))+")
_ENDS_A_NUMBER = re.compile(r"(?:[0-9)}%.]|\\circ|\\pi)\s*$")
_ONE_LETTER = re.compile(r"(?<![A-Za-z])([A-Za-z])(?![A-Za-z.])")
_ASIDE = re.compile(r"\([^()]*\)")
_SEVERAL = re.compile(r"[,;&<>]|\\\\|\\(?:neq?|[lg](?:eq?|t))(?![A-Za-z])|[0-9]\s+[A-Za-z]")
# Units that say the same; two of different lines do not.
_SAME_UNITS = """cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
m meter meters metre metres
km kilometer kilometers kilometre kilometres
in inch inches
ft foot feet
yd yard yards
mi mile miles
g gram grams
kg kilogram kilograms
mg milligram milligrams
lb lbs pound pounds
oz ounce ounces
s sec secs second seconds
min mins minute minutes
h hr hrs hour hours
day days
week weeks
month months
year years
ml milliliter milliliters millilitre millilitres
l liter liters litre litres
dollar dollars
cent cents"""
_UNITS = {word: number for number, line in enumerate(_SAME_UNITS.splitlines()) for word in line.split()}
_UNIT_AT_END = re.compile(r"[0-9})]\s*([A-Za-z]+)\.?(?:\s*\^\{?-?[1-3]\}?)?$")
_WORD = re.compile(r"([\s/]?)(?<![A-Za-z\\])([A-Za-z]+)")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm)|mbox)\s*\{([^{}]*)\}")
_TEXT_AT_END = re.compile(rf"{_TEXT.pattern}\s*(?:\^\{{?-?[1-3]\}}?)?$")
_TEXT_INSIDE = re.compile(rf"[^\s=]\s*{_TEXT.pattern}")
_LINK = re.compile(r",?\s*\\(?:text|mbox)\s*\{\s*(?:and|or)\s*\}")
_VARIABLE = re.compile(r"\\math(?:bf|it|rm)\s*\{([A-Za-z])\}")
# A time of the day, as `words` spells it; 5am without a space is a product.
_TIME = re.compile(r"([0-9]{1,2})(?::([0-9]{2})\s*|\s+|$)(?:([ap])\.?\s?m\.?)?")
_BASE = re.compile(r"[0-9]_\s*\{?([0-9]+)\}?$")
# Commands and letters of an answer; those that every value may have.
_NAMES = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_ARITHMETIC = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac", "\\sqrt", "\\pi", "\\times", "\\cdot", "\\div"}
# To so many decimals math-verify compares what is not exact.
DECIMALS = 6


def number_said(text: str) -> str | None:
    r"""What an answer to a numerical question says, without its name and unit; None if it says more than one number.

    >>> [number_said(text) for text in ("x = 18\\text{ cm}^2", "18 miles per hour", "m + n = 9 + 9 = 18", "2^{10}")]
    ['18', '18', '18', '2^{10}']
    >>> [number_said(text) for text in ("5 million", "3 \\text{ or more}", "17\\text{ cm}, 18", "4 = 3")]
    [None, None, None, None]
    """
    if len(text) > LONGEST:
        return None
    exact, approximately, rounded = text.rpartition("\\approx")
    value = number_said(exact) if approximately else None
    if value is not None and _rounds(value, number_said(rounded) or ""):
        return value
    *before, said = (canonical(_unwrapped(side)) for side in _RELATION.split(text))
    said = _CURRENCY.sub("", said, count=1)
    measure = _MEASURE.search(said)
    if measure and _is_unit(measure.group(1)) and _ENDS_A_NUMBER.search(said[: measure.start()]):
        said = canonical(said[: measure.start()])
    if not _EXPRESSION.fullmatch(said) or re.search(r"[0-9]\s+[0-9]", said):
        return None
    return said if all(_leads_to(said, side) for side in before) else None


def value_said(said: str, truth: str) -> str | None:
    r"""What of an answer is left to math-verify; None if what it would drop there changes the answer.

    It drops words at the end, all that stands between words and a last brace, and dots.

    >>> [value_said(text, "x, y") for text in ("x\\text{ and }y", "x, y\\text{ cm}^2", "x, y\\text{ or more}")]
    ['x,y', 'x, y', None]
    """
    text = _LINK.sub(",", _VARIABLE.sub(r"\1", said))
    words = _TEXT_AT_END.search(text)
    if words and _is_unit(words[1]) and not re.search(r"[0-9]", words[1]):
        text = text[: words.start()].rstrip()
    dropped = _TEXT_INSIDE.search(text) and not _TEXT.search(truth)
    return None if dropped or ("\\ldots" in _RELATION.split(text)[-1] and "\\ldots" not in truth) else text


def sides_said(said: str, truth: str) -> list[tuple[str, int]]:
    r"""What the sides of a chain of equations say beside the last exact one, each with the decimals that it is true to.

    A side with letters or commands that the truth lacks is a name or a formula, and says nothing.

    >>> sides_said("A = 2\\pi \\cdot 2 = 4\\pi \\approx 12.6", "4\\pi"), sides_said("f(x) = x+2 = x+1", "x+1")
    ([('2\\pi \\cdot 2', 6), ('4\\pi', 6), ('12.6', 1)], [('x+2', 6)])
    """
    sides, asked = _RELATION.split(said), _RELATION.split(truth)
    if len(sides) <= len(asked):
        return []
    known = _ARITHMETIC.union(_NAMES.findall(asked[-1]))
    *values, last = (number_said(side) or value_said(side.strip(), truth) or "" for side in sides)
    found = [(side, DECIMALS) for side in values if re.search(r"\w", side) and known.issuperset(_NAMES.findall(side))]
    if said.rfind("\\approx") > said.rfind("=") and plain_number(last) is not None:
        whole, _, decimals = last.partition(".")
        found.append((f"{whole}.{decimals or 0}", len(decimals)))
    return found


def number_asked(truth: str) -> str | None:
    r"""The number that a ground truth is, without its unit; None if it is none, or has letters that may be variables.

    >>> [number_asked(truth) for truth in ("10 cm", "18 eggs", "€18", "15\\text{ cm}^2")]
    ['10', '18', '18', '15']
    >>> [number_asked(truth) for truth in ("2ab", "x = 5", "\\alpha = 5", "5 million")]
    [None, None, None, None]
    """
    if _RELATION.search(truth):
        return None
    named = _WORD.findall(" " + _TEXT.sub(r" \1 ", truth))
    measured = all(word.casefold() in _UNITS or (apart and len(word) > 2) for apart, word in named)
    return number_said(truth) if measured else None


def words(text: str) -> str:
    """An answer in words, for comparison as text."""
    return " ".join(_TEXT.sub(r" \1 ", text).casefold().split())


def is_worded(text: str) -> bool:
    """Whether an answer is a word or a sentence, which must not be read as a product of one-letter variables."""
    bare = _TEXT.sub(r" \1 ", text)
    return re.fullmatch(r"[^\W\d_]{3,}(?:[\s,'-]+[^\W\d_]+)*", bare.strip()) is not None


def same_time(truth: str, said: str) -> bool | None:
    r"""Whether two times of the day are the same; None if neither says whether it is before noon or after.

    >>> same_time("10:30 a.m.", "\\text{10:30 AM}"), same_time("10:30", "11:30 pm"), same_time("10:30", "10:30")
    (True, False, None)
    """
    times = [_TIME.fullmatch(words(text)) for text in (truth, said)]
    halves = {time[3] for time in times if time and time[3]}
    if not halves:
        return None
    return None not in times and len(halves) == 1 and len({(int(t[1]), int(t[2] or 0)) for t in times if t}) == 1


def unit_of(text: str) -> int | None:
    r"""The unit of length, mass, time, volume or money at an answer's end, as a number: spellings of one share it.

    >>> unit_of("10\\text{ cm}") == unit_of("10 centimeters"), unit_of("10 cm") == unit_of("10 m"), unit_of("10 eggs")
    (True, False, None)
    """
    match = _UNIT_AT_END.search(_TEXT.sub(r" \1 ", text).strip())
    return _UNITS.get(match.group(1).casefold()) if match else None


def other_unit(truth: str, said: str) -> bool:
    """Whether both name a unit or the base of their digits, and not the same one."""
    units = unit_of(truth), unit_of(said)
    bases = _BASE.search(truth), _BASE.search(said)
    if None not in units and units[0] != units[1]:
        return True
    return bases[0] is not None and bases[1] is not None and int(bases[0][1]) != int(bases[1][1])


def other_things(truth: str, said: str) -> bool:
    """Whether two numbers count different things: each has a noun that the other lacks, as `5 girls` and `5 boys`."""
    asked, counted = _things(truth), _things(said)
    return bool(asked - counted) and bool(counted - asked)


def _unwrapped(text: str) -> str:
    r"""An answer with the words of `\text{}` among the others; a single letter there is no variable: it is doubled."""
    return _TEXT.sub(lambda said: " " + _ONE_LETTER.sub(r"\1\1", said[1]) + " ", text)


def _is_unit(said: str) -> bool:
    """Whether words behind a number measure it. A single letter is a variable, unless it has a dot or is a unit."""
    return _NOT_UNITS.search(said) is None and all(letter in _UNITS for letter in _ONE_LETTER.findall(said))


def _things(text: str) -> set[str]:
    """The words behind a number but for the units that are known, without an s at their end."""
    measure = _MEASURE.search(_unwrapped(text).strip())
    nouns = re.findall(r"[a-z]{3,}", measure[1].casefold()) if measure else []
    return {noun.rstrip("s") for noun in nouns if noun not in _UNITS and noun not in ("per", "the")}


def _rounds(exact: str, rounded: str) -> bool:
    """Whether the second number is the first to its last decimal place; of a root or \\pi, any decimal may be."""
    number, short = plain_number(exact), plain_number(rounded)
    if short is None or number is None or "." not in rounded:
        return short is not None and number is None and re.search(r"\\(?:sqrt|pi)", exact) is not None
    return abs(number - short) * 10 ** len(rounded.rsplit(".", 1)[1]) <= Fraction(1, 2)


def _leads_to(said: str, before: str) -> bool:
    """Whether the text before an equals sign names or works out what is said behind it, and no other answer."""
    number, outside = plain_number(before), _ASIDE.sub("", before)
    if number is not None:
        return number == plain_number(said)
    return _SEVERAL.search(outside) is None and re.search(r"\b(?:or|and|not)\b", outside) is None
