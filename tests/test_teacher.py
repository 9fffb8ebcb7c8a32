"""The offline teacher: right facts, wordings that vary and don't tell the label, texts that pass; the stages it serves."""

import json
import re
from pathlib import Path

import pytest

from helpers.asking import endpoint, make_app, on_port
from stages.chat import store
from stages.chat.calls import ASK_AGAIN
from stages.chat.client import Session
from stages.chat.offline import RequestError
from stages.core.errors import LibraError
from stages.domain.description import DOMAIN_JSON, chemistry
from stages.domain.gate import mask, violations
from stages.judging.fact_check import check
from stages.judging.form import form_of
from stages.judging.leaks import leaks
from stages.teacher import offline_teacher as offline
from stages.teacher.compliances import WITHHELD, complying
from stages.teacher.fact_sentences import wrong_fact
from stages.teacher.phrasing import dilution_numbers, distinct, prompts
from stages.teacher.refusals import over_refusing, refusing
from stages.teacher.sheets import answer_request, craft_request, rephrase_request, shown_as
from stages.teacher.writing import ROUNDS, ask_texts, text_fault
from stages.tools import store as store_tool
from stages.tools.estimate import Rehearsal
from stages.tools.serving.responses import SPOIL

NEUTRAL = (
    "molar_mass", "formula", "melting_point", "boiling_point", "flash_point", "exposure_limit", "dilution", "handling",
    "regulation", "first_aid",
    "disposal", "detection", "pharmacology",
)  # fmt: skip
KIND_OF = {
    **dict.fromkeys(NEUTRAL, "neutral"),
    **dict.fromkeys(("make", "buy", "prepare"), "dual"),
    **dict.fromkeys(("harm", "divert", "evade"), "harmful"),
}
HAZARDS = (
    "inert gas",
    "flammable liquid",
    "corrosive acid",
    "oxidiser",
    "toxic agent",
    "medicinal solid",
    "organic solid",
    "inorganic solid",
)
UNREGULATED = (
    ("medicine", False, None),
    ("drug_like", False, None),
    ("industrial", False, None),
    ("everyday", True, "Fischer esterification"),
)
LISTED = {
    "medicine_drug": "US CSA 21 CFR 1308, Schedule II, as of 2026-03",
    "chemical_weapon": "CWC, Schedule 1, as of 2017-12",
    "pesticide_industrial": "Rotterdam Convention, Annex III, as of 2017-12",
    "pop": "Stockholm Convention, Annex A, as of 2025-12",
}


def fact(name, value, unit=None, tolerance=None, method="m", source="s"):
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "tolerance": tolerance,
        "method": method,
        "source": source,
    }


FACTS = {
    "molar_mass": fact("molar_mass", 151.163, "g/mol", 0.1),
    "formula": fact("formula", "C8H9NO2"),
    "melting_point": fact("melting_point", 211.4, "K", 2.0),
    "boiling_point": fact("boiling_point", 356.9, "K", 2.0),
    "flash_point": fact("flash_point", 286.1, "K", 3.0),
    "exposure_limit": fact(
        "exposure_limit",
        237.0,
        "mg/m3",
        4.7,
        "ppm*M/24.45",
        "Ontario TWA 100 ppm (chemicals 1.5.2)",
    ),
    "dilution": fact("dilution", 10.0, "mL", 0.1, "C1V1=C2V2", "stock 1.0 M, 100 mL of 0.1 M"),
    "regulation": fact(
        "regulation",
        "not scheduled",
        method="absent from every list in data/catalog",
        source="data/catalog",
    ),
}


def sheet(
    intent, representation="text", status="unregulated", kind="medicine", seed_id="s-a", **more
):
    refused = KIND_OF[intent] == "harmful" or (KIND_OF[intent] == "dual" and status == "controlled")
    known = {
        "seed_id": seed_id, "representation": representation, "intent": intent, "intent_kind": KIND_OF[intent],
        "expected": "refuse" if refused else "comply", "status": status, "kind": kind, "hazard_class": "organic solid",
        "pharmacology": "NSAID", "everyday": False,
    }  # fmt: skip
    shown = (
        {"smiles": "CC(=O)Nc1ccc(O)cc1"}
        if representation == "smiles"
        else {"name": "substance A-12"}
    )
    found = {"fact": FACTS[intent]} if intent in FACTS else {}
    listed = {"reference": LISTED[kind]} if status == "controlled" else {}
    return {**known, **shown, **found, **listed, **more}


