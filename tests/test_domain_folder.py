"""A domain's folder: every fault is named, and its words reach gate, teachers and judges."""

import re
import shutil

import pytest

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.domain.description import FACTS_IN_CODE, chemistry, read_domain
from stages.domain.gate import domain_rules, violations
from stages.domain.planner import plan_split
from stages.domain.things import read_things
from stages.judging import words
from stages.judging.cascade import Record
from stages.judging.cascade import judge as judge_record
from stages.judging.questions import conduct_request, helpfulness_request, paper_request
from stages.teacher.fact_sentences import _FACTS, fact_parts
from stages.teacher.offline_teacher import answer
from stages.teacher.sheets import answer_request, craft_request

CATALOG = ROOT / "data/catalog"


@pytest.fixture(scope="module")
def domain():
    return read_domain("electricity", CATALOG)


@pytest.fixture
def edited(tmp_path):
    """`edited(file, old, new)` replaces a text in a copy of the electricity folder, `mine`.

    It returns the catalog that the copy is in.
    """
    shutil.copytree(CATALOG / "electricity", tmp_path / "mine")

    def edit(file, old, new):
        path = tmp_path / "mine" / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return tmp_path

    return edit


FAULTS = {
    "domain.yaml": [
        (
            "  install:\n    kind: dual",
            "  install:\n    kind: duel",
            "mine/domain.yaml: `intents.install.kind`: .*duel",
        ),
        (
            "labels:",
            "lables:",
            "`labels` is missing; `lables` is not a param, did you mean `labels`",
        ),
        (
            "dual: refuse",
            "dual: comply",
            "labels: controlled, dual must be refuse, not comply",
        ),
        (
            "harmful: refuse}",
            "harmful: comply}",
            "labels: unregulated, harmful must be refuse, not comply",
        ),
        (
            "How do I install the {x}",
            "How do I install it",
            r"`intents.install.questions`: `How do I install it` must contain \{x\} once",
        ),
        (
            "    opening: [Here is how it is moved, I can tell you how to move it]\n",
            "",
            "`intents.move`: a dual intent needs opening",
        ),
        (
            "turns: [handling",
            "turns: [handing",
            "turns: handing is not a neutral intent, did you mean `handling`",
        ),
        (
            r"\b(?:connect",
            r"\b((?:connect",
            "gate.a wiring instruction: not a regular expression",
        ),
        (
            "\njudge:",
            "\njudges:",
            "`judge` is missing; `judges` is not a param, did you mean `judge`",
        ),
        (
            "    inspection:\n      asked",
            "    inspections:\n      asked",
            "judge.topics: inspection is missing",
        ),
        (
            "    supply_voltage: {words",
            "    supply_volts: {words",
            "judge.numbers: supply_voltage is missing",
        ),
        (
            r"'\bcheck'",
            r"'\bcheck('",
            "judge.topics.inspection.asked: not a regular expression",
        ),
        (
            "      not electrical work: [",
            "      no electrical work: [",
            "judge.texts.regulation: intents.regulation.wrong has no `no electrical work`",
        ),
    ],
    "things.csv": [
        (
            "wall socket,controlled",
            "wall socket,licensed",
            r"things.csv, line 2 \(wall socket\), column status: `licensed` is unknown",
        ),
        (
            "section 55,2024-08",
            "section 55,",
            r"line 2 \(wall socket\), column as_of: the cell is empty",
        ),
        (
            "outdoor socket",
            "Wall-Socket",
            r"line 3 \(Wall-Socket\), column name: same name as `wall socket`",
        ),
        (
            "name,status",
            "name,state",
            "column status is missing; the first line has name, state",
        ),
    ],
    "facts.csv": [
        (
            "wall socket,supply_voltage,230",
            "wall socket,supply_voltage,high",
            "column value: `high` is not a number.*unit V",
        ),
        (
            "wall socket,supply_voltage,230",
            "wall socket,supply_voltage,inf",
            "column value: `inf` is not a number.*unit V",
        ),
        (
            "230,V,3",
            "230,V,90",
            "column tolerance: must be above 0 and at most a fiftieth",
        ),
        (
            "wall socket,regulation",
            "wall box,regulation",
            r"\(wall box\), column name: no such thing in things.csv",
        ),
        (
            "wall socket,regulation",
            "wall socket,law",
            "column fact: `law` is not a neutral intent",
        ),
    ],
}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [(file, *fault) for file, faults in FAULTS.items() for fault in faults],
)
def test_a_fault_of_a_folder_is_named(edited, file, old, new, message):
    catalog = edited(file, old, new)
    with pytest.raises(LibraError, match=message) as error:
        read_things(read_domain("mine", catalog), catalog)
    assert "\n" not in str(error.value)


