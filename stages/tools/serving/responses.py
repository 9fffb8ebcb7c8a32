"""JSON responses of the served endpoint, and the keys of an ASGI scope under which its layers leave word for one another."""

import json
from typing import Any

from starlette.responses import Response

from stages.chat.offline import RequestError, error_object

SPOIL = "libra.spoil"  # a Spoil for the reply, left by fault_injection.py for server.py
FAULTS = (
    "libra.faults"  # the Faults of a batch's lines, left by fault_injection.py for batch_api.py
)


def json_response(
    value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        json.dumps(value, ensure_ascii=False), status, headers, media_type="application/json"
    )


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    return json_response(error_object(error), error.status, headers)