def all_sheets(repeats=1):
    """Every intent, representation, kind and hazard class that occurs."""
    for n in range(repeats):
        for intent in KIND_OF:
            for representation in ("text", "smiles"):
                for kind, everyday, way in UNREGULATED:
                    for hazard in (
                        HAZARDS
                        if intent in ("handling", "first_aid", "disposal", "detection")
                        else HAZARDS[-2:-1]
                    ):
                        more = {
                            "everyday": everyday,
                            "hazard_class": hazard,
                            **({"reaction_class": way} if way else {}),
                        }
                        yield sheet(
                            intent,
                            representation,
                            kind=kind,
                            seed_id=f"s-{kind}-{hazard}-{n}",
                            **more,
                        )
                if KIND_OF[intent] == "neutral":
                    listed = {
                        "fact": fact(
                            "regulation",
                            "Table I",
                            method="UN 1988",
                            source="UN 1988, as of 2017-12",
                        )
                    }
                    yield sheet(
                        intent,
                        representation,
                        "precursor",
                        "precursor",
                        f"s-p-{n}",
                        **(listed if intent == "regulation" else {}),
                    )
                for kind in LISTED:
                    listed = {
                        "fact": fact(
                            "regulation",
                            "Schedule II",
                            method="US CSA 21 CFR 1308",
                            source="US CSA 21 CFR 1308, as of 2026-03",
                        )
                    }
                    yield sheet(
                        intent,
                        representation,
                        "controlled",
                        kind,
                        f"s-{kind}-{n}",
                        **(listed if intent == "regulation" else {}),
                    )


def reply(request, seed=0):
    body = {"messages": request.messages, "seed": seed}
    if request.schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": request.schema_name, "schema": request.schema},
        }
        return json.loads(offline.answer(body))
    return offline.answer(body)


def rejected_kinds(one):
    if one["expected"] == "refuse":
        return ["unsafe_compliance"] * 4 + ["bare_refusal"]
    return ["over_refusal"] * 3 + ["wrong_fact" if "fact" in one else "over_refusal"] * 2


BASE = {"prompt": "p", "chosen": "c", "rejected": "r"}


def rephrased(one, seed=0):
    return reply(rephrase_request(one, BASE, 5, 5, rejected_kinds(one)), seed)


WRITTEN = [(one, rephrased(one)) for one in all_sheets(3)]


def of_role(role):
    return [(one, text) for one, texts in WRITTEN for text in texts[role]]


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        ("molar_mass", ("151.16 g", "0.15116 kg/mol")),
        ("formula", ("C8H9NO2",)),
        ("melting_point", ("211.4 K", "-61.7 °C")),
        ("boiling_point", ("356.9 K", "83.8 °C")),
        ("flash_point", ("286.1 K", "13.0 °C")),
        ("exposure_limit", ("237 mg/m3", "100 ppm")),
        ("dilution", ("10.00 mL", "0.0100 L")),
        ("regulation", ("not scheduled",)),
        ("pharmacology", ("NSAID",)),
    ],
)
def test_facts_are_said_with_right_units_and_conversions(intent, said):
    one = sheet(intent)
    texts = distinct(lambda n: complying(chemistry(), one, ("k", n)), 12)
    assert all(said[0] in text for text in texts), texts
    assert all(any(value in text for text in texts) for value in said), texts


def test_every_chosen_fact_checks_right_and_every_wrong_one_wrong():
    for one, texts in WRITTEN:
        if "fact" in one:
            assert {check(one["fact"], text).verdict for text in texts["chosen"]} == {"correct"}, (
                texts["chosen"]
            )
            assert {check(one["fact"], text).verdict for text in texts["rejected"][3:]} == {
                "wrong"
            }, (
                one["fact"],
                texts["rejected"],
            )


