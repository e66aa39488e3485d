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
    | {"~": " ", "√": "\\surd "}
    | {"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "÷": "/", "°": "^\\circ "}
    | {"≤": "\\le ", "≥": "\\ge ", "∪": "\\cup ", "±": "\\pm ", "²": "^2", "³": "^3", "½": "\\frac{1}{2}"}
)
_SEPARATOR = re.compile(r"(?<=[0-9])\s*(?:\{,\}|\\text\{,\})\s*(?=[0-9]{3}(?![0-9]))")
# What may stand behind a grouped number, with nothing else, for its comma not to be that of a list.
_GROUPED = re.compile(
    r"([-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?)"
    r"(\s*(?:\\?%|\^\s*\{?\\circ\s*\}?|\\pi|\\sqrt\s*(?:\{[0-9]+\}|[0-9])))"
)
_GROUPS = re.compile(r"[0-9]{1,3}(?:(?:,|\{,\}|\\text\{,\}|\\[,;: ]|\s)[0-9]{3})+(?:\.[0-9]+)?")
# A power as Python writes it; any other `**` is bold type.
_POWER = re.compile(r"(?<=[\w)}])\s*\*\*\s*(?=[-+]?[0-9({\\]|[A-Za-z](?![A-Za-z]))")
# Marks that say nothing about a value; behind a second backslash, which ends a line, none begins.
_BLANK = re.compile(r"\\?\$|(?<!\\)\\[,;: ()]")
_ROOT = re.compile(r"\\surd\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))")
_SCIENTIFIC = re.compile(
    r"([-+]?[0-9]+(?:\.[0-9]+)?)(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*)([-+]?[0-9]{1,3})\s*\}?"
)
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_QUOTIENT = re.compile(
    r"([-+]?)(?:\\[dtc]?frac\s*\{([-+]?[0-9]+)\}\s*\{([0-9]+)\}|\\[dtc]?frac([0-9])([0-9])|([0-9]+)\s*/\s*([0-9]+))"
)
_MIXED = re.compile(
    r"([-+]?)([0-9]+)(?:\s+([0-9]+)\s*/\s*([0-9]+)|\s*\\[dtc]?frac\s*(?:\{([0-9]+)\}\s*\{([0-9]+)\}|([0-9])([0-9])))"
)
_REPEATING = re.compile(r"([-+]?)([0-9]*)\.([0-9]*)\\(?:overline|bar)\s*(?:\{([0-9]+)\}|([0-9]))")
# A number is said shortly. Everything below this length may be looked at from each of its characters.
LONGEST = 200
_WORKED_OUT = re.compile(
    r"[0-9)}]\s*(?:[+*]|-|\\cdot|\\times(?!\s*10\s*\^)|\\div)\s*[0-9({\\]"
    r"|[0-9)}]\s*\(|!|\\[lr](?:ceil|floor)|\\(?:sum|prod|int|lim|binom|log|ln|sin|cos|tan|exp|gcd|max|min|bmod|pmod)(?![A-Za-z])"
)
DRESSED = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
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
    >>> canonical("3 1/2"), canonical("0.\\overline{3}"), canonical("$18$ eggs")
    ('7/2', '1/3', '18 eggs')
    """
    text = _POWER.sub("^", answer.translate(_SYMBOLS)).replace("**", "")
    text = text.replace("\\left", "").replace("\\right", "").replace("\\degree", "^\\circ ")
    text = " ".join(text.replace("\\!", "").replace("\\quad", " ").split())
    text = text.strip(" $`").removesuffix("\\\\").rstrip(" .;").removeprefix("\\$").strip(" $`")
    dressed = DRESSED.fullmatch(text)
    if dressed and _DECIMAL.fullmatch(dressed.group(1).strip(" ()")):
        text = dressed.group(1).strip(" ()")
    if _GROUPS.fullmatch(text.lstrip("+-")):
        return re.sub(r"(?<=[0-9])(?:,|\{,\}|\\text\{,\}|\\[,;: ]|\s)(?=[0-9]{3})", "", text)
    text = re.sub(r"^([-+])\s+(?=[0-9.])", r"\1", " ".join(_BLANK.sub(" ", _SEPARATOR.sub("", text)).split()))
    if grouped := _GROUPED.fullmatch(text):
        return grouped[1].replace(",", "") + grouped[2]
    return _respelled(_ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text))


def plain_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal or simple fraction in canonical spelling; None for anything else.

    >>> plain_number("-0.50"), plain_number("\\frac{3}{6}"), plain_number("x")
    (Fraction(-1, 2), Fraction(1, 2), None)
    """
    if len(text) > LONGEST:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip(".") if text[-1] == "." else text)
    match = _QUOTIENT.fullmatch(text)
    if match is None:
        return None
    top, bottom = (int(part) for part in match.groups()[1:] if part is not None)
    return None if bottom == 0 else Fraction(-top if match.group(1) == "-" else top, bottom)


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


def _respelled(text: str) -> str:
    """Scientific notation, mixed numbers and repeating decimals as a whole number or a quotient."""
    if len(text) > LONGEST:
        return text
    if match := _SCIENTIFIC.fullmatch(text):
        value = Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
    elif match := _MIXED.fullmatch(text):
        sign, whole, top, bottom = (part for part in match.groups() if part is not None)
        if not 0 < int(top) < int(bottom):
            return text
        value = int(f"{sign}1") * (int(whole) + Fraction(int(top), int(bottom)))
    elif match := _REPEATING.fullmatch(text):
        sign, whole, once, again = (part for part in match.groups() if part is not None)
        nines = 10 ** len(once) * (10 ** len(again) - 1)
        value = int(f"{sign}1") * Fraction(int(whole + once + again) - int(whole + once or "0"), nines)
    else:
        return text
    return str(value)
