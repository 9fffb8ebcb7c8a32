"""The result files of a batch: a JSON line per request, in any order.

    {"custom_id": KEY, "response": {"status_code": 200, "body": {a chat completion}}, "error": null}

results = list(read_results(text, keys, wire))    # [Result(KEY, {a chat completion}, 200, {})]
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from stages.chat.protocol import filtered, is_completion, is_filter, server_json
from stages.chat.wire import REAL_KEY, Wire


class Result(NamedTuple):
    """What became of a request: a chat completion, or an HTTP status (0: none) and error object."""

    key: str
    completion: dict[str, Any] | None
    status: int
    error: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether sending it again would fail in the same way."""
        return 400 <= self.status < 500 and self.status not in (408, 409, 429)


def read_results(text: str, keys: Collection[str], wire: Wire) -> Iterator[Result]:
    """The results of those `keys` that have a readable line."""
    for line in text.split("\n"):  # splitlines would cut a text at U+2028 too
        try:
            value = server_json(wire.masked(line, REAL_KEY))
        except ValueError:
            continue  # the request stays unanswered and is sent again
        key = _dict(value).get("custom_id")
        if isinstance(key, str) and key in keys:
            yield _result(key, value, wire.endpoint.model)


def failure(batch: dict[str, Any]) -> str:
    """The first reasons why a batch failed as a whole."""
    errors = _dict(batch.get("errors")).get("data")
    errors = errors if isinstance(errors, list) else []
    messages = [str(_dict(error).get("message")) for error in errors[:3]]
    return "; ".join(messages) or "no reason given"


def progress_of(batch: dict[str, Any]) -> str:
    """`12 of 60 done, `, or nothing if the server doesn't count."""
    counts = _dict(batch.get("request_counts"))
    completed, failed, total = (
        count if type(count := counts.get(key)) is int else 0
        for key in ("completed", "failed", "total")
    )
    return f"{completed + failed:,} of {total:,} done, " if total else ""


def _result(key: str, value: dict[str, Any], model: str) -> Result:
    response = _dict(value.get("response"))
    status, body = response.get("status_code"), response.get("body")
    status = status if type(status) is int else 0
    if status == 200 and is_completion(body):
        return Result(key, body, status, {})
    error = _dict(_dict(body).get("error")) or _dict(value.get("error"))
    return Result(key, filtered(model) if is_filter(error) else None, status, error)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