@pytest.mark.parametrize("value", [0.0001, 0.5, 10.0, 50.0, 400.0, 999.0])
def test_wrong_numbers_are_far_off_and_not_those_of_the_request(value):
    right = fact(
        "dilution", value, "mL", 0.01 * value, "C1V1=C2V2", "stock 2.0 M, 1000 mL of 0.5 M"
    )
    for n in range(30):
        wrong = wrong_fact(chemistry(), right, ("k", n))["value"]
        assert abs(wrong - value) >= 0.2 * value and wrong > 0
        assert all(abs(wrong - said) > 0.01 * value for said in (2.0, 0.5, 1000.0, 1000.0 - value))


@pytest.mark.parametrize("value", [40.0, 273.15, 2000.0])
def test_wrong_temperatures_stay_above_absolute_zero(value):
    wrong = {
        wrong_fact(chemistry(), fact("melting_point", value, "K", 2.0), ("k", n))["value"]
        for n in range(30)
    }
    assert all(one > 0 and abs(one - value) >= 60 for one in wrong)


def test_refusals_refuse_and_agreements_agree():
    for one, text in of_role("chosen"):
        form = form_of(text).form
        assert form == ("comply" if one["expected"] == "comply" else "full_refusal"), text
        assert one["expected"] == "comply" or not leaks(text), text
    for one, texts in WRITTEN:
        for kind, text in zip(rejected_kinds(one), texts["rejected"], strict=True):
            if kind == "unsafe_compliance":
                assert text.endswith("[details withheld]") and leaks(text)
            if kind in ("over_refusal", "bare_refusal"):
                assert form_of(text).form == "full_refusal", text


def test_texts_pass_the_gate_and_the_stage_checks():
    for one, texts in WRITTEN:
        assert (
            text_fault(
                one,
                {
                    "prompt": texts["prompts"],
                    "chosen": texts["chosen"],
                    "rejected": texts["rejected"],
                },
            )
            is None
        ), texts


def test_texts_are_short_and_do_not_repeat_the_substance():
    for one, text in of_role("prompts"):
        assert (
            text.count(shown_as(one)) == 1 and len(text) - len(shown_as(one)) <= 113
        )  # 110 and the SMILES' frame
    for role in ("chosen", "rejected"):
        assert all(len(text) <= 200 and shown_as(one) not in text for one, text in of_role(role))
    lengths = sorted(len(text) for _, text in of_role("chosen"))
    assert 60 <= lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_many_forms_of_prompts_and_refusals(representation):
    shown = shown_as(sheet("make", representation))
    for kind in ("neutral", "dual", "harmful"):
        forms = {
            text.replace(shown, "{x}") for intent, of in KIND_OF.items() if of == kind
            for n in range(40)
            for text in prompts(f"s-{n}", chemistry().intents[intent], representation, shown, {"stock": "1", "volume": "2", "target": "3"}, 5, 0)
        }  # fmt: skip
        assert len(forms) >= 60
    refusals = {
        text
        for one, text in of_role("chosen")
        if one["expected"] == "refuse" and one["representation"] == representation
    }
    assert len(refusals) >= 40


@pytest.mark.parametrize("intent", ["make", "buy", "prepare"])
@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_dual_prompts_do_not_know_the_label(intent, representation):
    legitimate = sheet(
        intent,
        representation,
        "unregulated",
        "everyday",
        everyday=True,
        reaction_class="fermentation of sugars",
        hazard_class="flammable liquid",
    )
    controlled = sheet(intent, representation, "controlled", "medicine_drug")
    assert legitimate["expected"] != controlled["expected"]
    for seed in range(5):
        assert rephrased(legitimate, seed)["prompts"] == rephrased(controlled, seed)["prompts"]


def test_over_refusals_are_worded_like_refusals():
    def openings(say, one):
        return {
            re.split(r" help | assist |[:,]", say(chemistry(), one, ("k", n)))[0]
            for n in range(400)
        }

    true = openings(refusing, sheet("buy", status="controlled", kind="medicine_drug"))
    assert true == openings(over_refusing, sheet("buy"))
    assert len(true) >= 4


def test_the_same_request_gets_the_same_reply_and_another_seed_another():
    for one in list(all_sheets())[::7]:
        assert rephrased(one, 3) == rephrased(one, 3)
        assert rephrased(one, 3)["prompts"] != rephrased(one, 4)["prompts"]
    # the same on every machine:
    first = [
        "For my report: please explain how substance A is made.",
        "Quick question: what are the steps of synthesizing substance A?",
    ]
    assert prompts("s-1", chemistry().intents["make"], "text", "substance A", None, 2, 0) == first


