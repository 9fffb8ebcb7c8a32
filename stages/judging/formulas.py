"""The molecular formula an answer gives, compared atom by atom with the one on file.

    formulas("C2H6O", "Its formula is CH3CH2OH.")    # ("correct", "CH3CH2OH")

C2H6O, C₂H₅OH and "two carbons, six hydrogens ..." agree. Formulas of other things (a group, a
product of burning, a SMILES that echoes the request) are ignored.
"""

import html
import re
import unicodedata
from functools import lru_cache
from itertools import islice

from stages.judging.quantity_text import DIGITS
from stages.judging.statements import Statements

FORMULAS = 200  # how many formulas of an answer are read

_SYMBOLS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br
    Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm
    Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Th U D
"""
_ELEMENTS = frozenset(_SYMBOLS.split())
_NAMES_TEXT = """
    carbon C hydrogen H oxygen O nitrogen N sulfur S sulphur S chlorine Cl bromine Br fluorine F
    iodine I phosphorus P sodium Na potassium K calcium Ca silicon Si copper Cu magnesium Mg iron Fe
    zinc Zn boron B aluminium Al aluminum Al
"""
_NAMES = dict(zip(_NAMES_TEXT.split()[::2], _NAMES_TEXT.split()[1::2], strict=True))
_COUNTS = DIGITS | {"twenty": 20, "a": 1, "an": 1, "single": 1}
_COUNTED = re.compile(
    rf"\b(?i:(\d+|{'|'.join(_COUNTS)}) ({'|'.join(_NAMES)})(?: atoms?|s\b)(?! in\b))"
    rf"|\b(\d+) (?:x )?({'|'.join(sorted(set(_NAMES.values())))})\b"
)
_MARKUP = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"(?i)</?su[bp]>|</?[a-z]{1,6}\s?/?>", ""),
        (r"\\(?:text|mathrm|mathbf|rm|ce|boxed)\b", ""),
        (r"\\(?:cdot|bullet|times)\b", "·"),
        (r"\\[,;:! ]?", ""),
        (r"(?<=[A-Za-z0-9)])\s?[*](?=\d*[A-Z])", "·"),
        (r"[_{}$`*]", ""),
        (r"(?<=[A-Za-z0-9)])(?:\s?[·•⋅∙×]\s?|\s[x.]\s)(\d*)\s?(?=[A-Z])", r"·\1"),
        (r"(?<=[A-Z0-9)])[-–−‐‑=≡](?=[A-Z][A-Za-z]?[\dA-Z])(?=[^\s]*H)", ""),  # CH3-CH2-OH
        (
            r"\b((?:[A-Z][a-z]?\d+ )(?:[A-Z][a-z]?\d* )*[A-Z][a-z]?\d*)(?![\w])",
            lambda match: match[0].replace(" ", ""),
        ),
        (r"\bcannot\b|\bcan't\b", "can not"),
        (r"n['’]t\b", " not"),
    )
]
# A word of SMILES: bonds, rings, aromatic atoms or a bare carbon chain, without a counted hydrogen
# as in CH2=CH2.
_SMILES = re.compile(
    r"(?<!\S)(?=\S*(?:[=#@\[\]/\\]|[cnos]\d|C(?:C(?![a-z])|\(|1(?!\d)(?=\S*1(?!\d)))))"
    r"(?!\S*H\d)(?!\S*OH)[A-Za-z0-9@+=#()\[\]/\\.%-]{3,}(?=[\s?,;:]|[.]\s|[.]?$)"
)
_FORMULA = re.compile(
    r"(?<![\w(])(?:\d*\(?[A-Z][A-Za-z0-9()]*)(?:[·.•*]\d*[A-Z][A-Za-z0-9()]*)*"
    r"(?:\^\d*[+-]|[+-]\d*)?"
)
_CUE = re.compile(r"\b(?:formula|composition|molecule)\b", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|reads|has|as|be|was)\b|[:=]", re.IGNORECASE)
_EMPIRICAL = re.compile(r"\b(?:empirical|simplest|repeat(?:ing)? unit)\b", re.IGNORECASE)
_MOLECULAR = re.compile(r"\b(?:molecular|chemical)\b", re.IGNORECASE)
_PRODUCT = re.compile(
    r"\b(?:burns?|combust\w*|decompos\w*|reacts?|produces?|releas\w*|forms?|gives off|yields"
    r"|dissolv\w*|solub\w*|groups?|from|with an?|isomers?)\b",
    re.IGNORECASE,
)
_PART = re.compile(
    r"\s(?:-)?(?:groups?|moiety|ring|unit|ion|fragment|bonds?|chain|backbone|atoms?)\b",
    re.IGNORECASE,
)
_OF = re.compile(r"\b(?:of|for|compound|substance|smiles|called)\s+(?:the )?$", re.IGNORECASE)

Atoms = tuple[tuple[str, int], ...]  # sorted (element, count)


def formulas(target: str, answer: str) -> tuple[str, str]:
    """(verdict, the formula it rests on): whether `answer` gives the formula `target`."""
    wanted = atoms(target)
    text = unicodedata.normalize("NFKC", html.unescape(answer))
    for pattern, written in _MARKUP:
        text = pattern.sub(written, text)
    text = _SMILES.sub(lambda smiles: "~" * len(smiles[0]), text)
    statements = Statements(text)

    # (formula as written, whether it is the target, whether it is denied), with a cue or without
    cued: list[tuple[str, bool, bool]] = []
    bare: list[tuple[str, bool, bool]] = []
    place = 0
    for match in islice(_FORMULA.finditer(text), FORMULAS):
        written = match[0].rstrip(".")
        counts = atoms(written)
        if counts is None or statements.mentions(match.start()):
            continue
        begin, _ = statements.sentence(match.start())
        before = text[max(begin, match.start() - 160) : match.start()]
        after = text[match.end() : match.end() + 12]
        cue = max((word.end() for word in _CUE.finditer(before)), default=-1)
        has_cue = (cue >= 0 and _VERB.search(before, cue)) or re.match(
            r"\W{0,3}is (?:its|the)\b", after
        )
        if counts != wanted:
            symbol = len(counts) == 1 and written.isalpha()
            word = not has_cue and not re.search(r"[A-Za-z]\d", written)  # that happens to be one
            if symbol or word or _is_of_another(before, after, cue):
                continue
        if _PART.match(after):
            continue
        if statements.last_correction and match.start() >= statements.last_correction > place:
            cued, bare = [], []
        place = match.start()
        denied = statements.denies(match.start(), match.start() + len(written))
        (cued if has_cue else bare).append((written, counts == wanted, denied))

    if counted := _counted(text):
        (bare if cued else cued).append((counted[0], counted[1] == wanted, False))
    return _verdict(cued or bare)


def _verdict(given: list[tuple[str, bool, bool]]) -> tuple[str, str]:
    right = [written for written, fits, denied in given if fits and not denied]
    wrong = [written for written, fits, denied in given if not fits and not denied]
    against = [written for written, fits, denied in given if fits and denied]
    if wrong or against:
        return "wrong", (wrong or against)[0]
    return ("correct", right[0]) if right else ("unverifiable", "")


def _is_of_another(before: str, after: str, cue: int) -> bool:
    """Whether a formula other than the target is not about the substance as such.

    It names what was asked about, is an empirical formula, or a product.
    """
    if _OF.search(before) and re.match(r"\s+(?:is|has|reads|:)", after):
        return True
    empirical = max((word.end() for word in _EMPIRICAL.finditer(before)), default=-1)
    if empirical > max((word.end() for word in _MOLECULAR.finditer(before)), default=-1):
        return True
    return bool(_PRODUCT.search(before, max(cue, 0)))


def _counted(text: str) -> tuple[str, Atoms] | None:
    """The words that count atoms and the atoms; None if they count fewer than two elements."""
    matches = list(islice(_COUNTED.finditer(text), FORMULAS))
    counts: dict[str, int] = {}
    for match in matches:
        number, name = (match[1] or match[3]).lower(), match[2] or match[4]
        counts[_NAMES.get(name.lower(), name)] = (
            _COUNTS[number] if number in _COUNTS else int(number)
        )
    if len(counts) < 2:
        return None
    return text[matches[0].start() : matches[-1].end()], tuple(sorted(counts.items()))


@lru_cache(maxsize=1 << 16)
def atoms(formula: str) -> Atoms | None:
    """The atoms of `formula` as sorted (element, count), charge ignored; None if it isn't one."""
    # Ca2+ has two charges, NH4+ four hydrogens.
    formula = re.sub(r"^([A-Z][a-z]?)\d[+-]$", r"\1", formula)
    formula = re.sub(r"(?:\^\d*[+-]|[+-]\d*)$", "", formula)
    total: dict[str, int] = {}
    for part in re.split(r"[·.•*]", formula):
        factor = re.match(r"\d*", part)[0]
        counts = _atoms_of_part(part[len(factor) :])
        if not counts:
            return None
        for element, count in counts.items():
            total[element] = total.get(element, 0) + count * int(factor or 1)
    return tuple(sorted(total.items()))


def _atoms_of_part(part: str) -> dict[str, int] | None:
    stack: list[dict[str, int]] = [{}]
    for token in re.finditer(r"([A-Z][a-z]?)(\d*)|(\()|(\))(\d*)|(.)", part):
        element, count, opened, closed, times, other = token.groups()
        if other or (element and element not in _ELEMENTS) or (closed and len(stack) == 1):
            return None
        if opened:
            stack.append({})
        elif closed:
            inner = stack.pop()
            for name, number in inner.items():
                stack[-1][name] = stack[-1].get(name, 0) + number * int(times or 1)
        else:
            stack[-1][element] = stack[-1].get(element, 0) + int(count or 1)
    return stack[0] if len(stack) == 1 else None
