"""/v1/files and /v1/batches of the server in server.py, as OpenAI's API has them: `Batches(complete).routes()`.

A line of an input file, and what becomes of it in the output file:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [...]}}
    {"id": "batch_req_5f", "custom_id": "a", "response": {"status_code": 200, "request_id": "9b", "body": {...}}, "error": null}

A line whose status isn't 200, or that wasn't reached before the batch was cancelled or expired, goes to the error file instead.
Lines come in another order than they were sent in, as OpenAI warns. All is kept in memory, and ids differ from one start of the
server to the next. A batch is worked on by a task of the event loop that created it, or that last asked for it.
"""

import asyncio
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import HeaderParser
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stages.chat.offline import RequestError, error_object, json_object
from stages.tools.serving.fault_injection import Faults
from stages.tools.serving.responses import FAULTS, json_response

ENDPOINT = "/v1/chat/completions"
WINDOW_S = 24 * 60 * 60
MAX_LINES = 50_000
MAX_BYTES = 200 * 2**20
SLICE = 16  # lines answered before other requests get their turn
FINAL = ("failed", "completed", "expired", "cancelled")
_EARLY = {
    "cancelled": "The batch was cancelled before this request was executed.",
    "expired": "This request could not be executed before the completion window expired.",
}


@dataclass
class _Batch:
    """`shown` is the batch object of the API; `waiting` are lines still to be answered, the last one first."""

    shown: dict[str, Any]
    raw: bytes
    faults: Faults | None
    waiting: list[dict[str, Any]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    task: asyncio.Task | None = None

    def step(self, status: str) -> None:
        self.shown |= {"status": status, f"{status}_at": int(time.time())}

    def early_end(self) -> str | None:
        """How the batch ends before its last line, if it does."""
        if self.shown["status"] == "cancelling":
            return "cancelled"
        most = self.faults.expire_after if self.faults else None
        if time.time() >= self.shown["expires_at"] or (
            most is not None and len(self.output) + len(self.errors) >= most
        ):
            return "expired"
        return None


class Batches:
    """The files and batches of one application. `complete(body, spoil)` gives a chat completion or raises RequestError."""

    def __init__(self, complete: Callable[..., dict[str, Any]]):
        self._complete = complete
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, _Batch] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files", self._list_files, methods=["GET"]),
            Route("/v1/files/{id}", self._file, methods=["GET"]),
            Route("/v1/files/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self._content, methods=["GET"]),
            Route("/v1/batches", self._create, methods=["POST"]),
            Route("/v1/batches", self._list_batches, methods=["GET"]),
            Route("/v1/batches/{id}", self._retrieve, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self._cancel, methods=["POST"]),
        ]

    async def _upload(self, request: Request) -> Response:
        form = _form(request.headers.get("content-type", ""), await request.body())
        if form.get("purpose", (None, b""))[1] != b"batch":
            raise RequestError("`purpose` must be `batch`", "purpose")
        name, content = form.get("file", (None, b""))
        if name is None:
            raise RequestError("`file` is missing", "file")
        return json_response(self._keep(name, content, "batch"))

    async def _list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        files = [file for file, _ in self._files.values() if purpose in (None, file["purpose"])]
        return _page(
            request,
            files if request.query_params.get("order") == "asc" else files[::-1],
            10_000,
            10_000,
        )

    async def _file(self, request: Request) -> Response:
        return json_response(self._found_file(request.path_params["id"])[0])

    async def _content(self, request: Request) -> Response:
        return Response(
            self._found_file(request.path_params["id"])[1], media_type="application/octet-stream"
        )

    async def _delete(self, request: Request) -> Response:
        file, _ = self._found_file(request.path_params["id"])
        del self._files[file["id"]]
        return json_response({"id": file["id"], "object": "file", "deleted": True})

    async def _create(self, request: Request) -> Response:
        asked = json_object(await request.body())
        for key, known in (("endpoint", ENDPOINT), ("completion_window", "24h")):
            if asked.get(key) != known:
                raise RequestError(f"`{key}` must be `{known}`", key)
        file, raw = self._files.get(str(asked.get("input_file_id")), ({}, b""))
        if file.get("purpose") != "batch":
            raise RequestError("`input_file_id` names no file of purpose `batch`", "input_file_id")
        now = int(time.time())
        shown = {
            "id": f"batch_{uuid4().hex}",
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": file["id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + WINDOW_S,
            **{
                f"{step}_at": None
                for step in (
                    "finalizing",
                    "completed",
                    "failed",
                    "expired",
                    "cancelling",
                    "cancelled",
                )
            },
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": _metadata(asked.get("metadata")),
        }
        batch = self._batches[shown["id"]] = _Batch(shown, raw, request.scope.get(FAULTS))
        return self._reply(batch)

    async def _list_batches(self, request: Request) -> Response:
        for batch in self._batches.values():
            self._go_on(batch)
        return _page(request, [batch.shown for batch in reversed(self._batches.values())], 20, 100)

    async def _retrieve(self, request: Request) -> Response:
        await asyncio.sleep(
            0
        )  # in process nothing else waits: a client that only polls would keep the batch from going on
        return self._reply(self._found_batch(request))

    async def _cancel(self, request: Request) -> Response:
        batch = self._found_batch(request)
        if batch.shown["status"] in FINAL:
            raise RequestError(
                f"Cannot cancel a batch with status '{batch.shown['status']}'.", status=409
            )
        if batch.shown["status"] != "cancelling":
            batch.step("cancelling")
        return self._reply(batch)

    def _reply(self, batch: _Batch) -> Response:
        self._go_on(batch)
        return json_response(batch.shown)

    def _go_on(self, batch: _Batch) -> None:
        """Work on an unfinished batch, also one whose event loop is gone: in process, each run of a client has its own."""
        if batch.shown["status"] not in FINAL and (batch.task is None or batch.task.done()):
            batch.task = asyncio.create_task(self._work(batch))

    async def _work(self, batch: _Batch) -> None:
        """From `validating` to the end. May be stopped at any `await` and begun again."""
        shown, counts = batch.shown, batch.shown["request_counts"]
        if shown["status"] == "validating":
            await asyncio.sleep(0)
            lines, errors = await _validated(batch.raw)
            if shown["status"] == "validating" and errors:
                shown["errors"] = {"object": "list", "data": errors}
                return batch.step("failed")
            batch.waiting = sorted(
                lines, key=lambda line: blake2b(line["custom_id"].encode(), digest_size=8).digest()
            )
            counts["total"] = len(lines)
            if shown["status"] == "validating":
                batch.step("in_progress")
        end = None
        while batch.waiting:
            if (counts["completed"] + counts["failed"]) % SLICE == 0:
                await asyncio.sleep(batch.faults.wait() if batch.faults else 0)
            if end := batch.early_end():
                break
            self._answer(batch, batch.waiting.pop())
        if end is None and shown["status"] == "in_progress":
            batch.step("finalizing")
            await asyncio.sleep(0)
        end = end or ("cancelled" if shown["status"] == "cancelling" else "completed")
        for line in batch.waiting:
            self._note(batch, line, None, {"code": f"batch_{end}", "message": _EARLY[end]})
        for key, lines, name in (
            ("output_file_id", batch.output, "output"),
            ("error_file_id", batch.errors, "error"),
        ):
            if lines:
                content = "".join(f"{line}\n" for line in lines).encode()
                shown[key] = self._keep(f"{shown['id']}_{name}.jsonl", content, "batch_output")[
                    "id"
                ]
        batch.step(end)

    def _answer(self, batch: _Batch, line: dict[str, Any]) -> None:
        try:
            status, body = (
                200,
                self._complete(
                    line["body"], batch.faults.for_line(line["body"]) if batch.faults else None
                ),
            )
        except RequestError as error:
            status, body = error.status, error_object(error)
        except Exception:  # a bug in the application: told on stderr, and one failed line of many, as on any server
            traceback.print_exc()
            status, body = 500, error_object(RequestError("The server had an error", status=500))
        self._note(
            batch, line, {"status_code": status, "request_id": uuid4().hex, "body": body}, None
        )

    def _note(
        self,
        batch: _Batch,
        line: dict[str, Any],
        response: dict[str, Any] | None,
        error: dict[str, str] | None,
    ) -> None:
        good = response is not None and response["status_code"] == 200
        told = {
            "id": f"batch_req_{uuid4().hex}",
            "custom_id": line["custom_id"],
            "response": response,
            "error": error,
        }
        (batch.output if good else batch.errors).append(json.dumps(told, ensure_ascii=False))
        batch.shown["request_counts"]["completed" if good else "failed"] += 1

    def _keep(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        """Keeps a file; returns its file object."""
        file = {
            "id": f"file-{uuid4().hex}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[file["id"]] = (file, content)
        return file

    def _found_file(self, file_id: str) -> tuple[dict[str, Any], bytes]:
        if file_id not in self._files:
            raise RequestError(f"No such File object: {file_id}", "id", 404)
        return self._files[file_id]

    def _found_batch(self, request: Request) -> _Batch:
        batch_id = request.path_params["id"]
        if batch_id not in self._batches:
            raise RequestError(f"No batch found with id '{batch_id}'.", "id", 404)
        return self._batches[batch_id]


async def _validated(raw: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines, faults) of an input file; a fault is {code, message, line, param} as in the `errors` of a batch."""
    if len(raw) > MAX_BYTES:
        return [], [
            _fault(
                "file_too_large",
                f"An input file may have {MAX_BYTES:,} bytes; this one has {len(raw):,}.",
            )
        ]
    texts = raw.rstrip().splitlines()
    if not texts:
        return [], [_fault("empty_file", "The input file has no requests.")]
    if len(texts) > MAX_LINES:
        return [], [
            _fault(
                "too_many_tasks",
                f"A batch may have {MAX_LINES:,} requests; the input file has {len(texts):,}.",
            )
        ]
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
            faults.append(
                _fault("invalid_json_line", "This line is not parseable as valid JSON.", number)
            )
            continue
        model = model or _model(line)
        code, param, message = _line_fault(line, ids, model)
        if code:
            faults.append(_fault(code, message, number, param))
        else:
            lines.append(line)
            ids.add(line["custom_id"])
    return lines, faults


def _line_fault(line: dict[str, Any], ids: set[str], model: Any) -> tuple[str | None, str, str]:
    """(code, param, message) of what is wrong with a line; the code is None when nothing is."""
    for key, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if not isinstance(line.get(key), kind):
            return "missing_required_parameter", key, f"Missing required parameter: '{key}'."
    if line["custom_id"] in ids:
        return (
            "duplicate_custom_id",
            "custom_id",
            f"The custom_id '{line['custom_id']}' is in the file more than once.",
        )
    if line["method"] != "POST":
        return "invalid_method", "method", "The method of a request must be POST."
    if line["url"] != ENDPOINT:
        return (
            "url_mismatch",
            "url",
            f"The url of a request must be the batch's endpoint, {ENDPOINT}.",
        )
    if _model(line) != model:
        return (
            "model_mismatch",
            "body.model",
            f"All requests of a batch must have one model; the first has '{model}'.",
        )
    return None, "", ""


def _model(line: dict[str, Any]) -> Any:
    return line["body"].get("model") if isinstance(line.get("body"), dict) else None


def _fault(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}


def _metadata(asked: Any) -> dict[str, str] | None:
    if asked is None:
        return None
    if not isinstance(asked, dict) or len(asked) > 16:
        raise RequestError("`metadata` must be an object of at most 16 keys", "metadata")
    if not all(
        isinstance(value, str) and len(value) <= 512 and len(key) <= 64
        for key, value in asked.items()
    ):
        raise RequestError(
            "`metadata` takes keys of 64 and texts of 512 characters at most", "metadata"
        )
    return asked


def _page(request: Request, items: list[dict[str, Any]], usual: int, most: int) -> Response:
    """The page of a list that `limit` and `after` ask for."""
    limit, after = request.query_params.get("limit", str(usual)), request.query_params.get("after")
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise RequestError(f"`limit` must be a number from 1 to {most}", "limit")
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise RequestError(f"`after` names nothing in the list: {after}", "after")
    start = 0 if after is None else ids.index(after) + 1
    end = start + int(limit)
    first, last = (ids[start:end][:1] or [None])[0], (ids[start:end][-1:] or [None])[0]
    page = {
        "object": "list",
        "data": items[start:end],
        "first_id": first,
        "last_id": last,
        "has_more": end < len(ids),
    }
    return json_response(page)


def _form(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """{name: (file name, content)} of a multipart/form-data body. Starlette's own parser needs a package more."""
    boundary = HeaderParser().parsestr(f"Content-Type: {content_type}").get_param("boundary")
    if not content_type.startswith("multipart/form-data") or not isinstance(boundary, str):
        raise RequestError("send the file as multipart/form-data")
    *parts, tail = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not tail.startswith(b"--"):
        raise RequestError("the multipart body doesn't end with its boundary")
    form = {}
    for part in parts[1:]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace"))
        form[str(headers.get_param("name", header="content-disposition"))] = (
            headers.get_filename(),
            content,
        )
    return form