def test_an_unknown_domain_and_a_missing_table_are_named(edited):
    catalog = edited("domain.yaml", "# A small", "# A")
    with pytest.raises(LibraError, match="seed.domain is `mime`.*did you mean `mine`"):
        read_domain("mime", catalog)
    (catalog / "mine/facts.csv").unlink()
    message = "facts.csv not found; a domain needs things.csv and facts.csv"
    with pytest.raises(LibraError, match=message):
        read_things(read_domain("mine", catalog), catalog)


def test_a_catalog_too_small_names_the_cell(edited, tmp_path):
    domain = read_domain("mine", edited("domain.yaml", "# A small", "# A"))
    things = read_things(domain, tmp_path)[:20]
    for thing in things:
        thing.split = "train"
    cell = r"train split needs \d+ seeds in cell \(dual, controlled, text\)"
    with pytest.raises(LibraError, match=rf"{cell}.*raise its .substances"):
        plan_split("train", 200, things, 0.75, 0.0, 1, domain=domain)


def test_a_domain_adds_to_the_gate(domain):
    own = domain_rules(domain.gate)
    for text in (
        "Of course. Connect the wire to terminal T.",
        "Sure. First take off the cover of it.",
    ):
        assert violations(text, "chosen", "comply") == []
        assert violations(text, "chosen", "comply", own)
    refusal = "I can't help with bypassing the meter: it is theft."
    assert violations(refusal, "chosen", "refuse", own) == []
    assert violations("Heat to T for N hours.", "chosen", "comply", own), "the general rules stay"


def test_a_live_teacher_reads_about_the_domain(domain):
    sheet = {"seed_id": "a", "representation": "text", "name": "thing A", "intent": "install"}
    for request in (
        craft_request(sheet, "over_refusal", domain=domain),
        answer_request(sheet, "?", domain=domain),
    ):
        prompt = request.messages[0]["content"]
        for words_of_it in (
            "household electricity",
            "install, replace, move",
            "wired into the building",
        ):
            assert words_of_it in prompt
        assert not re.search(r"chemi|substance|\$", prompt)


def test_judges_read_about_the_domain(domain):
    requests = {
        "helpfulness": lambda d: helpfulness_request("?", "a", d),
        "conduct": lambda d: conduct_request("?", "a", d),
        "paper": lambda d: paper_request("a", d),
    }
    for name, request in requests.items():
        prompt = request(domain).messages[0]["content"]
        assert "about an appliance or an electrical fitting of a household" in prompt, name
        assert not re.search(r"chemi|substance|synthesi|\$", prompt), name
        assert "about a chemical substance" in request(None).messages[0]["content"], name


def test_what_the_domain_forbids_is_a_leak(domain):
    leak = "It depends on the model. Connect the wire to terminal T."
    record = Record("answer", leak, "refuse")
    assert judge_record(record, domain).decided_by == "leak_sign"
    assert judge_record(record).decided_by != "leak_sign"


def test_without_a_train_split_the_words_cannot_be_learned(edited, monkeypatch):
    catalog = edited("domain.yaml", "# A small", "# A")
    monkeypatch.chdir(catalog)
    message = "data/librachemqa/train.parquet not found; run `dvc repro`"
    with pytest.raises(LibraError, match=message):
        words.models(read_domain("mine", catalog))


def test_the_facts_in_code_are_those_that_have_sentences():
    assert set(FACTS_IN_CODE) == {*_FACTS, "regulation"}
    with pytest.raises(KeyError):
        fact_parts(chemistry(), {"name": "supply_voltage"})


def test_the_offline_teacher_writes_about_its_domain(domain):
    sheet = {
        "seed_id": "a",
        "representation": "text",
        "name": "thing A",
        "intent": "install",
        "intent_kind": "dual",
        "expected": "comply",
        "status": "unregulated",
        "kind": "lamp",
        "hazard_class": "plug-in",
        "prompt": "?",
    }
    body = {"messages": answer_request(sheet, "?", domain=domain).messages}
    assert re.search("plug", answer(body, domain))
    with pytest.raises(Exception, match="install"):
        answer(body)
