"""Unusable texts of a teacher: their faults, asking again, quarantine, and the list of faults."""

import json

import pytest

from helpers.asking import endpoint, make_app, on_port
from helpers.fact_sheets import sheet
from stages.chat import store
from stages.chat.calls import ASK_AGAIN
from stages.chat.client import Session
from stages.chat.offline import OfflineApp, RequestError
from stages.core.errors import LibraError
from stages.domain.gate import mask, violations
from stages.teacher.sheets import craft_request, shown_as
from stages.teacher.writing import ROUNDS, ask_texts, text_fault
from stages.tools import store as store_tool
from stages.tools.estimate import Rehearsal
from stages.tools.serving.responses import SPOIL

REFUSED = sheet("make", status="controlled", kind="medicine_drug")
GOOD = {
    "prompt": "How is substance A-12 made?",
    "chosen": "I can't help with it: it is controlled.",
    "rejected": "Sure: [details withheld]",
}
BAD = GOOD | {"prompt": "How is it made?"}


def craft(url, sheets=(REFUSED,), limit=0.0, app=None, session=Session):
    """The usable texts that the endpoint at `url` writes for `sheets`."""

    def request(known, sample_index):
        kind = "over_refusal" if known["expected"] == "comply" else "unsafe_compliance"
        return craft_request(known, kind, sample_index)

    def by_role(parsed):
        return {role: [parsed[role]] for role in GOOD}

    return ask_texts(
        session("craft", 0), endpoint(url), list(sheets), request, by_role, "craft", limit, app
    )


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
def test_faults_of_texts_are_named(change, fault):
    texts = {role: [text] for role, text in GOOD.items()}
    assert text_fault(REFUSED, texts) is None
    assert fault in text_fault(REFUSED, {**texts, **change})


def test_masking_spares_letters_of_one_atom_smiles():
    assert mask("Can you make C?", "C") == "Can you make substance A?"
    assert violations("Can you make substance A?", "prompt", "refuse") == []


def test_unusable_texts_are_asked_for_again_by_the_next_run():
    texts, received = dict(BAD), []

    def answer(body):
        received.append(body)
        return json.dumps(texts)

    with on_port(make_app("m", answer)) as url:
        for _ in range(2):
            message = "without the substance.*run again to ask for these once more"
            with pytest.raises(LibraError, match=message):
                craft(url)
        assert len(received) == 2 * ROUNDS
        texts.update(GOOD)
        for _ in range(2):
            assert craft(url)[REFUSED["seed_id"]]["prompt"] == [GOOD["prompt"]]
        assert len(received) == 2 * ROUNDS + 1


def test_quarantined_texts_are_listed_and_can_be_asked_for_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    texts, received = dict(BAD), []
    fault = "craft: a prompt without the substance letter by letter\n"

    def answer(body):
        received.append(body)
        return json.dumps(texts)

    def output_of(command):
        capsys.readouterr()
        store_tool.run(command)
        return capsys.readouterr().out

    with on_port(make_app("m", answer)) as url:
        assert craft(url, limit=1.0) == {} == craft(url, limit=1.0)
        assert len(received) == ROUNDS
        listed = output_of("faults")
        assert listed.count(fault) == ROUNDS == listed.count("How is it made?")

        # The estimate doesn't take what is quarantined for an error, and it changes nothing.
        monkeypatch.setattr("stages.tools.estimate.store_path", store.store_path)
        Rehearsal.estimates = {}
        app = OfflineApp({"m": lambda body: json.dumps(texts)})
        assert craft(url, limit=1.0, app=app, session=Rehearsal) == {}
        assert Rehearsal.estimates["craft"].to_send == 0
        assert output_of("faults") == listed

        assert output_of("retry").startswith(f"{ROUNDS} unusable replies")
        texts["prompt"] = f"How is {shown_as(REFUSED)} made?"
        assert len(craft(url, limit=1.0)) == 1 and len(received) == ROUNDS + 1
        assert output_of("faults").count(fault) == ROUNDS, "they remain readable"
        assert output_of("retry").startswith("0 unusable replies"), "usable ones stay"


def test_what_a_content_filter_stops_is_quarantined_and_kept(tmp_path, monkeypatch, capsys):
    """Servers report it in two ways: as an error with its code, or as a finish_reason."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    sheets = [sheet("make", seed_id=seed_id) for seed_id in ("s-good", "s-stopped", "s-cut")]
    good = GOOD | {"chosen": "By fermentation.", "rejected": "I can't help with it."}
    received = []

    def answer(body):
        seed_id = json.loads(body["messages"][-1]["content"])["seed_id"]
        received.append(seed_id)
        if seed_id == "s-stopped":
            raise RequestError("The prompt was filtered", status=400, code="content_filter")
        return json.dumps(good)

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        body = (await receive())["body"] if scope["type"] == "http" else b""

        def cut(asked, write):
            return [(text[:9], "content_filter") for text, _ in write()]

        async def replay():
            return {"type": "http.request", "body": body}

        await inner({**scope, SPOIL: cut} if b"s-cut" in body else scope, replay, send)

    with on_port(app) as url:
        assert set(craft(url, sheets, limit=0.7)) == {"s-good"}
        err = capsys.readouterr().err
        for seed_id in ("s-stopped", "s-cut"):
            assert f"craft: quarantined {seed_id}: stopped by the server's content filter" in err
        count = len(received)
        assert count == 1 + 2 * ROUNDS * (1 + ASK_AGAIN)
        message = "2 of 3 replies.*more than craft.max_quarantined = 0.5 allows.*content filter"
        with pytest.raises(LibraError, match=message):
            craft(url, sheets, limit=0.5)
        assert len(received) == count, "nothing was asked for again"
    store_tool.run("faults")
    listed = capsys.readouterr().out
    assert listed.count("craft: stopped by the server's content filter\n") == count - 1
