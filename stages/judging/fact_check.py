"""Is the fact an answer states the fact on file?

    check({"name": "melting_point", "value": 356.9, "unit": "K", "tolerance": 2.0, ...},
          "It melts at 84 °C.")
    -> FactCheck("correct", "84 °C")

Measured values (measured.py) are found with their units, converted by pint and compared; formulas,
legal listings and other wordings have a reader each. tests/fact_cases.yaml shows by example what is
correct, wrong and unverifiable.
"""

from dataclasses import dataclass
from typing import Any

from stages.domain.description import Domain, chemistry
from stages.judging.formulas import formulas
from stages.judging.listings import judge_listing
from stages.judging.measured import judge_measured
from stages.judging.wordings import judge_wording

READ = 8_000  # characters of an answer that are searched, which keeps hostile texts cheap


@dataclass(frozen=True)
class FactCheck:
    """`verdict` is correct, wrong or unverifiable; `evidence` is the value as written.

    An answer is unverifiable if it says nothing that the fact can settle.
    """

    verdict: str
    evidence: str = ""


def check(fact: dict[str, Any], answer: str, domain: Domain | None = None) -> FactCheck:
    """Compare `answer` with `fact` {name, value, unit, tolerance, method, source}.

    `value` is a number, or text for look-ups. The fact is one of `domain` (default: chemistry).
    """
    domain = domain or chemistry()
    answer = answer[:READ]
    name, value = fact["name"], fact["value"]
    intent = domain.intents.get(name)
    if name == "formula":
        verdict, evidence = formulas(value, answer)
    elif isinstance(value, str) and intent and intent.wrong:
        more = domain.judge.texts.get(name, {})
        verdict, evidence = judge_wording(value, intent.wrong, more, answer)
    elif isinstance(value, str):
        verdict, evidence = judge_listing(value, fact.get("method") or "", answer)
    else:
        verdict, evidence = judge_measured(fact, answer, domain)
    at = answer.lower().find(evidence.lower()) if evidence else -1
    return FactCheck(verdict, answer[at : at + len(evidence)] if at >= 0 else evidence)