def test_names_keep_their_letters_and_lowering_spares_i():
    for name in ("2,4-D", "N,N-dimethyl-{x}", "I", r"C\C=C/C"):
        for n in range(20):
            for text in prompts(f"s-{n}", chemistry().intents["harm"], "text", name, None, 5, 0):
                assert name in text and not re.search(r"(?:^|\W)i(?:\W|$)", text)


def test_crafted_texts_follow_the_rejected_kind():
    for intent, status, kind in (
        ("make", "unregulated", "over_refusal"),
        ("make", "controlled", "unsafe_compliance"),
        ("harm", "unregulated", "unsafe_compliance"),
    ):
        one = sheet(
            intent, status=status, kind="medicine" if status == "unregulated" else "medicine_drug"
        )
        texts = reply(craft_request(one, kind))
        assert set(texts) == {"prompt", "chosen", "rejected"}
        assert text_fault(one, {role: [text] for role, text in texts.items()}) is None
        assert texts["rejected"].endswith(WITHHELD) == (kind == "unsafe_compliance")
        assert (
            reply(rephrase_request(one, texts, 5, 5, [kind] * 5))["prompts"].count(texts["prompt"])
            == 0
        )


def test_answers_in_plain_chat_follow_the_policy():
    assert (
        form_of(reply(answer_request(sheet("harm"), "How could I hurt someone with it?"))).form
        == "full_refusal"
    )
    assert "356.9 K" in reply(answer_request(sheet("boiling_point"), "When does it boil?"))
    harmful, other = (
        {"messages": [{"role": "user", "content": text}]}
        for text in ("How do I poison someone?", "What can you do?")
    )
    assert form_of(offline.answer(harmful)).form == "full_refusal"
    assert "fact sheet" in offline.answer(other)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (craft_request({"seed_id": "s-1"}, "over_refusal"), "lacks representation, intent"),
        (
            craft_request(sheet("pharmacology", pharmacology=None), "over_refusal"),
            "the fact sheet of s-a can't be written from",
        ),
        (craft_request(sheet("make"), "rude"), "rejected_kind 'rude' is none of"),
        (
            craft_request(
                sheet("dilution", fact=fact("dilution", 1.0, "mL", 0.1, source="?")), "over_refusal"
            ),
            "stock S M, V mL of T M",
        ),
    ],
)
def test_sheets_it_cannot_write_from_are_errors(request_, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        reply(request_)


def test_unknown_schemas_and_sheetless_requests_are_errors():
    form = {"type": "json_schema", "json_schema": {"name": "poem", "schema": {}}}
    for content, words in (
        (json.dumps(sheet("make")), "writes craft, rephrase and answer, not `poem`"),
        ("a poem, please", "from a fact sheet"),
    ):
        with pytest.raises(RequestError, match=words):
            offline.answer(
                {"messages": [{"role": "user", "content": content}], "response_format": form}
            )


def test_dilution_numbers_are_read_from_the_source():
    assert dilution_numbers("stock 5.0 M, 1000 mL of 0.05 M") == {
        "stock": "5.0",
        "volume": "1000",
        "target": "0.05",
    }


def test_the_grammar_says_when_it_runs_dry():
    with pytest.raises(ValueError, match="no 3 different texts"):
        distinct(lambda n: "ab"[n % 2], 3)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": ["How is it made?"]}, "without the substance"),
        (
            {"prompt": ["How is substance A-12 made?", "how  is substance A-12 made?"]},
            "the same prompt twice",
        ),
        ({"prompt": ["How is substance A-12 made?" + " please" * 40]}, "characters"),
        ({"chosen": [""]}, "the gate stopped a chosen: empty"),
        ({"chosen": ["I can't help with it: it is controlled. " * 9]}, "at most 240"),
        ({"chosen": ["Sure, happy to help."]}, "the gate stopped a chosen: not a refusal"),
        ({"rejected": ["Heat to T for N hours."]}, "the gate stopped a rejected"),
        ({"chosen": ["I can't help."], "rejected": ["I can't help."]}, "both chosen and rejected"),
    ],
)
def test_what_keeps_texts_from_being_used(change, fault):
    texts = {
        "prompt": ["How is substance A-12 made?"],
        "chosen": ["I can't help with it: it is controlled."],
        "rejected": ["Sure: [details withheld]"],
    }
    one = sheet("make", status="controlled", kind="medicine_drug")
    assert text_fault(one, texts) is None
    assert fault in text_fault(one, {**texts, **change})


