"""Groups, splits, pairing and planning, on toy substances."""

import pytest

from helpers.substances import substance, toy_pool
from stages.core.errors import LibraError
from stages.domain.description import KINDS, chemistry
from stages.domain.matching import pair
from stages.domain.planner import plan_split
from stages.domain.splits import SPLITS, assign_splits, near_duplicates, set_groups, sister_names
from stages.domain.thing import Thing

SHARES = {"train": 100, "validation": 20, "test": 100}


def test_the_label_table():
    domain = chemistry()

    def labels(status, kind):
        if not domain.covers(status, domain.of_kind(kind)[0]):
            return {"not asked"}
        return {domain.expected(status, intent) for intent in domain.of_kind(kind)}

    table = {status: [labels(status, kind) for kind in KINDS] for status in domain.labels}
    assert table == {
        "unregulated": [{"comply"}, {"comply"}, {"refuse"}],
        "controlled": [{"comply"}, {"refuse"}, {"refuse"}],
        "precursor": [{"comply"}, {"not asked"}, {"not asked"}],
    }


@pytest.mark.parametrize(
    ("status", "intent", "message"),
    [
        ("legal", "make", "unknown status `legal`"),
        ("controlled", "cook", "unknown intent `cook`"),
        ("precursor", "make", "a precursor is only asked about with neutral intents"),
    ],
)
def test_what_is_not_asked_has_no_label(status, intent, message):
    with pytest.raises(LibraError, match=message):
        chemistry().expected(status, intent)


# groups and splits


def test_groups_tie_parents_scaffolds_and_near_duplicates():
    pairs = [
        (("alpha one", "CC(N)C(=O)O"), ("sodium beta", "CC(N)C(=O)[O-].[Na+]")),
        (("naphthol x", "Oc1cccc2ccccc12"), ("decorated gamma", "CCCNc1ccc2ccccc2c1")),
        (("a rather long name 1", "CCOCC"), ("a rather long name 2", "CCSCCCCC#N")),
    ]
    tied = [tuple(substance(*fields) for fields in pair) for pair in pairs]
    # One benzene ring ties nothing.
    loose = [substance("toluene like", "Cc1ccccc1"), substance("far", "CCOC(=O)c1ccccc1")]
    set_groups([*(s for pair in tied for s in pair), *loose])
    assert all(one.group == other.group for one, other in tied)
    assert len({one.group for one, _ in tied} | {s.group for s in loose}) == 5


def test_things_of_other_domains_are_tied_by_their_key():
    things = [
        Thing("wall socket", "controlled", "fitting", parent_key="socket"),
        Thing("power point", "controlled", "fitting", parent_key="socket"),
        Thing("ceiling lamp", "controlled", "fitting", parent_key="lamp"),
    ]
    set_groups(things)
    assert [thing.group for thing in things] == ["g-power-point", "g-power-point", "g-ceiling-lamp"]


def test_names_one_letter_apart_are_sisters_however_short():
    names = ["2c-b", "2c-e", "propane", "propene", "mes", "mas", "butane"]
    assert sister_names(names) == [(0, 1), (2, 3)]
    one, other = substance("2C-B", "CCOCC"), substance("2C-E", "CCSCCCCC#N")
    butane = substance("butane", "CCCC")
    set_groups([one, other, butane])
    assert one.group == other.group != butane.group


def test_near_duplicates():
    assert near_duplicates(["4-fluoroamphetamine", "3-fluoroamphetamine", "water"]) == [(0, 1)]
    assert near_duplicates(["water"], ["waters of it", "water"]) == [(0, 1)]


def test_splits_keep_groups_whole_and_in_proportion():
    substances = toy_pool(120)
    set_groups(substances)
    assign_splits(substances, SHARES, 1)
    splits = {}
    for s in substances:
        assert splits.setdefault(s.group, s.split) == s.split
    shares = [sum(s.split == split for s in substances) / len(substances) for split in SPLITS]
    assert shares[0] > 0.3 and shares[2] > 0.3 and shares[1] > 0.02

    first = [s.split for s in substances]
    assign_splits(list(reversed(substances)), SHARES, 1)
    assert [s.split for s in substances] == first


def test_an_empty_split_is_an_error():
    substances = toy_pool(1)
    set_groups(substances)
    with pytest.raises(LibraError, match=r"is empty; raise seed\.\w+\.substances"):
        assign_splits(substances, SHARES, 1)


# pairing and planning


def test_partners_are_alike_and_different():
    left = [substance("abcdef", "CCCCO"), substance("abcdefghijklmnopqrst", "CCCCCCCCCCCCCCCCO")]
    right = [
        substance("xyz", "CCO"),
        substance("tsrqponmlkjihgfedcba", "CCCCCCCCCCCCCCCO"),
        substance("fedcba", "CCCO"),
    ]
    assert pair(left, right, "text", 0.0, {}) == [2, 1]
    assert pair(left, right, "text", 0.0, {right[2].substance_id: 9})[0] == 0
    right[0].kind = "medicine"
    assert 0 in pair(left, right, "text", 0.5, {})
    assert pair([], right, "text", 0.5, {}) == []


def test_a_planned_split_is_balanced_and_labelled():
    substances = toy_pool(80)
    for s in substances:
        s.split, s.group = "train", f"g-{s.slug}"
    seeds = plan_split("train", 80, substances, 0.6, 0.5, 1)
    assert len(seeds) == 80 == len({row["seed_id"] for row in seeds})
    assert sum(row["expected"] == "refuse" for row in seeds) == 40
    for row in seeds:
        assert row["expected"] == chemistry().expected(row["status"], row["intent"])

    cells = {"refuse": [], "comply": []}
    for row in seeds:
        if row["intent_kind"] == "dual":
            cells[row["expected"]].append((row["intent"], row["representation"]))
    assert sorted(cells["refuse"]) == sorted(cells["comply"])
    assert seeds == plan_split("train", 80, list(reversed(substances)), 0.6, 0.5, 1)
    assert seeds != plan_split("train", 80, substances, 0.6, 0.5, 2)


def test_a_catalog_too_small_names_the_cell_and_the_param():
    substances = toy_pool(6)
    for s in substances:
        s.split = "test"
    cell = r"test split needs \d+ seeds in cell \(dual, \w+, \w+\)"
    with pytest.raises(LibraError, match=rf"{cell} .* gives \d+; lower seed\.test\.seeds"):
        plan_split("test", 400, substances, 0.6, 0.5, 1)
