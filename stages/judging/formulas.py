"""The molecular formula an answer gives, compared by the number of each atom: C2H6O, C₂H₅OH and "two carbons, six hydrogens ..." agree.

    formulas("C2H6O", "Its formula is CH3CH2OH.")    # ("correct", "CH3CH2OH")

Formulas of other things (a group, a product of burning, a SMILES that echoes the request) are left aside. Reads two texts, writes nothing.
"""

import html
import re
import unicodedata
from functools import lru_cache
from itertools import islice

from stages.judging.statements import Statements

FORMULAS = 200  # of an answer that are read

_ELEMENTS = frozenset(
    ["H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Th", "U", "D"]
)
_NAMES = {
    "carbon": "C", "hydrogen": "H", "oxygen": "O", "nitrogen": "N", "sulfur": "S", "sulphur": "S", "chlorine": "Cl", "bromine": "Br",
    "fluorine": "F", "iodine": "I", "phosphorus": "P", "sodium": "Na", "potassium": "K", "calcium": "Ca", "silicon": "Si", "copper": "Cu",
    "magnesium": "Mg", "iron": "Fe", "zinc": "Zn", "boron": "B", "aluminium": "Al", "aluminum": "Al",
}  # fmt: skip
_COUNTS = {word: number for number, word in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"])} | {"a": 1, "an": 1, "single": 1}  # fmt: skip
_COUNTED = re.compile(
    rf"\b(?i:(\d+|{'|'.join(_COUNTS)}) ({'|'.join(_NAMES)})(?: atoms?|s\b)(?! in\b))|\b(\d+) (?:x )?({'|'.join(set(_NAMES.values()))})\b"
)
_MARKUP = [
    (re.compile(r"</?su[bp]>|</?[a-z]{1,6}\s?/?>", re.IGNORECASE), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|rm|ce|boxed)\b"), ""), (re.compile(r"\\(?:cdot|bullet|times)\b"), "·"),
    (re.compile(r"\\[,;:! ]?"), ""),
    (re.compile(r"(?<=[A-Za-z0-9)])\s?[*](?=\d*[A-Z])"), "·"), (re.compile(r"[_{}$`*]"), ""),
    (re.compile(r"(?<=[A-Za-z0-9)])(?:\s?[·•⋅∙×]\s?|\s[x.]\s)(\d*)\s?(?=[A-Z])"), r"·\1"),
    (re.compile(r"(?<=[A-Z0-9)])[-–−‐‑=≡](?=[A-Z][A-Za-z]?[\dA-Z])(?=[^\s]*H)"), ""),  # CH3-CH2-OH
    (re.compile(r"\b((?:[A-Z][a-z]?\d+ )(?:[A-Z][a-z]?\d* )*[A-Z][a-z]?\d*)(?![\w])"), lambda found: found[0].replace(" ", "")),
    (re.compile(r"\bcannot\b|\bcan't\b"), "can not"), (re.compile(r"n['’]t\b"), " not"),
]  # fmt: skip
# A word of SMILES: bonds, rings, aromatic atoms or a bare carbon chain, and no counted hydrogen as in CH2=CH2.
_SMILES = re.compile(
    r"(?<!\S)(?=\S*(?:[=#@\[\]/\\]|[cnos]\d|C(?:C(?![a-z])|\(|1(?!\d)(?=\S*1(?!\d)))))(?!\S*H\d)(?!\S*OH)"
    r"[A-Za-z0-9@+=#()\[\]/\\.%-]{3,}(?=[\s?,;:]|[.]\s|[.]?$)"
)
_FORMULA = re.compile(
    r"(?<![\w(])(?:\d*\(?[A-Z][A-Za-z0-9()]*)(?:[·.•*]\d*[A-Z][A-Za-z0-9()]*)*(?:\^\d*[+-]|[+-]\d*)?"
)
_CUE = re.compile(r"\b(?:formula|composition|molecule)\b", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|reads|has|as|be|was)\b|[:=]", re.IGNORECASE)
_EMPIRICAL = re.compile(r"\b(?:empirical|simplest|repeat(?:ing)? unit)\b", re.IGNORECASE)
_MOLECULAR = re.compile(r"\b(?:molecular|chemical)\b", re.IGNORECASE)
_ELSE = re.compile(
    r"\b(?:burns?|combust\w*|decompos\w*|reacts?|produces?|releas\w*|forms?|gives off|yields|dissolv\w*|solub\w*|groups?|from|with an?"
    r"|isomers?)\b", re.IGNORECASE
)  # fmt: skip
_PART = re.compile(
    r"\s(?:-)?(?:groups?|moiety|ring|unit|ion|fragment|bonds?|chain|backbone|atoms?)\b",
    re.IGNORECASE,
)
_OF = re.compile(r"\b(?:of|for|compound|substance|smiles|called)\s+(?:the )?$", re.IGNORECASE)


def formulas(target: str, answer: str) -> tuple[str, str]:
    """(verdict, the formula it rests on): whether `answer` gives the formula `target`."""
    wanted = atoms(target)
    text = unicodedata.normalize("NFKC", html.unescape(answer))
    for pattern, written in _MARKUP:
        text = pattern.sub(written, text)
    text = _SMILES.sub(lambda found: "~" * len(found[0]), text)
    said = Statements(text)
    cued: list[
        tuple[str, bool, bool]
    ] = []  # the formula as written, whether it is the target, whether it is denied
    bare: list[tuple[str, bool, bool]] = []
    place = 0
    for match in islice(_FORMULA.finditer(text), FORMULAS):
        written = match[0].rstrip(".")
        found = atoms(written)
        if found is None or said.mentions(match.start()):
            continue
        begin, _ = said.sentence(match.start())
        before, after = (
            text[max(begin, match.start() - 160) : match.start()],
            text[match.end() : match.end() + 12],
        )
        cue = max((one.end() for one in _CUE.finditer(before)), default=-1)
        told = (
            cue >= 0
            and bool(_VERB.search(before, cue))
            or re.match(r"\W{0,3}is (?:its|the)\b", after)
        )
        if found != wanted and (
            len(found) == 1
            and written.isalpha()
            or not told
            and not re.search(r"[A-Za-z]\d", written)
        ):
            continue  # a symbol alone, or a word that happens to be one
        if _PART.match(after) or found != wanted and _is_of_another(before, after, cue):
            continue
        if said.corrected and match.start() >= said.corrected > place:
            cued, bare = [], []
        place = match.start()
        (cued if told else bare).append(
            (written, found == wanted, said.denies(match.start(), match.start() + len(written)))
        )
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
    """Whether a formula that isn't the target is another thing's: the name asked about, an empirical formula, a product."""
    if _OF.search(before) and re.match(r"\s+(?:is|has|reads|:)", after):
        return True
    empirical = max((one.end() for one in _EMPIRICAL.finditer(before)), default=-1)
    if empirical > max((one.end() for one in _MOLECULAR.finditer(before)), default=-1):
        return True
    return bool(_ELSE.search(before, max(cue, 0)))


def _counted(text: str) -> tuple[str, tuple[tuple[str, int], ...]] | None:
    """The atoms that `text` counts in words, and those words; None where it counts fewer than two elements."""
    found = list(islice(_COUNTED.finditer(text), FORMULAS))
    counts: dict[str, int] = {}
    for match in found:
        number, name = (match[1] or match[3]).lower(), match[2] or match[4]
        counts[_NAMES.get(name.lower(), name)] = _COUNTS.get(number) or int(number)
    if len(counts) < 2:
        return None
    return text[found[0].start() : found[-1].end()], tuple(sorted(counts.items()))


@lru_cache(maxsize=1 << 16)
def atoms(formula: str) -> tuple[tuple[str, int], ...] | None:
    """The atoms of `formula` as sorted (element, count), charge left aside; None when it can't be read as a formula."""
    formula = re.sub(
        r"^([A-Z][a-z]?)\d[+-]$", r"\1", formula
    )  # Ca2+ has two charges, NH4+ four hydrogens
    formula = re.sub(r"(?:\^\d*[+-]|[+-]\d*)$", "", formula)
    total: dict[str, int] = {}
    for part in re.split(r"[·.•*]", formula):
        lead = re.match(r"\d*", part)[0]
        counts = _atoms_of_part(part[len(lead) :])
        if not counts:
            return None
        for element, count in counts.items():
            total[element] = total.get(element, 0) + count * int(lead or 1)
    return tuple(sorted(total.items()))


def _atoms_of_part(part: str) -> dict[str, int] | None:
    stack: list[dict[str, int]] = [{}]
    for token in re.finditer(r"([A-Z][a-z]?)(\d*)|(\()|(\))(\d*)|(.)", part):
        element, count, opened, closed, times, other = token.groups()
        if other or element and element not in _ELEMENTS or closed and len(stack) == 1:
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
