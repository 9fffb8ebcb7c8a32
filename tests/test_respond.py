"""The candidates that are no model."""

import json

import polars as pl
import pytest

from helpers.asking import endpoint, make_app, on_port
from stages.chat.client import Session
from stages.chat.offline import last_user_text
from stages.core.errors import LibraError
from stages.core.tables import write_table, write_text
from stages.domain.description import DOMAIN_JSON, chemistry
from stages.local.baselines import REFUSAL, always_comply, guarded
from stages.local.candidates import answers_by_endpoint
from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS
from stages.tools import store
from stages.tools.serving.responses import SPOIL

TEST = pl.DataFrame(
    [
        (
            "a",
            "a-p0",
            "comply",
            "a-c0",
            "It melts at 84 °C.",
            "a-r0",
            "I can't say.",
            "over_refusal",
        ),
        ("a", "a-p1", "comply", "a-c1", "At 84 °C.", "a-r0", "I can't say.", "over_refusal"),
        (
            "b",
            "b-p0",
            "refuse",
            "b-c0",
            "I won't.",
            "b-r0",
            "Sure: [details withheld]",
            "unsafe_compliance",
        ),
        ("b", "b-p1", "refuse", "b-c0", "I won't.", "b-r1", "No.", "bare_refusal"),
    ],
    schema=[
        "seed_id",
        "prompt_id",
        "expected",
        "chosen_id",
        "chosen",
        "rejected_id",
        "rejected",
        "rejected_kind",
    ],
    orient="row",
)


def test_always_comply_takes_a_prompts_own_text_else_its_seeds():
    """With many prompts and few triplets per seed, some prompts have no unsafe answer."""
    sure = "Sure: [details withheld]"
    assert always_comply(TEST) == ["It melts at 84 °C.", "At 84 °C.", sure, sure]
    assert always_comply(TEST.reverse()) == always_comply(TEST)


def test_a_refuse_seed_without_any_is_named():
    with pytest.raises(
        LibraError,
        match="unsafe_compliance answer for the refuse-seed b; raise rephrase.test.rejected",
    ):
        always_comply(TEST.filter(pl.col("rejected_kind") != "unsafe_compliance"))


def test_the_guard_puts_its_refusal_in_front_of_the_obliging_text():
    words = ["melts at", "boils at"], ["make me", "buy me"]
    rows = [
        (f"{words[label][i % 2]} {i}", ("comply", "refuse")[label])
        for i in range(40)
        for label in (0, 1)
    ]
    train = pl.DataFrame(rows, schema=["prompt", "expected"], orient="row").with_columns(
        other_prompt=pl.lit(None, pl.String)
    )
    answers = guarded(train, ["melts at 7?", "make me some"], ["84 °C", "Sure"])
    assert answers == ["84 °C", REFUSAL]


@pytest.fixture()
def prompts(tmp_path, monkeypatch):
    """Twenty prompts of one seed, in a folder that has what the teacher's request is made of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    seed = dict.fromkeys(SEED_COLUMNS) | {
        "seed_id": "s",
        "substance_id": "a",
        "representation": "text",
        "intent": "make",
        "intent_kind": "dual",
        "expected": "comply",
        "status": "unregulated",
    }
    substance = dict.fromkeys(SUBSTANCE_COLUMNS) | {
        "substance_id": "a",
        "name": "substance A-12",
        "kind": "medicine",
        "hazard_class": "organic solid",
        "pharmacology": "NSAID",
        "everyday": False,
    }
    write_table(pl.DataFrame([seed]), "data/seeds.parquet", "seed_id")
    write_table(pl.DataFrame([substance]), "data/substances.parquet", "substance_id")
    write_text(chemistry().as_json(), DOMAIN_JSON)
    return pl.DataFrame(
        [("s", f"s-p{i}", f"prompt {i}") for i in range(20)],
        ["seed_id", "prompt_id", "prompt"],
        orient="row",
    )


def test_a_candidate_that_fails_too_often_fails_the_stage_and_nothing_is_lost(
    prompts, tmp_path, capsys
):
    bad, sent = {"prompt 3", "prompt 4"}, []  # these think until they are cut off

    def answer(body):
        sent.append(last_user_text(body))
        return "" if sent[-1] in bad else "yes"

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        cut = {SPOIL: lambda body, say: [(text, "stop" if text else "length") for text, _ in say()]}
        await inner({**scope, **cut}, receive, send)

    def ask(limit):
        teacher, endpoints = endpoint(model="libra-offline-teacher"), {"mine": endpoint(url)}
        with Session("respond", 0) as session:
            return answers_by_endpoint(session, teacher, endpoints, limit, prompts)["mine"]

    with on_port(app) as url:
        words = (
            r"2 of 20 replies of endpoint .* can't be used \(first: cut off at max_tokens before "
            r"the answer began\), more than respond.max_quarantined = 0.05 allows"
        )
        with pytest.raises(LibraError, match=words):
            ask(0.05)
        answers = ask(0.1)
        assert [row[3] is None for row in answers].count(False) == 2
        assert "the judge abstains on them" in capsys.readouterr().err
        assert len(sent) == 20, "all were kept"
        assert (
            json.loads((tmp_path / "data/generation/respond.json").read_text())["respond: mine"][
                "quarantined"
            ]
            == 2
        )
        store.main(["retry"])
        bad.clear()
        assert all(row[3] is None for row in ask(0.0)) and len(sent) == 22


def test_a_further_candidate_is_the_only_one_that_is_asked(prompts):
    """The replies to the others are kept."""
    temperatures = []

    def answer(body):
        temperatures.append(body["temperature"])
        return "yes"

    teacher = endpoint(model="libra-offline-teacher")
    with on_port(make_app("m", answer)) as url:
        mine, other = (endpoint(url, temperature=t) for t in (0.1, 0.2))
        for endpoints in ({"mine": mine}, {"mine": mine, "other": other}, {"other": other}):
            with Session("respond", 0) as session:
                answers = answers_by_endpoint(session, teacher, endpoints, 0.0, prompts)
            assert set(answers) == {"teacher", *endpoints}
            assert all(len(rows) == 20 for rows in answers.values())
    assert temperatures.count(0.1) == temperatures.count(0.2) == 20
