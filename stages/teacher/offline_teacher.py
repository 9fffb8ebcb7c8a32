"""The offline teacher: an OpenAI-compatible server that writes from fact sheets by a grammar.

    python -m stages.tools serve teacher --port 8000    for any OpenAI client

No model, no key, no network. It answers the schemas `craft`, `rephrase` and `answer` (sheets.py)
and plain chat; without a schema, the keys of the fact sheet decide which. The same request gets
the same reply on every machine; another `seed` in the request's body gets other wordings. A server
uses the domain of data/domain.json, if its working folder has one, else chemistry. One reply, to a
`craft` request:

    {"prompt": "How is 2-FMA made?",
     "chosen": "I won't help with making it: it is a scheduled drug. ...",
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
_REQUIRED = ("seed_id", "representation", "intent", "intent_kind", "expected", "status", "kind")
_HARMFUL = re.compile(
    r"\b(poison|kill|hurt|harm|injure|weapon|bomb|attack|steal|smuggl\w*|diver[ts]\w*|forged?"
    r"|evade|beat a test)\b",
    re.IGNORECASE,
)


def answer(body: dict[str, Any], domain: Domain | None = None) -> str:
    """The reply's text for a chat completion request, in the words of `domain` (chemistry).

    Raises RequestError for a fact sheet or schema that it can't write from.
    """
    domain = domain or chemistry()
    kind, text = schema_name(body), last_user_text(body)
    sheet = _sheet(text)
    if sheet is None:
        if kind is not None:
            raise RequestError(
                f"the offline teacher writes `{kind}` from a fact sheet: send it as a JSON object "
                "in the last user message",
                "messages",
            )
        return json.dumps({"answer": _plain(text)}) if wants_json(body) else _plain(text)

    kind = kind or _kind_of(sheet, wants_json(body))
    sampling = body.get("seed") or 0
    try:
        if kind == "craft":
            return json.dumps(_craft(domain, sheet, sampling), ensure_ascii=False)
        if kind == "rephrase":
            return json.dumps(_rephrase(domain, sheet, sampling), ensure_ascii=False)
        if kind == "answer":
            return json.dumps({"answer": _answer(domain, sheet, sampling)}, ensure_ascii=False)
        if kind is None:
            return _answer(domain, sheet, sampling)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"the offline teacher can't write from the fact sheet of {sheet['seed_id']}: {error!r}",
            "messages",
        ) from None
    raise RequestError(
        f"the offline teacher writes craft, rephrase and answer, not `{kind}`", "response_format"
    )


def _kind_of(sheet: dict[str, Any], as_json: bool) -> str | None:
    """The kind of request for a sheet without a schema's name; None is an answer in plain text.

    Clients without structured output describe the schema in words, or ask in JSON mode.
    """
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
    base, kinds = sheet["base"], sheet["rejected_kinds"]
    return {
        "prompts": _prompts(domain, sheet, sheet["k"], sampling, (base["prompt"],)),
        "chosen": _chosen(domain, sheet, sheet["m"], sampling, (base["chosen"],)),
        "rejected": _rejected(domain, sheet, kinds, sampling, (base["rejected"],)),
    }


def _answer(domain: Domain, sheet: dict[str, Any], sampling: int) -> str:
    return _chosen(domain, sheet, 1, f"{sampling} {sheet.get('prompt', '')}")[0]


def _prompts(
    domain: Domain, sheet: dict[str, Any], count: int, sampling: int, taken: tuple[str, ...] = ()
) -> list[str]:
    """`count` prompts. Label and status stay out: a prompt's wording must not give them away."""
    fact = sheet.get("fact") or {}
    numbers = dilution_numbers(fact["source"]) if sheet["intent"] == "dilution" else None
    return prompts(
        sheet["seed_id"],
        domain.intents[sheet["intent"]],
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
    write = complying if sheet["expected"] == "comply" else refusing
    return distinct(
        lambda n: write(domain, sheet, (sheet["seed_id"], "chosen", sampling, n)), count, taken
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
        f"rejected_kind {kind!r} isn't one of over_refusal, wrong_fact, unsafe_compliance and "
        "bare_refusal"
    )


def _sheet(text: str) -> dict[str, Any] | None:
    """The fact sheet in a user message; None if the message isn't one."""
    try:
        sheet = json.loads(text)
    except ValueError:
        return None
    if not isinstance(sheet, dict) or "seed_id" not in sheet:
        return None
    missing = [key for key in _REQUIRED if not isinstance(sheet.get(key), str)]
    if missing:
        raise RequestError(f"the fact sheet lacks {', '.join(missing)}", "messages")
    return sheet


def _plain(text: str) -> str:
    """Chat without a fact sheet: refuse what is plainly harmful, else say what this server does."""
    if _HARMFUL.search(text):
        return (
            "I can't help with that: it could hurt people or break the law. "
            "If anyone is in danger, call emergency services."
        )
    return (
        "I am Libra's offline teacher and know only what a fact sheet tells me. Send one as a JSON "
        "object to get an answer; for a substance's facts see its safety data sheet."
    )


app = OfflineApp({MODEL: answer})  # about chemistry


def app_for(domain: Domain):
    """The application that writes in the words of `domain`."""
    return OfflineApp({MODEL: partial(answer, domain=domain)})