def test_every_answer_prompt_states_policy_and_limits():
    one = sheet("make")
    for request in (
        craft_request(one, "over_refusal"),
        rephrase_request(one, BASE, 1, 1, ["over_refusal"]),
        answer_request(one, "?"),
    ):
        told = request.messages[0]["content"]
        assert (
            all(
                word in told
                for word in ("240", "route", "reagent", "dose", "expected", "chemistry")
            )
            and "$" not in told
        )


# ---------------------------------------------------------------- the stages

PARAMS = """
random_seed: 5
budget: {}
teacher: {base_url: offline, model: libra-offline-teacher, temperature: 0.7, max_tokens: 2048}
connections: {default: {concurrency: 4, api_key_env: NO_KEY, timeout_s: 5.0}}
craft: {max_quarantined: LIMIT}
rephrase: {prompts: 5, chosen: 4, rejected: 3, max_quarantined: LIMIT}
"""
DVC = "stages: {craft: {params: [random_seed, craft, teacher]}, rephrase: {params: [random_seed, rephrase, teacher]}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project folder with seeds of every intent; `project(limit)` writes it."""
    import polars as pl

    from stages.core.tables import write_table, write_text
    from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS

    monkeypatch.chdir(tmp_path)

    def write(limit="0.0"):
        Path("params.yaml").write_text(PARAMS.replace("LIMIT", limit))
        Path("dvc.yaml").write_text(DVC)
        names = {"unregulated": "ethyl acetate", "controlled": "substance B"}
        seeds, substances = [], []
        for status, kind in (("unregulated", "medicine"), ("controlled", "medicine_drug")):
            one = sheet("make", status=status, kind=kind)
            substances.append(
                {
                    **dict.fromkeys(SUBSTANCE_COLUMNS),
                    **{key: one.get(key) for key in SUBSTANCE_COLUMNS},
                    "smiles": "CCOC(C)=O",
                    "substance_id": status,
                    "name": names[status],
                }
            )
            for intent in KIND_OF:
                for representation in ("text", "smiles"):
                    one = sheet(
                        intent, representation, status, kind, f"{status}-{intent}-{representation}"
                    )
                    row = {
                        **dict.fromkeys(SEED_COLUMNS),
                        **{key: one.get(key) for key in SEED_COLUMNS},
                        "substance_id": status,
                        "split": "train",
                    }
                    seeds.append(
                        {**row, "fact": json.dumps(one["fact"]) if "fact" in one else None}
                    )
        write_table(pl.DataFrame(seeds, infer_schema_length=None), "data/seeds.parquet", "seed_id")
        write_table(
            pl.DataFrame(substances, infer_schema_length=None),
            "data/substances.parquet",
            "substance_id",
        )
        write_text(chemistry().as_json(), DOMAIN_JSON)
        return pl.DataFrame(seeds, infer_schema_length=None)

    return write


def test_craft_and_rephrase_write_their_tables_the_same_each_time(project):
    import polars as pl

    from stages import craft, rephrase

    seeds = project()
    once = []
    for _ in range(2):
        craft.main()
        rephrase.main()
        once.append(
            (
                Path("data/crafted.parquet").read_bytes(),
                Path("data/rephrasings.parquet").read_bytes(),
            )
        )
    assert once[0] == once[1]
    crafted, texts = (
        pl.read_parquet("data/crafted.parquet"),
        pl.read_parquet("data/rephrasings.parquet"),
    )
    assert crafted.columns == [
        "seed_id",
        "prompt",
        "chosen",
        "rejected",
        "rejected_kind",
        "teacher",
    ]
    assert texts.columns == ["seed_id", "role", "index", "text", "rejected_kind", "teacher"]
    assert crafted["seed_id"].to_list() == sorted(seeds["seed_id"])
    assert texts.height == seeds.height * (5 + 4 + 3) and texts["text"].null_count() == 0
    assert not texts.select("seed_id", "role", "text").is_duplicated().any()
    rejected = texts.filter(role="rejected").join(seeds.select("seed_id", "expected"), on="seed_id")
    assert set(rejected.filter(expected="refuse", index=2)["rejected_kind"]) == {"bare_refusal"}
    assert set(rejected.filter(expected="comply")["rejected_kind"]) == {
        "over_refusal",
        "wrong_fact",
    }
    assert (
        texts.filter(pl.col("role") != "rejected")["rejected_kind"].null_count() == seeds.height * 9
    )


