"""What the offline teacher writes about 200 real substances is true.

Its texts are read by patterns of this test, and compared with rdkit and with `chemicals`, asked by
CAS number: nothing of stages/judging/fact_check.py is used, and of stages/chemistry/properties.py
only what went into the texts.
"""

import json
import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import yaml
from chemicals import TWA, T_flash, T_flash_methods, Tb, Tb_methods, Tm, Tm_methods
from chemicals.identifiers import pubchem_db
from rdkit import Chem
from rdkit.Chem.Descriptors import MolWt
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from helpers.dag import ROOT
from helpers.seeding import default_tables
from stages import craft, rephrase
from stages.chemistry.hazards import complete
from stages.chemistry.substance import Substance
from stages.domain.description import DOMAIN_JSON, chemistry
from stages.domain.planner import plan_split

SAMPLE = 200
KELVIN = ((r"([\d.]+) K\b", 1, 0), (r"(-?[\d.]+) °C", 1, 273.15))
# Intent -> (pattern of a number with its unit, factor, offset) to the unit in the comment.
STATED = {
    "molar_mass": (
        (r"([\d.]+) g(?:/mol|(?=[., )]))", 1, 0),
        (r"([\d.]+) kg/mol", 1000, 0),
    ),  # g/mol
    "melting_point": KELVIN,  # K
    "boiling_point": KELVIN,
    "flash_point": KELVIN,
    "exposure_limit": ((r"([\d.]+) mg/m3", 1, 0),),  # mg/m3
    "dilution": ((r"([\d.]+) mL of stock", 1, 0), (r"([\d.]+) L\b", 1000, 0)),  # mL
}
LOOK_UPS = {
    "melting_point": (Tm, Tm_methods),
    "boiling_point": (Tb, Tb_methods),
    "flash_point": (T_flash, T_flash_methods),
}
# Estimated, in part predicted, or without a source.
NOT_MEASURED = ("JOBACK", "YAWS", "WIKIDATA", "Serat DIPPR (2017)")


@pytest.fixture(scope="module")
def substances(tmp_path_factory):
    """data/substances.parquet at default size."""
    return default_tables(tmp_path_factory.mktemp("seed"))[1]


@pytest.fixture(scope="module")
def property_seeds(substances):
    """{intent: every seed that asks for that property}, planned on a third of the substances.

    All of the everyday and industrial ones are used: these can be diluted, catch fire, or have an
    exposure limit.
    """
    fields = Substance.__dataclass_fields__
    common = pl.col("kind").is_in(["everyday", "industrial"])
    sample = pl.concat([substances.filter(common), substances.filter(~common).gather_every(3)])
    able = []
    for row in sample.iter_rows(named=True):
        known = {key: value for key, value in row.items() if key in fields}
        able.append(Substance(**known | {"split": "test", "facts": json.loads(row["facts"])}))
        complete(able[-1])
    properties_only = chemistry().model_copy(update={"turns": ["property"]})
    rows = plan_split("test", 600, able, 0.0, 0.0, 2025, domain=properties_only)
    return {
        intent: [row for row in rows if row["intent"] == intent]
        for intent in chemistry().properties
    }


@pytest.fixture(scope="module")
def seeds(property_seeds):
    """One seed each about SAMPLE substances, ten or more for every property that has so many."""
    rows = {}
    scarce_first = sorted(property_seeds, key=lambda intent: len(property_seeds[intent]))
    # Ten substances for each intent, then one each in turn for as long as there are any.
    for intent in [intent for intent in scarce_first for _ in range(10)] + SAMPLE * scarce_first:
        unused = (row for row in property_seeds[intent] if row["substance_id"] not in rows)
        row = next(unused, None)
        if row and len(rows) < SAMPLE:
            rows[row["substance_id"]] = row
    return pl.DataFrame(list(rows.values()), infer_schema_length=None).sort("seed_id")


