"""Identity, facts, hazard classes and screens of single substances."""

import pytest
from rdkit import Chem

from helpers.substances import substance
from stages.chemistry import identity
from stages.chemistry.hazards import HAZARD_CLASSES, complete
from stages.chemistry.pool import tidy_name
from stages.chemistry.properties import collect_facts
from stages.chemistry.screens import is_carcinogen, is_related, is_unsafe
from stages.domain.splits import is_trivial


@pytest.mark.parametrize(
    ("cas", "digit"),
    [
        ("50-78-2", 2),
        ("7732-18-5", 5),
        ("58-08-2", 2),
        ("50-78-3", 2),
        ("0050-78-2", None),
        ("water", None),
    ],
)
def test_cas_check_digit(cas, digit):
    assert identity.cas_check_digit(cas) == digit
    assert identity.is_valid_cas(cas) == (digit is not None and cas.endswith(str(digit)))


def test_salts_and_stereoisomers_share_the_parent():
    alanines = (
        "CC(N)C(=O)O",
        "C[C@H](N)C(=O)O",
        "C[C@@H](N)C(=O)O",
        "CC(N)C(=O)[O-].[Na+]",
        "CC([NH3+])C(=O)O.[Cl-]",
    )
    parents = [identity.parent(identity.flat_molecule(smiles)) for smiles in alanines]
    assert len({identity.parent_key(parent) for parent in parents}) == 1


@pytest.mark.parametrize(
    ("smiles", "trivial"),
    [
        ("CCO", True),
        ("CC1=CC=CC=C1", True),
        ("C1CCCCCC1", True),
        ("C1CCCCCCC1", False),
        ("c1ccc2ccccc2c1", False),
    ],
)
def test_trivial_scaffolds(smiles, trivial):
    assert is_trivial(identity.scaffold(identity.flat_molecule(smiles))) == trivial


def test_structures_are_flat():
    assert "@" not in substance("alanine", "C[C@H](N)C(=O)O").smiles
    assert "/" not in substance("fumaric acid", "OC(=O)/C=C/C(=O)O").smiles


def test_slugs_spell_greek():
    assert substance("β-Carotene (all-trans)").substance_id == "s-beta-carotene-all-trans"


def test_tidy_names():
    assert tidy_name("N,N-Dimethyl-1H-indole") == "N,N-dimethyl-1H-indole"


# facts and hazards


def test_facts_have_units_and_sources():
    ethanol = substance("ethanol", "CCO", cas="64-17-5")
    facts = {fact["name"]: fact for fact in collect_facts(ethanol)}
    assert facts["molar_mass"]["value"] == pytest.approx(46.07, abs=0.01)
    assert facts["molar_mass"]["unit"] == "g/mol"
    assert facts["formula"]["value"] == "C2H6O"
    assert facts["boiling_point"]["value"] == pytest.approx(351.5, abs=0.5)
    assert facts["boiling_point"]["unit"] == "K"
    assert facts["regulation"]["value"] == "not scheduled"
    assert all(fact["source"] for fact in facts.values())


def test_exposure_limits_are_converted():
    acetone = substance("acetone", "CC(C)=O", cas="67-64-1")
    limit = next(fact for fact in collect_facts(acetone) if fact["name"] == "exposure_limit")
    assert limit["value"] == pytest.approx(500 * 58.08 / 24.45, rel=0.01)
    assert limit["method"] == "ppm*M/24.45"


def test_estimates_are_not_facts():
    aspirin = substance("acetylsalicylic acid", "CC(=O)Oc1ccccc1C(=O)O", cas="50-78-2")
    names = {fact["name"] for fact in collect_facts(aspirin)}
    assert "melting_point" in names
    assert "boiling_point" not in names  # `chemicals` has a JOBACK estimate only


@pytest.mark.parametrize("kind", ["chemical_weapon", "immediate_precursor"])
def test_what_is_known_by_name_only_has_no_constants(kind):
    law = {"instrument": "law", "schedule": "Schedule 1", "as_of": "2026-03"}
    listed = substance("acetone", status="controlled", kind=kind, cas="67-64-1", **law)
    assert [fact["name"] for fact in collect_facts(listed)] == ["regulation"]
    listed.kind = "precursor"
    assert len(collect_facts(listed)) > 1


@pytest.mark.parametrize(
    ("name", "cas", "smiles", "kind", "hazard"),
    [
        ("ethanol", "64-17-5", "CCO", "everyday", "flammable liquid"),
        ("acetic acid", "64-19-7", "CC(=O)O", "everyday", "corrosive acid"),
        ("sodium hydroxide", "1310-73-2", "[OH-].[Na+]", "everyday", "corrosive base"),
        ("sodium chloride", "7647-14-5", "[Cl-].[Na+]", "everyday", "inorganic solid"),
        ("benzoic acid", "65-85-0", "O=C(O)c1ccccc1", "everyday", "organic solid"),
        ("atenolol", None, "CC(C)NCC(O)COc1ccc(CC(N)=O)cc1", "medicine", "medicinal solid"),
        ("substance A", None, None, "chemical_weapon", "toxic agent"),
        ("substance B", None, None, "immediate_precursor", "organic solid"),
        ("potassium permanganate", "7722-64-7", None, "precursor", "oxidiser"),
        ("hydrochloric acid", "7647-01-0", None, "precursor", "corrosive acid"),
        ("acetone", "67-64-1", None, "precursor", "flammable liquid"),
    ],
)
def test_hazard_classes(name, cas, smiles, kind, hazard):
    example = substance(name, smiles, cas=cas, kind=kind)
    example.facts = collect_facts(example)
    complete(example)
    assert example.advice_class == hazard
    assert hazard in HAZARD_CLASSES


# screens


@pytest.mark.parametrize(
    ("smiles", "unsafe", "related"),
    [
        ("CCOC(C)=O", False, False),
        ("CO[N+](=O)[O-]", True, False),
        ("CN=[N+]=[N-]", True, False),
        ("CP(=O)(F)F", True, False),
        ("CN(C)P(=O)(N(C)C)N(C)C", True, False),
        ("CS(=O)(=O)OCC", True, False),
        ("c1ccccc1C=C(C#N)C#N", True, False),
        ("CCSC(=O)N(C)C", True, False),
        ("CN(C)C(=O)Nc1ccccc1", True, False),
        ("CNc1nc(OC)nc(NC)n1", True, False),
        ("NC(=O)Nc1ccccc1", False, False),
        ("CS(=O)(=O)Nc1ccccc1", False, False),
        ("O=C1CC(=O)NC(=O)N1", False, True),
        ("NCCc1ccccc1", False, True),
        ("c1ccccc1C1CCNCC1", False, True),
    ],
)
def test_screens(smiles, unsafe, related):
    molecule = Chem.MolFromSmiles(smiles)
    assert (is_unsafe(molecule), is_related(molecule)) == (unsafe, related)


def test_many_halogens_are_unsafe():
    assert is_unsafe(Chem.MolFromSmiles("Clc1cc(Cl)c(cc1Cl)-c1cc(Cl)ccc1Cl"))


def test_carcinogens_are_screened():
    assert is_carcinogen("71-43-2")  # IARC group 1
    assert not is_carcinogen("64-19-7")