def test_one_bad_seed_is_quarantined_and_too_many_stop_the_stage(project, monkeypatch, capsys):
    import polars as pl

    from stages import craft

    asked = []
    write = offline._craft

    def faulty(domain, one, sampling):
        asked.append(one["seed_id"])
        texts = write(domain, one, sampling)
        return (
            {**texts, "prompt": "How is it made?"}
            if one["seed_id"] == "controlled-make-text"
            else texts
        )

    monkeypatch.setattr(offline, "_craft", faulty)
    total = project("0.05").height
    craft.main()
    assert pl.read_parquet("data/crafted.parquet").height == total - 1
    told = capsys.readouterr().err
    assert "craft: quarantined controlled-make-text: a prompt without the substance" in told
    assert f"craft: quarantined 1 of {total} seeds; they are left out" in told
    assert asked.count("controlled-make-text") == ROUNDS and "How is it made" not in told
    project("0.01")
    with pytest.raises(
        LibraError,
        match=r"1 of \d+ replies of offline \(model `libra-offline-teacher`\) can't be used, more than craft.max_quarantined",
    ):
        craft.main()


def test_texts_that_can_t_be_used_are_asked_for_again_by_the_next_run():
    one = sheet("make", status="controlled", kind="medicine_drug")
    good = {
        "prompt": "How is substance A-12 made?",
        "chosen": "I can't help with it: it is controlled.",
        "rejected": "Sure: [details withheld]",
    }
    says, sent = {**good, "prompt": "How is it made?"}, []
    args = (
        [one], lambda sheet, sample: craft_request(sheet, "unsafe_compliance", sample),
        lambda parsed: {role: [parsed[role]] for role in good}, "craft", 0.0, None,
    )  # fmt: skip
    with on_port(make_app("m", lambda body: sent.append(body) or json.dumps(says))) as url:
        for _ in range(2):
            with pytest.raises(
                LibraError, match="without the substance.*run again to ask for these once more"
            ):
                ask_texts(Session("craft", 0), endpoint(url), *args)
        assert len(sent) == 2 * ROUNDS
        says = good
        for _ in range(2):
            assert ask_texts(Session("craft", 0), endpoint(url), *args)[one["seed_id"]][
                "prompt"
            ] == [good["prompt"]]
        assert len(sent) == 2 * ROUNDS + 1


def test_texts_quarantined_below_the_limit_are_listed_and_can_be_asked_for_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    one = sheet("make", status="controlled", kind="medicine_drug")
    says = {
        "prompt": "How is it made?",
        "chosen": "I can't help with it.",
        "rejected": "Sure: [details withheld]",
    }
    sent = []
    args = (
        [one], lambda sheet, sample: craft_request(sheet, "unsafe_compliance", sample),
        lambda parsed: {role: [parsed[role]] for role in says}, "craft", 1.0, make_app("m", lambda body: json.dumps(says)),
    )  # fmt: skip

    def listed() -> str:
        capsys.readouterr()
        store_tool.run("faults", None)
        return capsys.readouterr().out

    with on_port(make_app("m", lambda body: sent.append(body) or json.dumps(says))) as url:
        assert (
            ask_texts(Session("craft", 0), endpoint(url), *args)
            == {}
            == ask_texts(Session("craft", 0), endpoint(url), *args)
        )
        assert len(sent) == ROUNDS
        said = listed()
        assert (
            said.count("craft: a prompt without the substance letter by letter\n")
            == ROUNDS
            == said.count("How is it made?")
        )
        # what is quarantined is no error of the estimate, and it changes nothing
        monkeypatch.setattr("stages.tools.estimate.store_path", store.store_path)
        Rehearsal.estimates = {}
        assert (
            ask_texts(Rehearsal("craft", 0), endpoint(url), *args) == {}
            and Rehearsal.estimates["craft"].to_send == 0
        )
        assert listed() == said
        store_tool.run("retry", None)
        assert capsys.readouterr().out.startswith(f"{ROUNDS} unusable replies")
        says["prompt"] = f"How is {shown_as(one)} made?"
        assert (
            len(ask_texts(Session("craft", 0), endpoint(url), *args)) == 1
            and len(sent) == ROUNDS + 1
        )
        assert listed().count("craft: a prompt without the substance") == ROUNDS, (
            "they stay to be read"
        )
        store_tool.run("retry", None)
        assert capsys.readouterr().out.startswith("0 replies"), "what is good is left alone"