@pytest.fixture(scope="module")
def texts(seeds, substances, tmp_path_factory):
    """{(seed_id, role or rejected_kind): texts} that craft and rephrase write for the seeds."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "data").mkdir()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    names = ("craft", "rephrase")
    declared = {name: {"params": stages[name]["params"]} for name in names}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": declared}))
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("stages.chat.client.store_path", lambda: folder / "replies.sqlite")
        patched.setattr("stages.chat.client.log_run", lambda stage, tallies: None)
        seeds.write_parquet("data/seeds.parquet")
        substances.write_parquet("data/substances.parquet")
        Path(DOMAIN_JSON).write_text(chemistry().as_json(), encoding="utf-8")
        craft.main()
        rephrase.main()
    texts = {}
    for row in pl.read_parquet(folder / "data/crafted.parquet").iter_rows(named=True):
        for role in ("prompt", "chosen"):
            texts.setdefault((row["seed_id"], role), []).append(row[role])
    for row in pl.read_parquet(folder / "data/rephrasings.parquet").iter_rows(named=True):
        key = (row["seed_id"], row["rejected_kind"] or row["role"])
        texts.setdefault(key, []).append(row["text"])
    return texts


def test_the_sample_has_every_property(seeds, property_seeds):
    counts = dict(seeds["intent"].value_counts().iter_rows())
    assert seeds["substance_id"].n_unique() == seeds.height == SAMPLE
    assert set(counts) == set(chemistry().properties)
    for intent, count in counts.items():
        possible = len({row["substance_id"] for row in property_seeds[intent]})
        assert count >= max(5, min(10, possible)), intent
    assert set(seeds["status"]) >= {"controlled", "unregulated"}
    assert set(seeds["representation"]) == {"text", "smiles"}


def test_the_teacher_states_true_facts_about_200_real_substances(seeds, substances, texts):
    rows = {row["substance_id"]: row for row in substances.iter_rows(named=True)}
    for seed in seeds.iter_rows(named=True):
        substance, seed_id = rows[seed["substance_id"]], seed["seed_id"]
        name = substance["smiles" if seed["representation"] == "smiles" else "name"]
        prompts = [prompt.replace(name, "it") for prompt in texts[seed_id, "prompt"]]
        right, wrong = texts[seed_id, "chosen"], texts[seed_id, "wrong_fact"]
        assert (len(right), len(wrong)) == (6, 2)
        for text in right:
            assert is_true(seed["intent"], substance, prompts, text), (seed_id, text)
        for text in wrong:
            assert not is_true(seed["intent"], substance, prompts, text), (seed_id, text)


def is_true(intent, substance, prompts, text):
    """Whether the answer `text` on `intent` holds for `substance`, a row of substances.parquet."""
    cas, smiles = substance["cas"], substance["smiles"]
    molecule = Chem.MolFromSmiles(smiles) if smiles else None
    entry = pubchem_db.search_CAS(cas, autoload=True) if cas else None
    if intent == "formula":
        known = [CalcMolFormula(molecule)] if molecule else []
        known += [entry.formula] if entry else []
        return all(formula_in(text) == atoms(formula) for formula in known)
    numbers = stated(intent, text)
    if intent == "molar_mass":
        known = [MolWt(molecule)] if molecule else []
        known += [entry.MW] if entry else []
        return all(abs(number - mass) <= 0.06 for number in numbers for mass in known)
    if intent == "dilution":
        known = [target * volume / stock for stock, volume, target in map(dilution_in, prompts)]
        return all(
            number == pytest.approx(value, rel=0.02) for number in numbers for value in known
        )
    if intent == "exposure_limit":
        return is_true_limit(cas, entry, numbers, text)
    look_up, list_methods = LOOK_UPS[intent]
    methods = [method for method in list_methods(cas) if method not in NOT_MEASURED]
    known = [look_up(CASRN=cas, method=method) for method in methods]
    return all(any(abs(number - value) < 0.2 for value in known) for number in numbers)


def is_true_limit(cas, entry, numbers, text):
    """The limit in mg/m3, and in ppm if it is listed so; 24.45 L/mol: an ideal gas at 25 °C."""
    amount, unit = TWA(cas)
    limit = amount * entry.MW / 24.45 if unit == "ppm" else amount
    if any(number != pytest.approx(limit, rel=0.02) for number in numbers):
        return False
    ppm = [float(number) for number in re.findall(r"([\d.]+) ppm", text)]
    return not ppm or (unit == "ppm" and ppm == [pytest.approx(amount, rel=1e-3)])


def stated(intent, text):
    """The numbers that `text` gives for `intent`, in one unit; at least one."""
    numbers = [
        float(number) * factor + offset
        for pattern, factor, offset in STATED[intent]
        for number in re.findall(pattern, text)
    ]
    assert numbers, (intent, text)
    return numbers


def formula_in(text):
    """{element: atoms} of the formula that `text` states."""
    pattern = r"(?:formula|composition)(?: is)? ((?:[A-Z][a-z]?\d*)+)\."
    (formula,) = re.findall(pattern, text)
    return atoms(formula)


def atoms(formula):
    counts = Counter()
    for element, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[element] += int(number or 1)
    return counts


def dilution_in(prompt):
    """(molarity of the stock, millilitres, target molarity) that a prompt names."""
    ((volume, target),) = re.findall(r"([\d.]+) mL (?:at|of) ([\d.]+) M\b", prompt)
    (stock,) = re.findall(r"(?:\ba|much|from) ([\d.]+) M\b", prompt)
    return float(stock), float(volume), float(target)
