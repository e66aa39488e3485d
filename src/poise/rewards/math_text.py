r"""Mathematical answers as text, before anything is computed: one spelling, plain numbers, nonsense.

Used by the math reward. Nothing here evaluates an expression, so nothing here can hang.
"""

from __future__ import annotations

import re
from fractions import Fraction

# The same characters typed otherwise. Look-alikes of other scripts are not in this table and stay what they are.
_SYMBOLS = str.maketrans(
    {chr(0xFF10 + digit): str(digit) for digit in range(10)}
    | dict.fromkeys("−–﹣－", "-")
    | dict.fromkeys("\u00a0\u202f\u2009\u2007", " ")
    | {"，": ",", "．": ".", "％": "%", "（": "(", "）": ")", "：": ":"}
    | {"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "÷": "/", "°": "^\\circ "}
    | {"≤": "\\le ", "≥": "\\ge ", "∪": "\\cup ", "±": "\\pm ", "²": "^2", "³": "^3", "½": "\\frac{1}{2}"}
)
_GROUPS = re.compile(r"[0-9]{1,3}(?:(?:,|\{,\}|\\[,;: ]|\s)[0-9]{3})+(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_QUOTIENT = re.compile(
    r"([-+]?)(?:\\[dtc]?frac\s*\{([-+]?[0-9]+)\}\s*\{([0-9]+)\}|\\[dtc]?frac([0-9])([0-9])|([0-9]+)\s*/\s*([0-9]+))"
)
_UNIT = re.compile(r"(?:\\?\$\s*)?([-+]?[0-9.,/]+)\s*((?:[A-Za-z]{2,}\.?\s*){1,4})")
# Words that change a number instead of measuring it.
_NOT_UNITS = re.compile(
    r"hundred|thousand|[mbtr]+illion|dozens?|half|halves|thirds?|quarters?|percent|per|pi|squared|cubed|factorial|times"
    r"|plus|minus|over|and|or|not|to|than|choose|mod|sqrt|log|ln|sin|cos|tan|exp|root",
    re.IGNORECASE,
)
_WORKED_OUT = re.compile(
    r"[0-9)}]\s*(?:[+*]|-|\\cdot|\\times(?!\s*10\s*\^)|\\div)\s*[0-9({\\]"
    r"|\)\s*\(|!|\\[lr](?:ceil|floor)|\\(?:sum|prod|int|lim|binom|log|ln|sin|cos|tan|exp|gcd|max|min|bmod|pmod)(?![A-Za-z])"
)
# Words in \text{} that take back or widen a number, which math-verify does not read.
_HEDGE = re.compile(
    r"\b(?:or|and|not|nor|at least|at most|about|around|between|except|unless|if|else|maybe)\b|(?<![A-Za-z])[0-9]",
    re.IGNORECASE,
)
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
_UNIT_AT_END = re.compile(r"[0-9})]\s*([A-Za-z]+)\.?$")
# Another letter beside the first one: `A, B` and `(A) or (B)` are two choices, `(B) 12 C` and `A because B` are one.
_SECOND_CHOICE = re.compile(r"(?:\b(?:or|and)\b|[,;/&|(+])[^A-Za-z]*([A-J])(?![A-Za-z])(?!\s+[a-z])")
_CHOICE = re.compile(r"\\?(?:text|textbf|mathrm|mathbf)?\{?\s*\(?([A-J])\)?\s*\}?(?:[.):,\s].*)?", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}]*)\}")
_DRESSED = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
# A power of a power, an exponent of four digits, a factorial of three, a factorial of a factorial.
_STEEP = re.compile(r"\^\s*\{?\s*\(?-?(?:[0-9]+\s*\^|[0-9]{4,})|[0-9]{3,}\s*\)?\s*!|!\s*\)?\s*!")


def canonical(answer: str) -> str:
    r"""One spelling of an answer: ASCII symbols, no outer dollars, spacing or full stop, `**` as a power.

    >>> canonical(" $1\\,234{,}567$. ")
    '1234567'
    >>> canonical("1.5e3")
    '1500'
    >>> canonical("−５ ≤ x")
    '-5 \\le x'
    """
    text = answer.translate(_SYMBOLS).replace("**", "^").replace("\\left", "").replace("\\right", "")
    text = " ".join(text.replace("\\!", "").replace("\\quad", " ").split())
    text = text.strip(" $").removesuffix("\\\\").rstrip(" .;").removeprefix("\\$").strip(" $")
    dressed = _DRESSED.fullmatch(text)
    if dressed and _DECIMAL.fullmatch(dressed.group(1).strip(" ()")):
        text = dressed.group(1).strip(" ()")
    if _GROUPS.fullmatch(text.lstrip("+-")):
        text = re.sub(r"(?<=[0-9])(?:,|\{,\}|\\[,;: ]|\s)(?=[0-9]{3})", "", text)
    return _scientific(text)


