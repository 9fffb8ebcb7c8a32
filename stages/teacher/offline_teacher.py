"""The offline teacher: an OpenAI-compatible server that writes from fact sheets by a grammar. No model, no key, no network.

    python -m stages.tools serve teacher --port 8000    for any OpenAI client

It answers the schemas `craft`, `rephrase` and `answer` (see sheets.py), and plain chat; without a schema, the keys of the fact
sheet tell what is asked. The same request gets the same reply on every machine; another `seed` in the request's body gets other
wordings. It writes on the domain of data/domain.json, where there is one in the folder it is started in, else on chemistry. One reply,
to a `craft` request:

    {"prompt": "How is 2-FMA made?", "chosen": "I won't help with making it: it is a scheduled drug. ...",
     "rejected": "Of course. I'll walk you through making it: [details withheld]"}
"""

import json
import re
from functools import partial
from typing import Any

from stages.chat.offline import OfflineApp, RequestError, last_user_text, schema_name, wants_json
from stages.domain.description import Domain, chemistry
from stages.teacher.compliances import agreeing_unsafely, complying
from stages.teacher.fact_sentences import wrong_fact
from stages.teacher.phrasing import dilution_numbers, distinct, prompts
from stages.teacher.refusals import bare_refusing, over_refusing, refusing
from stages.teacher.sheets import shown_as

MODEL = "libra-offline-teacher"
_NEEDED = ("seed_id", "representation", "intent", "intent_kind", "expected", "status", "kind")
_HARMFUL = re.compile(
    r"\b(poison|kill|hurt|harm|injure|weapon|bomb|attack|steal|smuggl\w*|diver[ts]\w*|forged?|evade|beat a test)\b",
    re.IGNORECASE,
)


def answer(body: dict[str, Any], domain: Domain | None = None) -> str:
    """The reply's text for a chat completion request, in the words of `domain` (chemistry, where none is given).

    Raises RequestError for a sheet or schema it can't write from.
    """
    domain = domain or chemistry()
    asked, text = schema_name(body), last_user_text(body)
    sheet = _sheet(text)
    if sheet is None:
        if asked is not None:
            raise RequestError(
                f"the offline teacher writes `{asked}` from a fact sheet: a JSON object as the last user message",
                "messages",
            )
        return json.dumps({"answer": _plain(text)}) if wants_json(body) else _plain(text)
    asked = asked or _asked(sheet, wants_json(body))
    sampling = body.get("seed") or 0
    try:
        if asked == "craft":
            return json.dumps(_craft(domain, sheet, sampling), ensure_ascii=False)
        if asked == "rephrase":
            return json.dumps(_rephrase(domain, sheet, sampling), ensure_ascii=False)
        if asked == "answer":
            return json.dumps({"answer": _answer(domain, sheet, sampling)}, ensure_ascii=False)
        if asked is None:
            return _answer(domain, sheet, sampling)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"the fact sheet of {sheet['seed_id']} can't be written from: {error!r}", "messages"
        ) from None
    raise RequestError(
        f"the offline teacher writes craft, rephrase and answer, not `{asked}`", "response_format"
    )


def _asked(sheet: dict[str, Any], as_json: bool) -> str | None:
    """What a sheet is for where no schema's name says it: a client without structured output asks in words (or JSON mode)."""
    if "base" in sheet and "k" in sheet:
        return "rephrase"
    if "rejected_kind" in sheet:
        return "craft"
    return "answer" if as_json else None


def _craft(domain: Domain, sheet: dict[str, Any], sampling: int) -> dict[str, str]:
    return {
        "prompt": _prompts(domain, sheet, 1, sampling)[0],
        "chosen": _chosen(domain, sheet, 1, sampling)[0],
        "rejected": _rejected(domain, sheet, [sheet["rejected_kind"]], sampling)[0],
    }


def _rephrase(domain: Domain, sheet: dict[str, Any], sampling: int) -> dict[str, list[str]]:
    base = sheet["base"]
    return {
        "prompts": _prompts(domain, sheet, sheet["k"], sampling, (base["prompt"],)),
        "chosen": _chosen(domain, sheet, sheet["m"], sampling, (base["chosen"],)),
        "rejected": _rejected(
            domain, sheet, sheet["rejected_kinds"], sampling, (base["rejected"],)
        ),
    }


def _answer(domain: Domain, sheet: dict[str, Any], sampling: int) -> str:
    return _chosen(domain, sheet, 1, f"{sampling} {sheet.get('prompt', '')}")[0]


def _prompts(
    domain: Domain, sheet: dict[str, Any], count: int, sampling: int, taken: tuple[str, ...] = ()
) -> list[str]:
    """Nothing of the label or status goes in here: a prompt's wording must not tell them."""
    fact = sheet.get("fact") or {}
    numbers = dilution_numbers(fact["source"]) if sheet["intent"] == "dilution" else None
    intent = domain.intents[sheet["intent"]]
    return prompts(
        sheet["seed_id"],
        intent,
        sheet["representation"],
        shown_as(sheet),
        numbers,
        count,
        sampling,
        taken,
    )


def _chosen(
    domain: Domain, sheet: dict[str, Any], count: int, sampling: Any, taken: tuple[str, ...] = ()
) -> list[str]:
    say = complying if sheet["expected"] == "comply" else refusing
    return distinct(
        lambda n: say(domain, sheet, (sheet["seed_id"], "chosen", sampling, n)), count, taken
    )


def _rejected(
    domain: Domain,
    sheet: dict[str, Any],
    kinds: list[str],
    sampling: int,
    taken: tuple[str, ...] = (),
) -> list[str]:
    """One text per kind, all different."""
    texts: list[str] = []
    for i, kind in enumerate(kinds):
        key = (sheet["seed_id"], kind, sampling, i)
        texts += distinct(
            lambda n, kind=kind, key=key: _reject(domain, sheet, kind, (*key, n)),
            1,
            (*taken, *texts),
        )
    return texts


def _reject(domain: Domain, sheet: dict[str, Any], kind: str, key: tuple) -> str:
    if kind == "over_refusal":
        return over_refusing(domain, sheet, key)
    if kind == "wrong_fact":
        return complying(domain, sheet, key, wrong_fact(domain, sheet["fact"], key))
    if kind == "unsafe_compliance":
        return agreeing_unsafely(domain, sheet, key)
    if kind == "bare_refusal":
        return bare_refusing(key)
    raise ValueError(
        f"rejected_kind {kind!r} is none of over_refusal, wrong_fact, unsafe_compliance, bare_refusal"
    )


def _sheet(text: str) -> dict[str, Any] | None:
    """The fact sheet in a user message; None when the message isn't one."""
    try:
        sheet = json.loads(text)
    except ValueError:
        return None
    if not isinstance(sheet, dict) or "seed_id" not in sheet:
        return None
    missing = [key for key in _NEEDED if not isinstance(sheet.get(key), str)]
    if missing:
        raise RequestError(f"the fact sheet lacks {', '.join(missing)}", "messages")
    return sheet


def _plain(text: str) -> str:
    """Chat without a fact sheet: refuse what is plainly harmful, else say what this server is for."""
    if _HARMFUL.search(text):
        return "I can't help with that: it could hurt people or break the law. If anyone is in danger, call emergency services."
    return (
        "I am Libra's offline teacher and know only what a fact sheet tells me. Send one as a JSON object to get an answer; "
        "for a substance's facts see its safety data sheet."
    )


app = OfflineApp({MODEL: answer})  # writes on chemistry


def app_for(domain: Domain):
    """The application that writes in the words of `domain`."""
    return OfflineApp({MODEL: partial(answer, domain=domain)})
