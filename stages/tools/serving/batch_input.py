"""What clients send to the Batch API: multipart forms, and input files of a batch.

    form(content_type, body)["file"]      # ("requests.jsonl", b"...")
    lines, faults = await checked_lines(raw)

A line of an input file:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", ...}}
"""

import asyncio
from email.parser import HeaderParser
from typing import Any

from stages.chat.offline import RequestError, json_object

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_BYTES = 200 * 2**20


def form(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """{name: (file name, content)} of a multipart/form-data body. Raises RequestError.

    Starlette's own parser needs python-multipart, which nothing else here does.
    """
    boundary = HeaderParser().parsestr(f"Content-Type: {content_type}").get_param("boundary")
    if not content_type.startswith("multipart/form-data") or not isinstance(boundary, str):
        raise RequestError("send the file as multipart/form-data")
    *parts, tail = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not tail.startswith(b"--"):
        raise RequestError("the multipart body doesn't end with its boundary")

    fields = {}
    for part in parts[1:]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace"))
        name = str(headers.get_param("name", header="content-disposition"))
        fields[name] = (headers.get_filename(), content)
    return fields


async def checked_lines(raw: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines, faults) of an input file.

    A fault is {code, message, line, param}, as in the `errors` of a batch.
    """
    if len(raw) > MAX_BYTES:
        message = f"An input file may have {MAX_BYTES:,} bytes; this one has {len(raw):,}."
        return [], [_fault("file_too_large", message)]
    texts = raw.rstrip().splitlines()
    if not texts:
        return [], [_fault("empty_file", "The input file has no requests.")]
    if len(texts) > MAX_LINES:
        message = f"A batch may have {MAX_LINES:,} requests; the input file has {len(texts):,}."
        return [], [_fault("too_many_tasks", message)]

    lines: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    ids: set[str] = set()
    model = None
    for number, text in enumerate(texts, 1):
        if number % 1000 == 0:
            await asyncio.sleep(0)  # other requests get their turn
        try:
            line = json_object(text)
        except RequestError:
            message = "This line is not parseable as valid JSON."
            faults.append(_fault("invalid_json_line", message, number))
            continue
        model = model or _model(line)
        code, param, message = _line_fault(line, ids, model)
        if code:
            faults.append(_fault(code, message, number, param))
        else:
            lines.append(line)
            ids.add(line["custom_id"])
    return lines, faults


def checked_metadata(value: Any) -> dict[str, str] | None:
    """The `metadata` of a batch. Raises RequestError."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > 16:
        raise RequestError("`metadata` must be an object of at most 16 keys", "metadata")
    for key, text in value.items():
        if not isinstance(text, str) or len(text) > 512 or len(key) > 64:
            message = "`metadata` takes keys of up to 64 and texts of up to 512 characters"
            raise RequestError(message, "metadata")
    return value


def _line_fault(line: dict[str, Any], ids: set[str], model: Any) -> tuple[str | None, str, str]:
    """(code, param, message) of what is wrong with a line; the code is None if nothing is."""
    for key, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if not isinstance(line.get(key), kind):
            return "missing_required_parameter", key, f"Missing required parameter: '{key}'."
    if line["custom_id"] in ids:
        message = f"The custom_id '{line['custom_id']}' is in the file more than once."
        return "duplicate_custom_id", "custom_id", message
    if line["method"] != "POST":
        return "invalid_method", "method", "The method of a request must be POST."
    if line["url"] != ENDPOINT:
        message = f"The url of a request must be the batch's endpoint, {ENDPOINT}."
        return "url_mismatch", "url", message
    if _model(line) != model:
        message = f"All requests of a batch must have one model; the first has '{model}'."
        return "model_mismatch", "body.model", message
    return None, "", ""


def _model(line: dict[str, Any]) -> Any:
    return line["body"].get("model") if isinstance(line.get("body"), dict) else None


def _fault(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}