def plain_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal or simple fraction in canonical spelling; None for anything else.

    >>> plain_number("-0.50"), plain_number("\\frac{3}{6}"), plain_number("x")
    (Fraction(-1, 2), Fraction(1, 2), None)
    """
    if len(text) > 200:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip(".") if text[-1] == "." else text)
    match = _QUOTIENT.fullmatch(text)
    if match is None:
        return None
    top, bottom = (int(part) for part in match.groups()[1:] if part is not None)
    return None if bottom == 0 else Fraction(-top if match.group(1) == "-" else top, bottom)


def without_unit(text: str) -> str:
    """A number without the words that say what it counts; any other text as it is.

    >>> without_unit("18 dollars"), without_unit("5 million")
    ('18', '5 million')
    """
    match = _UNIT.fullmatch(text)
    if match is None or any(_NOT_UNITS.fullmatch(word) for word in match.group(2).replace(".", " ").split()):
        return text
    return canonical(match.group(1))


def choice(text: str) -> str | None:
    r"""The letter of a multiple-choice answer, however it is dressed.

    >>> choice("\\textbf{(B)} 12"), choice("B."), choice("Both")
    ('B', 'B', None)
    """
    bare = _DRESSED.sub(r" \1 ", text).strip()
    match = _CHOICE.fullmatch(bare)
    if match is None or any(other != match.group(1) for other in _SECOND_CHOICE.findall(bare, match.end(1))):
        return None
    return match.group(1)


def words(text: str) -> str:
    """An answer in words, for comparison as text."""
    return " ".join(_TEXT.sub(r" \1 ", text).casefold().split())


def is_worded(text: str) -> bool:
    """Whether an answer is a word or a sentence, which must not be read as a product of one-letter variables."""
    bare = _TEXT.sub(r" \1 ", text)
    return re.fullmatch(r"[^\W\d_]{3,}(?:[\s,'-]+[^\W\d_]+)*", bare.strip()) is not None


def hedges(text: str, number: Fraction) -> bool:
    r"""Whether an answer says a number and something else: `3 \text{ or more}`, `4 = 3`.

    >>> [hedges(text, Fraction(3)) for text in ("3 \\text{ (or 4)}", "4 = 3", "3 \\text{ cm}^2", "x = 3")]
    [True, True, False, False]
    """
    if any(_HEDGE.search(said) for said in _TEXT.findall(text) if plain_number(said.strip()) is None):
        return True
    sides = [plain_number(side.strip()) for side in text.split("=")[:-1]]
    return any(side is not None and side != number for side in sides)


def other_unit(truth: str, said: str) -> bool:
    r"""Whether both name a unit of length, mass, time, volume or money, and not the same one.

    >>> other_unit("10 cm", "10\\text{ m}"), other_unit("10 cm", "10 centimeters"), other_unit("10 cm", "10")
    (True, False, False)
    """
    found = [_UNIT_AT_END.search(_TEXT.sub(r" \1 ", text).strip()) for text in (truth, said)]
    units = [_UNITS.get(match.group(1).casefold()) if match else None for match in found]
    return None not in units and units[0] != units[1]


def still_to_work_out(text: str) -> bool:
    r"""Whether an answer leaves arithmetic to the reader, which restating the problem would do as well.

    >>> [still_to_work_out(text) for text in ("12+30", "2 \\cdot 21", "\\binom{9}{2}")]
    [True, True, True]
    >>> [still_to_work_out(text) for text in ("x = -42", "1.5\\times 10^3", "2^{10}")]
    [False, False, False]
    """
    return _WORKED_OUT.search(text) is not None


def is_monstrous(text: str, truth: str) -> bool:
    """Whether an answer is far longer, deeper or steeper than its truth: it is wrong, and is not computed."""
    if len(text) > max(1000, 4 * len(truth)) or _depth(text) > max(40, _depth(truth)):
        return True
    return _STEEP.search(text) is not None and _STEEP.search(truth) is None


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in "{([") - (letter in "})]")
        deepest = max(deepest, depth)
    return deepest


def _scientific(text: str) -> str:
    match = _SCIENTIFIC.fullmatch(text)
    if match is None:
        return text
    value = Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
