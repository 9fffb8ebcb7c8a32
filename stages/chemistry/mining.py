"""All substances that seeds can be about: the catalog, and lawful ones picked by code.

mine(2656)    -> [Substance("1-androstenediol", ...), ...]
"""

from stages.chemistry.catalog import read_catalog
from stages.chemistry.hazards import complete
from stages.chemistry.pool import familiar_substances
from stages.chemistry.properties import collect_facts
from stages.chemistry.substance import Substance
from stages.core.progress import progress

POOL_PER_SEED = 0.5  # substances picked by code, so that pairs can be matched


def mine(seeds: int) -> list[Substance]:
    """The substances for that many `seeds`, complete with facts and hazard class.

    Raises LibraError for the first fault of the catalog.
    """
    substances, exclusions = read_catalog()
    controlled = [s for s in substances if s.status == "controlled"]
    count = round(POOL_PER_SEED * seeds)
    substances += familiar_substances(controlled, substances, exclusions, count)
    for substance in progress(substances, "facts"):
        substance.facts = collect_facts(substance)
        complete(substance)
    return substances
