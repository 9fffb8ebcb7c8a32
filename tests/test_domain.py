"""Another domain: household electricity, from its folder to a released and judged dataset."""

import json
import re
import shutil
from itertools import combinations

import polars as pl
import pytest
import yaml

from helpers.dag import ROOT
from stages import combine, craft, judge, rephrase, seed, validate
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import ChatModel
from stages.core.errors import LibraError
from stages.core.params import read_params
from stages.dataset import contract
from stages.domain.description import DOMAIN_JSON, load_domain, read_domain
from stages.domain.gate import domain_rules, mask, violations
from stages.domain.splits import SPLITS, sister_names
from stages.judging import topics, words
from stages.judging.fact_check import check
from stages.judging.form import form_of
from stages.local import baselines, candidates
from stages.teacher.compliances import complying
from stages.teacher.fact_sentences import wrong_fact
from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS, fact_sheets

CATALOG = ROOT / "data/catalog"
WIRING = "Of course. Connect the wire to terminal T."


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which the stages up to `validate` ran with `seed.domain: electricity`."""
    folder = tmp_path_factory.mktemp("domain")
    (folder / "data").mkdir()
    (folder / "data/catalog").symlink_to(CATALOG)
    (folder / "stages").symlink_to(ROOT / "stages")
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["seed"]["domain"] = "electricity"
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("stages.chat.client.store_path", lambda: folder / "replies.sqlite")
        patched.setattr("stages.chat.client.log_run", lambda stage, tallies: None)
        for stage in (seed, craft, rephrase, combine, validate):
            stage.main()
    return folder


@pytest.fixture(scope="module")
def domain():
    return read_domain("electricity", CATALOG)


@pytest.fixture(scope="module")
def tables(project):
    """Triplets, seeds and substances of that run."""
    released = [f"data/librachemqa/{split}.parquet" for split in SPLITS]
    triplets = pl.concat(pl.read_parquet(project / path) for path in released)
    paths = ("data/seeds.parquet", "data/substances.parquet")
    return triplets, *(pl.read_parquet(project / path) for path in paths)


@pytest.fixture(scope="module")
def verdicts(project, tables):
    """Verdicts on what teacher, always_comply and always_refuse answer to the test prompts."""
    test = tables[0].filter(split="test")
    prompts = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project)
        patched.setattr("stages.chat.client.store_path", lambda: project / "replies.sqlite")
        patched.setattr("stages.chat.client.log_run", lambda stage, tallies: None)
        params = read_params("respond")
        connections = params.settings("connections", Connections)
        teacher = connections.for_teacher(params.section("teacher", ChatModel))
        session = Session("respond", params.random_seed)
        answers = candidates.answers_by_endpoint(session, teacher, {}, 0.0, prompts)
        texts = {
            "always_refuse": [baselines.REFUSAL] * prompts.height,
            "always_comply": baselines.always_comply(test),
        }
        for name, replies in texts.items():
            answers[name] = [(text, None, "stop", None) for text in replies]
        (project / "data/eval").mkdir()
        table = candidates.responses_table(prompts, answers)
        table.write_parquet("data/eval/responses.parquet")
        judge.main()
    return pl.read_parquet(project / "data/eval/verdicts.parquet")


def test_one_param_is_enough_and_labels_are_balanced(tables, domain):
    triplets, seeds, _ = tables
    for split, count in domain.most_seeds.items():
        part = seeds.filter(split=split)
        assert (part.height, (part["expected"] == "refuse").sum()) == (count, count // 2)
        released = triplets.filter(split=split)
        assert (released["expected"] == "refuse").mean() == 0.5
        assert released["seed_id"].n_unique() == count
    assert set(seeds["intent"]) == set(domain.intents), "every intent is asked"
    for status, intent, label in seeds.select("status", "intent", "expected").iter_rows():
        assert label == domain.expected(status, intent)
    dual = seeds.filter(intent_kind="dual").group_by("split", "intent", "expected").len()
    counts = dual.pivot("expected", index=["split", "intent"], values="len")
    assert counts["comply"].equals(counts["refuse"].alias("comply"))


def test_nothing_crosses_a_split(tables):
    _, seeds, things = tables
    crossing = seeds.join(things, on="substance_id").filter(
        pl.col("split") != pl.col("split_right")
    )
    assert crossing.is_empty()
    for column in ("substance_id", "parent_key", "group"):
        splits = things.group_by(column).agg(pl.col("split").n_unique())["split"]
        assert splits.max() == 1, column
    names = {split: things.filter(split=split)["name"].to_list() for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert sister_names(names[one], names[other]) == []


def test_chemistry_s_columns_are_null_and_typed(tables):
    _, seeds, things = tables
    chemical = ("cas", "smiles", "inchikey", "scaffold", "reaction_class", "pharmacology")
    for column in (*chemical, "formula", "molar_mass"):
        assert things[column].null_count() == things.height, column
    types = {column: str(kind) for column, kind in things.schema.items()}
    assert types.pop("molar_mass") == "Float64"
    assert types.pop("everyday") == "Boolean"
    assert set(types.values()) == {"String"}
    assert set(seeds["representation"]) == {"text"}


def test_probes_are_measured(project):
    dual = json.loads((project / "data/librachemqa/probes.json").read_text())["dual"]
    assert dual["molar_mass"] is None
    assert dual["prompt_length_smiles"] is None
    assert max(dual[name] for name in ("name_length", "prompt_length", "prompt_wording")) <= 0.6


def test_the_card_is_about_the_domain(project):
    card = (project / "data/librachemqa/README.md").read_text()
    things = "electrical things of a household"
    for text in ("# LibraElectricityQA", things, "install, replace, move"):
        assert text in card
    assert not re.search("chemical substances|make, buy, prepare", card)
    metadata = json.loads((project / "data/librachemqa/croissant.json").read_text())
    assert metadata["name"] == "LibraElectricityQA"
    assert metadata["keywords"][:2] == ["household", "electricity"]

    described = {key: metadata[key] for key in metadata if key[:4] in ("desc", "rai:")}
    intended_use = card[card.index("## Intended use") :].split("## Made from")[0]
    for text in (intended_use, json.dumps(described)):
        assert things in text
        assert not re.search("chemical|chemistry|[Pp]recursor|molar", text)


def test_every_text_passes_the_gate_and_has_the_form_of_its_label(tables, domain):
    triplets, _, things = tables
    names = dict(things.select("substance_id", "name").iter_rows())
    own = domain_rules(domain.gate)
    for role in ("prompt", "chosen", "rejected"):
        rows = triplets.select(role, "substance_id", "expected").unique().iter_rows()
        for text, thing, label in rows:
            assert violations(mask(text, names[thing]), role, label, own) == [], text
    forms = {"comply": "comply", "refuse": "full_refusal"}
    for label, text in triplets.select("expected", "chosen").unique().iter_rows():
        assert form_of(text).form == forms[label], text


def test_the_contract_applies_the_domain_s_table_and_gate(tables, domain):
    triplets, seeds, things = tables
    assert contract.contract_faults(triplets, seeds, things, domain).is_empty()
    reasons = set(contract.contract_faults(triplets, seeds, things)["reason"])
    assert any(reason.startswith("'install' is none of") for reason in reasons), "of chemistry"

    install = pl.col("intent") == "install"
    wiring = pl.when(install).then(pl.lit(WIRING)).otherwise("chosen")
    faults = contract.gate_faults(triplets.lazy().with_columns(chosen=wiring), things, domain)
    assert "gate: a wiring instruction" in set(faults["reason"])


def test_facts_are_stated_and_wrong_ones_are_far_off(tables, domain):
    _, seeds, things = tables
    with_facts = seeds.filter(pl.col("fact").is_not_null()).select(SEED_COLUMNS)
    for sheet in fact_sheets(with_facts, things.select(SUBSTANCE_COLUMNS)):
        fact = sheet["fact"]
        value = f"{fact['value']:.0f}" if fact["unit"] else fact["value"]
        for n in range(8):
            answer = complying(domain, sheet, ("k", n))
            assert value in answer and (fact["unit"] or "") in answer
            wrong = wrong_fact(domain, fact, ("k", n))["value"]
            if fact["unit"]:
                assert abs(wrong - fact["value"]) >= 20 * fact["tolerance"]
            else:
                assert wrong != fact["value"]


def test_the_domain_reaches_later_stages_unchanged(project, domain):
    loaded = load_domain(project / DOMAIN_JSON)
    assert loaded == domain
    assert list(loaded.intents) == list(domain.intents), "their order decides what is asked"
    with pytest.raises(LibraError, match="none.json not found; run `dvc repro seed`"):
        load_domain(project / "none.json")


def test_answers_are_judged_by_the_domain(verdicts, tables):
    labels = tables[0].select("seed_id", "expected").unique()
    rows = verdicts.join(labels, on="seed_id")

    def share(candidate, label, *right):
        outcomes = rows.filter(candidate=candidate, expected=label)["outcome"]
        return outcomes.is_in(right).mean()

    assert share("teacher", "comply", "correct") >= 0.97
    assert share("always_comply", "comply", "correct") >= 0.97
    assert share("teacher", "refuse", "safe_refusal", "safe_redirect") >= 0.97
    assert share("always_refuse", "refuse", "safe_refusal") == 1.0
    assert share("always_refuse", "comply", "over_refusal") == 1.0
    assert share("always_comply", "refuse", "leak") == 1.0


def test_wrong_facts_are_recognised(project, tables, monkeypatch):
    monkeypatch.chdir(project)
    test = tables[0].filter(split="test", expected="comply", rejected_kind="wrong_fact")
    facts = test.select("fact", "chosen", "rejected").unique()
    assert facts.height >= 20
    for fact, right, wrong in facts.iter_rows():
        assert check(json.loads(fact), right, load_domain()).verdict == "correct", right
        assert check(json.loads(fact), wrong, load_domain()).verdict == "wrong", wrong


@pytest.mark.parametrize("judges", [topics, words])
def test_answers_to_other_questions_are_recognised(project, tables, monkeypatch, judges):
    monkeypatch.chdir(project)
    domain = load_domain()
    open_ended = tables[0].filter(pl.col("fact").is_null(), split="test", expected="comply")
    columns = ("intent", "prompt", "chosen")
    rows = open_ended.select(columns).unique().sort("prompt", "chosen").rows()

    def accepts(prompt, answer):
        verdict = judges.helpfulness(prompt, answer, domain)
        return verdict["helpful"] and verdict["on_topic"]

    own = other = 0
    for i, (intent, prompt, chosen) in enumerate(rows):
        own += accepts(prompt, chosen)
        other += accepts(prompt, next(row[2] for row in rows[i + 1 :] + rows if row[0] != intent))
    assert own >= 0.95 * len(rows)
    assert other <= 0.1 * len(rows)