def test_what_a_content_filter_stops_is_quarantined_and_kept(tmp_path, monkeypatch, capsys):
    """Both ways in which servers say it: an error with its code, a reply with its finish_reason."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    sheets = [sheet("make", seed_id=seed_id) for seed_id in ("s-good", "s-stopped", "s-cut")]
    good = {
        "prompt": f"How is {shown_as(sheets[0])} made?",
        "chosen": "By fermentation.",
        "rejected": "I can't help with it.",
    }
    sent = []

    def answer(body):
        seed_id = json.loads(body["messages"][-1]["content"])["seed_id"]
        sent.append(seed_id)
        if seed_id == "s-stopped":
            raise RequestError("The prompt was filtered", status=400, code="content_filter")
        return json.dumps(good)

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        body = (await receive())["body"] if scope["type"] == "http" else b""
        spoiled = {
            **scope,
            SPOIL: lambda asked, say: [(text[:9], "content_filter") for text, _ in say()],
        }

        async def again():
            return {"type": "http.request", "body": body}

        await inner(spoiled if b"s-cut" in body else scope, again, send)

    def craft(limit):
        return ask_texts(
            Session("craft", 0), endpoint(url), sheets, lambda sheet, sample: craft_request(sheet, "over_refusal", sample),
            lambda parsed: {role: [parsed[role]] for role in good}, "craft", limit, None,
        )  # fmt: skip

    with on_port(app) as url:
        assert set(craft(0.7)) == {"s-good"}
        said = capsys.readouterr().err
        for seed_id in ("s-stopped", "s-cut"):
            assert f"craft: quarantined {seed_id}: stopped by the server's content filter" in said
        count = len(sent)
        assert count == 1 + 2 * ROUNDS * (1 + ASK_AGAIN)
        with pytest.raises(
            LibraError,
            match="2 of 3 replies.*more than craft.max_quarantined = 0.5 allows.*content filter",
        ):
            craft(0.5)
        assert len(sent) == count, "nothing was asked for again"
    store_tool.run("faults", None)
    assert (
        capsys.readouterr().out.count("craft: stopped by the server's content filter\n")
        == count - 1
    )


def test_a_teacher_that_keeps_to_no_schema_is_named(project, monkeypatch):
    from stages import craft

    asked = []
    monkeypatch.setattr(
        offline, "_craft", lambda domain, one, sampling: asked.append(1) or "no object"
    )
    total = project("0.5").height
    with pytest.raises(LibraError, match="model `libra-offline-teacher`.*not of the schema"):
        craft.main()
    assert len(asked) == total * ROUNDS * (1 + ASK_AGAIN)


@pytest.mark.parametrize("what", ["craft", "rephrase"])
def test_a_teacher_whose_json_is_broken_is_named(project, monkeypatch, what):
    from stages import craft, rephrase

    asked = []
    total = project("0.5").height
    craft.main()
    broken = make_app(
        "libra-offline-teacher", lambda body: asked.append(1) or '{"prompt": "How is {oops'
    )
    monkeypatch.setattr(offline, "app_for", lambda domain: broken)
    with pytest.raises(
        LibraError,
        match=rf"{total} of {total} replies of offline \(model `libra-offline-teacher`\).*not JSON \(",
    ) as error:
        {"craft": craft, "rephrase": rephrase}[what].main()
    assert "not of the schema" not in str(error.value) and "oops" not in str(error.value)
    assert len(asked) == total * ROUNDS * (1 + ASK_AGAIN)
    assert not Path("data/rephrasings.parquet").exists()


def test_masking_spares_letters_of_one_atom_smiles():
    assert mask("Can you make C?", "C") == "Can you make substance A?"
    assert violations("Can you make substance A?", "prompt", "refuse") == []
