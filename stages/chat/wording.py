"""How a server wants its requests worded: what it refused once is asked for in another way.

    wording = Wording()
    sent = wording.apply(body)
    if wording.adapt(sent, 400, error_object): ...    # apply the wording again and resend

The reply store's key is that of the body as it was before.
"""

from typing import Any

# Of structured output, from the one asked for first to the one that every server takes.
FORMS = ("json_schema", "json_object", "text")
_FORM_WORDS = ("response_format", "json_schema", "json schema", "json_object", "structured")


class Wording:
    """The wording that a server has taken so far."""

    def __init__(self):
        self._form = 0
        self._limit_key = "max_tokens"

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` as this server takes it."""
        body = dict(body)
        if self._limit_key != "max_tokens":
            body[self._limit_key] = body.pop("max_tokens")
        if "response_format" in body and self._form:
            if FORMS[self._form] == "text":
                del body["response_format"]
            else:
                body["response_format"] = {"type": FORMS[self._form]}
        return body

    def adapt(self, sent: dict[str, Any], status: int, error: dict[str, Any]) -> bool:
        """Whether another wording may avoid the `error` that `sent` got; `apply` then uses it."""
        if status not in (400, 422):
            return False
        text = f"{error.get('param')} {error.get('message')}".lower()
        if "max_completion_tokens" in text and "max_tokens" in sent:
            self._limit_key = "max_completion_tokens"
            return True
        form = (sent.get("response_format") or {}).get("type")
        if form and any(word in text for word in _FORM_WORDS):
            self._form = max(self._form, FORMS.index(form) + 1)
            return True
        return False
