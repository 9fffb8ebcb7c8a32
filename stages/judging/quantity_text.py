"""A text made ready for reading quantities: one notation for signs, superscripts and numbers.

    normalized("It melts at 8.4 × 10¹ °C.")          # "it melts at 8.4 × 10^1 °c."
    normalized("three hundred and fifty-seven K")    # "357 k"

Markdown, HTML and TeX markup is removed, contractions are written out, numbers in words become
digits, and a minus sign becomes MINUS.
"""

import html
import re
import unicodedata

from stages.domain.text import HIDDEN

MINUS = "−"  # the sign of a number in a normalized text, where "-" is a dash or a range
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LOOK_ALIKES = str.maketrans(
    {
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("−–‐‑⁃", "-"),
        **dict.fromkeys("’‘ʼ", "'"),
        "—": " ‒ ",
    }
)

_STYLES = r"\\(?:text|mathrm|mathbf|textbf|rm|ce|si|unit|boxed)"
_MARKUP = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"(?i)<sup>\s*([^<]{1,9}?)\s*</sup>", r"^\1"),
        (r"(?i)</?[a-z]{1,6} ?/?>", ""),
        (r"\^?\{?\\circ(?![a-z])\}?|\\degree\b", "°"),
        (r"(?<=\d)~(?=[\\a-zA-Z])", " "),
        (_STYLES + r" ?\{([^{}]{0,80})\}", r"\1"),
        (_STYLES + r"\b", " "),
        (r"\\times\b", "×"),
        (r"\\cdot\b", "·"),
        (r"\\pm\b", "±"),
        (r"\\(?:approx|sim)\b", "~"),
        (r"\\[,;:! ]", " "),
        (r"[{}$`\\\"“”]", ""),
        (r"(?<=10) ?\*\* ?(?=[-+(]?\d)", "^"),
        (r"\*\*+|(?<!\d)\*(?=\S)|(?<=\S)\*(?! ?\d)", ""),
        ("_", " "),
    )
]
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6}
_WORDS = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\b([mb])\. ?p\.", r"\1p"),
        (r"\b(approx|ca|c(?=\. ?[\d~])|deg|temp|wt|max|min|vs|cu|lit|est)\.(?=\s)", r"\1"),
        (r"\bmol\.(?= (?:wt|mass|weight))", "mol"),
        (r"\b(i|e)\.(e|g)\.", r"\1\2"),
        (r"\bcan(?:not|'t)\b", "can not"),
        (r"\bwon't\b", "will not"),
        (r"n't\b", " not"),
        (
            r"\bdegrees? (?:on the|in) (celsius|centigrade|fahrenheit|kelvin)(?: scale)?",
            r"degrees \1",
        ),
        (r"\bdegrees? (below zero) (celsius|centigrade|fahrenheit)\b", r"degrees \2 \1"),
        (
            r"(?<![\d.,])(\d[\d.,]*) (hundred|thousand|million)\b",
            lambda match: f"{match[1]}e{_ZEROS[match[2]]}",
        ),
        (r" of (?:the )?[a-z]+ (?=per\b)", " "),
        (r"\b(?:unified )?atomic mass units?\b", "amu"),
        (r"\bparts per million\b", "ppm"),
        (r"\bparts per billion\b", "ppb"),
        (r"\bmm (?:of )?(?:hg|mercury)\b", "mmhg"),
    )
]

_DIGITS_TEXT = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
"""
DIGITS = {word: number for number, word in enumerate(_DIGITS_TEXT.split())}
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * number for number, word in enumerate(_TENS_TEXT.split(), 2)}
_COUNT = rf"(?:{'|'.join([*DIGITS, *_TENS, *_ZEROS])})"
_IN_WORDS = re.compile(
    rf"\b(?:half (?:an? )?|{_COUNT}(?:(?:[\s-]|\sand\s){_COUNT}){{0,9}}"
    rf"(?:\spoint(?:\s{_COUNT}){{1,6}})?\b)(?= ?[a-z°µμ%])"
)

# A dash is a sign unless a number, unit or word precedes it ...
_SIGN = re.compile(r"(?:(?<![^\s(\[~≈<>≤≥=:|/±,'-])(?<!\d )|(?<=\d -))-(?=\.?\d)")
# ... and after these words a blank may follow it.
_SIGN_AFTER = re.compile(
    r"((?:[:=(~≈]|\b(?:is|at|of|about|to|near|around|from|between|was)) ?)- ?(?=\.?\d)"
)


def normalized(text: str) -> str:
    """`text` in lower case, without markup, in one notation; line breaks stay."""
    text = HIDDEN.sub("", html.unescape(text))
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text.translate(_LOOK_ALIKES)).translate(_LOOK_ALIKES)
    for pattern, written in _MARKUP:
        text = pattern.sub(written, text)
    text = text.lower()
    for pattern, written in _WORDS:
        text = pattern.sub(written, text)
    text = re.sub(r"[^\S\n]+", " ", _IN_WORDS.sub(_in_digits, text))
    text = re.sub(r"\b(?:minus|negative) (?=[\d.])", MINUS, text)
    text = _SIGN_AFTER.sub(rf"\1{MINUS}", _SIGN.sub(MINUS, text))
    return text.replace(" ‒ ", " - ")


def _in_digits(match: re.Match[str]) -> str:
    """A number in words as digits: `three hundred and fifty`, `forty-six point zero seven`."""
    words = re.findall(r"[a-z]+", match[0])
    if words[0] == "half":
        return "0.5 "
    if len(words) == 1 and words[0] == "one":  # seldom a number: "the right one"
        return match[0]
    whole, part, decimals = 0, 0, ""
    for i, word in enumerate(words):
        if word == "point":
            digits = [str(DIGITS.get(digit, _TENS.get(digit, ""))) for digit in words[i + 1 :]]
            decimals = "." + "".join(digits)
            break
        if word in ("thousand", "million"):
            whole, part = whole + (part or 1) * 10 ** _ZEROS[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += DIGITS.get(word, _TENS.get(word, 0))
    return f"{whole + part}{decimals}"
