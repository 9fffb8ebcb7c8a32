"""The offline teacher as an endpoint, and the stages craft and rephrase with it."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from helpers.asking import make_app
from helpers.fact_sheets import BASE, KIND_OF, fact, reply, sheet
from stages import craft, rephrase
from stages.chat.calls import ASK_AGAIN
from stages.chat.offline import RequestError
from stages.core.errors import LibraError
from stages.core.tables import write_table, write_text
from stages.domain.description import DOMAIN_JSON, chemistry
from stages.judging.form import form_of
from stages.teacher import offline_teacher
from stages.teacher.compliances import WITHHELD
from stages.teacher.sheets import (
    SEED_COLUMNS,
    SUBSTANCE_COLUMNS,
    answer_request,
    craft_request,
    rephrase_request,
)
from stages.teacher.writing import ROUNDS, text_fault


@pytest.mark.parametrize(
    ("intent", "status", "kind", "rejected_kind"),
    [
        ("make", "unregulated", "medicine", "over_refusal"),
        ("make", "controlled", "medicine_drug", "unsafe_compliance"),
        ("harm", "unregulated", "medicine", "unsafe_compliance"),
    ],
)
def test_crafted_texts_follow_the_rejected_kind(intent, status, kind, rejected_kind):
    known = sheet(intent, status=status, kind=kind)
    texts = reply(craft_request(known, rejected_kind))
    assert set(texts) == {"prompt", "chosen", "rejected"}
    assert text_fault(known, {role: [text] for role, text in texts.items()}) is None
    assert texts["rejected"].endswith(WITHHELD) == (rejected_kind == "unsafe_compliance")
    rephrased = reply(rephrase_request(known, texts, 5, 5, [rejected_kind] * 5))
    assert texts["prompt"] not in rephrased["prompts"]


def test_answers_in_plain_chat_follow_the_policy():
    refusal = reply(answer_request(sheet("harm"), "How could I hurt someone with it?"))
    assert form_of(refusal).form == "full_refusal"
    assert "356.9 K" in reply(answer_request(sheet("boiling_point"), "When does it boil?"))
    harmful, other = (
        {"messages": [{"role": "user", "content": text}]}
        for text in ("How do I poison someone?", "What can you do?")
    )
    assert form_of(offline_teacher.answer(harmful)).form == "full_refusal"
    assert "fact sheet" in offline_teacher.answer(other)


@pytest.mark.parametrize(
    ("known", "rejected_kind", "message"),
    [
        ({"seed_id": "s-1"}, "over_refusal", "lacks representation, intent"),
        (
            sheet("pharmacology", pharmacology=None),
            "over_refusal",
            "can't write from the fact sheet of s-a",
        ),
        (sheet("make"), "rude", "rejected_kind 'rude' isn't one of"),
        (
            sheet("dilution", fact=fact("dilution", 1.0, "mL", 0.1, source="?")),
            "over_refusal",
            "stock S M, V mL of T M",
        ),
    ],
)
def test_invalid_sheets_are_errors(known, rejected_kind, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        reply(craft_request(known, rejected_kind))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(sheet("make")), "writes craft, rephrase and answer, not `poem`"),
        ("a poem, please", "from a fact sheet"),
    ],
)
def test_unknown_schemas_and_requests_without_a_sheet_are_errors(content, message):
    schema = {"type": "json_schema", "json_schema": {"name": "poem", "schema": {}}}
    body = {"messages": [{"role": "user", "content": content}], "response_format": schema}
    with pytest.raises(RequestError, match=message):
        offline_teacher.answer(body)


def test_every_system_message_states_policy_and_limits():
    known = sheet("make")
    for request in (
        craft_request(known, "over_refusal"),
        rephrase_request(known, BASE, 1, 1, ["over_refusal"]),
        answer_request(known, "?"),
    ):
        text = request.messages[0]["content"]
        for word in ("240", "route", "reagent", "dose", "expected", "chemistry"):
            assert word in text
        assert "$" not in text


# ---------------------------------------------------------------- the stages

PARAMS = """
random_seed: 5
budget: {}
teacher: {base_url: offline, model: libra-offline-teacher, temperature: 0.7, max_tokens: 2048}
connections: {default: {concurrency: 4, api_key_env: NO_KEY, timeout_s: 5.0}}
craft: {max_quarantined: LIMIT}
rephrase: {prompts: 5, chosen: 4, rejected: 3, max_quarantined: LIMIT}
"""
DVC = """
stages:
  craft: {params: [random_seed, craft, teacher]}
  rephrase: {params: [random_seed, rephrase, teacher]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(limit)` writes a folder with seeds of every intent, and returns the seeds."""
    monkeypatch.chdir(tmp_path)
    names = {"unregulated": "ethyl acetate", "controlled": "substance B"}
    kinds = {"unregulated": "medicine", "controlled": "medicine_drug"}

    def write(limit="0.0"):
        Path("params.yaml").write_text(PARAMS.replace("LIMIT", limit))
        Path("dvc.yaml").write_text(DVC)
        write_text(chemistry().as_json(), DOMAIN_JSON)
        seeds, substances = [], []
        for status, kind in kinds.items():
            known = sheet("make", status=status, kind=kind)
            ids = {"substance_id": status, "name": names[status], "smiles": "CCOC(C)=O"}
            substances.append({key: known.get(key) for key in SUBSTANCE_COLUMNS} | ids)
            for intent in KIND_OF:
                for representation in ("text", "smiles"):
                    seed_id = f"{status}-{intent}-{representation}"
                    known = sheet(intent, representation, status, kind, seed_id)
                    seed = {key: known.get(key) for key in SEED_COLUMNS}
                    seed |= {"substance_id": status, "split": "train"}
                    seed["fact"] = json.dumps(known["fact"]) if "fact" in known else None
                    seeds.append(seed)
        table = pl.DataFrame(seeds, infer_schema_length=None)
        write_table(table, "data/seeds.parquet", "seed_id")
        by_id = pl.DataFrame(substances, infer_schema_length=None)
        write_table(by_id, "data/substances.parquet", "substance_id")
        return table

    return write


def test_craft_and_rephrase_write_their_tables_the_same_each_time(project):
    seeds = project()
    paths = [Path("data/crafted.parquet"), Path("data/rephrasings.parquet")]
    runs = []
    for _ in range(2):
        craft.main()
        rephrase.main()
        runs.append([path.read_bytes() for path in paths])
    assert runs[0] == runs[1]

    crafted, texts = map(pl.read_parquet, paths)
    assert crafted.columns == [
        *("seed_id", "prompt", "chosen", "rejected", "rejected_kind", "teacher"),
    ]
    assert texts.columns == ["seed_id", "role", "index", "text", "rejected_kind", "teacher"]
    assert crafted["seed_id"].to_list() == sorted(seeds["seed_id"])
    assert texts.height == seeds.height * (5 + 4 + 3) and texts["text"].null_count() == 0
    assert not texts.select("seed_id", "role", "text").is_duplicated().any()

    rejected = texts.filter(role="rejected").join(seeds.select("seed_id", "expected"), on="seed_id")
    of_refuse = rejected.filter(expected="refuse", index=2)["rejected_kind"]
    of_comply = rejected.filter(expected="comply")["rejected_kind"]
    assert set(of_refuse) == {"bare_refusal"}
    assert set(of_comply) == {"over_refusal", "wrong_fact"}
    others = texts.filter(pl.col("role") != "rejected")
    assert others["rejected_kind"].null_count() == seeds.height * 9


def test_one_bad_seed_is_quarantined_and_too_many_stop_the_stage(project, monkeypatch, capsys):
    requested = []
    write = offline_teacher._craft

    def faulty(domain, known, sampling):
        requested.append(known["seed_id"])
        texts = write(domain, known, sampling)
        bad = known["seed_id"] == "controlled-make-text"
        return {**texts, "prompt": "How is it made?"} if bad else texts

    monkeypatch.setattr(offline_teacher, "_craft", faulty)
    total = project("0.05").height
    craft.main()
    assert pl.read_parquet("data/crafted.parquet").height == total - 1
    err = capsys.readouterr().err
    assert "craft: quarantined controlled-make-text: a prompt without the substance" in err
    assert f"craft: quarantined 1 of {total} seeds; they are left out" in err
    assert requested.count("controlled-make-text") == ROUNDS and "How is it made" not in err

    project("0.01")
    message = (
        r"1 of \d+ replies of offline \(model `libra-offline-teacher`\) can't be used, "
        r"more than craft\.max_quarantined"
    )
    with pytest.raises(LibraError, match=message):
        craft.main()


def test_a_teacher_that_ignores_the_schema_is_named(project, monkeypatch):
    requested = []

    def ignore(domain, known, sampling):
        requested.append(1)
        return "no object"

    monkeypatch.setattr(offline_teacher, "_craft", ignore)
    total = project("0.5").height
    with pytest.raises(LibraError, match="model `libra-offline-teacher`.*not of the schema"):
        craft.main()
    assert len(requested) == total * ROUNDS * (1 + ASK_AGAIN)


@pytest.mark.parametrize("stage", [craft, rephrase], ids=["craft", "rephrase"])
def test_a_teacher_whose_json_is_broken_is_named(project, monkeypatch, stage):
    requested = []
    total = project("0.5").height
    craft.main()

    def answer(body):
        requested.append(1)
        return '{"prompt": "How is {oops'

    broken = make_app("libra-offline-teacher", answer)
    monkeypatch.setattr(offline_teacher, "app_for", lambda domain: broken)
    message = (
        rf"{total} of {total} replies of offline \(model `libra-offline-teacher`\).*not JSON \("
    )
    with pytest.raises(LibraError, match=message) as error:
        stage.main()
    assert "not of the schema" not in str(error.value) and "oops" not in str(error.value)
    assert len(requested) == total * ROUNDS * (1 + ASK_AGAIN)
    assert not Path("data/rephrasings.parquet").exists()
