"""JSON responses of the server, and the scope keys by which its ASGI layers pass things on."""

import json
from typing import Any

from starlette.responses import Response

from stages.chat.offline import RequestError, error_object

SPOIL = "libra.spoil"  # a Spoil for the reply: from fault_injection.py to server.py
FAULTS = "libra.faults"  # the Faults of a batch's lines: from fault_injection.py to batch_api.py


def json_response(
    value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`value` as a JSON response."""
    text = json.dumps(value, ensure_ascii=False)
    return Response(text, status, headers, media_type="application/json")


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    """`error` as a response in OpenAI's shape."""
    return json_response(error_object(error), error.status, headers)
