"""Toy substances for tests of chemistry and of the planner."""

from stages.chemistry import identity
from stages.chemistry.catalog import set_structure
from stages.chemistry.properties import collect_facts
from stages.chemistry.substance import Substance

WORDS = ["amber", "birch", "cobalt", "dune", "ember", "fjord"]
WORDS += ["garnet", "heath", "indigo", "juniper", "kelp", "lichen"]


def substance(name, smiles=None, status="unregulated", kind="industrial", **fields):
    """A substance with the structure of `smiles`, if any."""
    result = Substance(name, status, kind, **fields)
    if smiles:
        set_structure(result, identity.flat_molecule(smiles))
    return result


def toy_pool(count):
    """`count` controlled and `count` unregulated substances, each with a chain of its own."""
    law = {"instrument": "law", "schedule": "Schedule I", "as_of": "2026-03"}
    pool = {}
    for i in range(count):
        name = f"{WORDS[i % 12]} {WORDS[i // 12 % 12]} {WORDS[(i * 7 + 3) % 12]}"
        tail = "".join("CONSF"[(i * (k + 2)) // (k + 1) % 4] + "C" for k in range(3 + i % 9))
        for status, kind, head in (
            ("controlled", "medicine_drug", "N"),
            ("unregulated", "medicine", "O"),
        ):
            smiles = f"{head}CC{tail}"
            toy = substance(f"{status[0]} {name}", smiles, status, kind, **law)
            toy.pharmacology = "its own"
            toy.facts = collect_facts(toy)
            pool[toy.parent_key] = toy
    return list(pool.values())
