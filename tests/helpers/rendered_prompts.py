"""Every kind of request to a teacher, a judge or a candidate, as tests/golden/prompts.json has it.

A reply is stored under a hash of the whole request, so each byte of these decides whether a paid
reply is found again. After a change on purpose, rewrite the file with

    python -m tests.helpers.rendered_prompts
"""

import json
from pathlib import Path

from stages.chat.protocol import ChatRequest, Endpoint, request_body
from stages.chat.records import reply_key
from stages.domain.description import chemistry
from stages.judging.questions import (
    conduct_request,
    helpfulness_request,
    paper_request,
    preference_request,
)
from stages.teacher.sheets import answer_request, craft_request, fact_sheet, rephrase_request

GOLDEN = Path(__file__).parents[1] / "golden" / "prompts.json"
RANDOM_SEED = 1
ENDPOINT = Endpoint(
    base_url="https://llm.example/v1",
    model="some-model",
    temperature=0.7,
    max_tokens=1024,
    concurrency=1,
    api_key_env="NO_KEY",
    timeout_s=1.0,
)
SUBSTANCE = {
    "substance_id": "substance-a",
    "name": "substance A",
    "smiles": "C",
    "kind": "industrial",
    "family": "alcohols",
    "hazard_class": "flammable liquid",
    "everyday": False,
    "reaction_class": None,
    "pharmacology": None,
}
FACT = {
    "name": "melting_point",
    "value": 300.0,
    "unit": "K",
    "tolerance": 2.0,
    "method": "METHOD",
    "source": "a table",
}
COMPLY = {
    "seed_id": "substance-a-melting-point-text",
    "representation": "text",
    "intent": "melting_point",
    "intent_kind": "neutral",
    "expected": "comply",
    "status": "unregulated",
    "reference": None,
    "fact": json.dumps(FACT),
}
REFUSE = {
    "seed_id": "substance-a-make-smiles",
    "representation": "smiles",
    "intent": "make",
    "intent_kind": "dual",
    "expected": "refuse",
    "status": "controlled",
    "reference": "LAW, Schedule I, as of 2026-01",
    "fact": None,
}
PROMPT = "What is known about substance A?"
ANSWER = (
    'It melts at 300 K. Ünïcode, "quotes", <b>tags</b> and hid\u200bden characters are kept or cut.'
)


def requests() -> dict[str, ChatRequest]:
    """One request of each kind by name, about the placeholder "substance A"."""
    domain = chemistry()
    comply, refuse = fact_sheet(COMPLY, SUBSTANCE), fact_sheet(REFUSE, SUBSTANCE)
    base = {"prompt": PROMPT, "chosen": "Yes.", "rejected": "No."}
    over, unsafe = ["over_refusal", "wrong_fact"], ["unsafe_compliance", "bare_refusal"]
    return {
        "craft, comply": craft_request(comply, over[0], domain=domain),
        "craft, refuse": craft_request(refuse, unsafe[0], domain=domain),
        "craft, asked again": craft_request(refuse, unsafe[0], 1, domain),
        "rephrase, comply": rephrase_request(comply, base, 5, 4, over, domain=domain),
        "rephrase, refuse": rephrase_request(refuse, base, 5, 4, unsafe, domain=domain),
        "answer, comply": answer_request(comply, PROMPT, domain=domain),
        "answer, refuse": answer_request(refuse, PROMPT, domain=domain),
        "judge, helpfulness": helpfulness_request(PROMPT, ANSWER, domain),
        "judge, conduct": conduct_request(PROMPT, ANSWER, domain),
        "judge, paper": paper_request(ANSWER, domain),
        "judge, preference": preference_request(PROMPT, ANSWER, "I can't help.", domain),
        "candidate": ChatRequest([{"role": "user", "content": PROMPT}]),
    }


def rendered() -> str:
    """The text of tests/golden/prompts.json: of each request its reply's key and its body.

    Messages are lists of lines, so that a diff shows the line that changed.
    """
    by_name = {}
    for name, request in requests().items():
        body = request_body(ENDPOINT, request, RANDOM_SEED)
        key = reply_key(ENDPOINT.base_url, body, request.sample_index)
        messages = [
            message | {"content": message["content"].splitlines(keepends=True)}
            for message in request.messages
        ]
        by_name[name] = {"key": key, **body, "messages": messages}
    return json.dumps(by_name, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(rendered(), encoding="utf-8")
