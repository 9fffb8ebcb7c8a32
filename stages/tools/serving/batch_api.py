"""/v1/files and /v1/batches of server.py, as OpenAI's API has them: `Batches(complete).routes()`.

A line of an input file (batch_input.py), and the line of the output file that answers it:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", ...}}
    {"id": "batch_req_5f", "custom_id": "a", "response": {"status_code": 200, ...}, "error": null}

A line whose status isn't 200, or that wasn't reached before the batch was cancelled or expired,
goes to the error file instead. Lines come back in another order than they were sent in, as OpenAI
warns. Everything is kept in memory, and ids differ from one start of the server to the next. A
batch is worked on by a task of the event loop that created it, or that last asked for it.
"""

import asyncio
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stages.chat.offline import RequestError, error_object, json_object
from stages.tools.serving.batch_input import ENDPOINT, checked_lines, checked_metadata, form
from stages.tools.serving.fault_injection import Faults
from stages.tools.serving.responses import FAULTS, json_response

WINDOW_S = 24 * 60 * 60
SLICE = 16  # lines answered before other requests get their turn
FINAL = ("failed", "completed", "expired", "cancelled")
_STEPS = ("finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_UNREACHED = {
    "cancelled": "The batch was cancelled before this request was executed.",
    "expired": "This request could not be executed before the completion window expired.",
}


@dataclass
class _Batch:
    """A batch. `state` is its object in the API.

    `waiting` are the lines still to be answered, the last one first.
    """

    state: dict[str, Any]
    raw: bytes
    faults: Faults | None
    waiting: list[dict[str, Any]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    task: asyncio.Task | None = None

    def step(self, status: str) -> None:
        self.state |= {"status": status, f"{status}_at": int(time.time())}

    def early_end(self) -> str | None:
        """How the batch ends before its last line, if it does."""
        if self.state["status"] == "cancelling":
            return "cancelled"
        limit = self.faults.expire_after if self.faults else None
        answered = len(self.output) + len(self.errors)
        if time.time() >= self.state["expires_at"] or (limit is not None and answered >= limit):
            return "expired"
        return None


class Batches:
    """The files and batches of one application.

    `complete(body, spoil)` returns a chat completion or raises RequestError.
    """

    def __init__(self, complete: Callable[..., dict[str, Any]]):
        self._complete = complete
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, _Batch] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files", self._list_files, methods=["GET"]),
            Route("/v1/files/{id}", self._retrieve_file, methods=["GET"]),
            Route("/v1/files/{id}", self._delete_file, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self._content, methods=["GET"]),
            Route("/v1/batches", self._create, methods=["POST"]),
            Route("/v1/batches", self._list_batches, methods=["GET"]),
            Route("/v1/batches/{id}", self._retrieve, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self._cancel, methods=["POST"]),
        ]

    async def _upload(self, request: Request) -> Response:
        fields = form(request.headers.get("content-type", ""), await request.body())
        if fields.get("purpose", (None, b""))[1] != b"batch":
            raise RequestError("`purpose` must be `batch`", "purpose")
        name, content = fields.get("file", (None, b""))
        if name is None:
            raise RequestError("`file` is missing", "file")
        return json_response(self._add_file(name, content, "batch"))

    async def _list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        files = [file for file, _ in self._files.values() if purpose in (None, file["purpose"])]
        if request.query_params.get("order") != "asc":
            files.reverse()
        return _page(request, files, 10_000, 10_000)

    async def _retrieve_file(self, request: Request) -> Response:
        return json_response(self._file_of(request)[0])

    async def _content(self, request: Request) -> Response:
        return Response(self._file_of(request)[1], media_type="application/octet-stream")

    async def _delete_file(self, request: Request) -> Response:
        file, _ = self._file_of(request)
        del self._files[file["id"]]
        return json_response({"id": file["id"], "object": "file", "deleted": True})

    async def _create(self, request: Request) -> Response:
        body = json_object(await request.body())
        for key, value in (("endpoint", ENDPOINT), ("completion_window", "24h")):
            if body.get(key) != value:
                raise RequestError(f"`{key}` must be `{value}`", key)
        file, raw = self._files.get(str(body.get("input_file_id")), ({}, b""))
        if file.get("purpose") != "batch":
            message = "`input_file_id` isn't the id of a file of purpose `batch`"
            raise RequestError(message, "input_file_id")

        now = int(time.time())
        state = {
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
            **{f"{step}_at": None for step in _STEPS},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": checked_metadata(body.get("metadata")),
        }
        batch = self._batches[state["id"]] = _Batch(state, raw, request.scope.get(FAULTS))
        return self._response(batch)

    async def _list_batches(self, request: Request) -> Response:
        for batch in self._batches.values():
            self._go_on(batch)
        return _page(request, [batch.state for batch in reversed(self._batches.values())], 20, 100)

    async def _retrieve(self, request: Request) -> Response:
        # In this process, a client that only polls would otherwise never let the batch go on.
        await asyncio.sleep(0)
        return self._response(self._batch_of(request))

    async def _cancel(self, request: Request) -> Response:
        batch = self._batch_of(request)
        status = batch.state["status"]
        if status in FINAL:
            raise RequestError(f"Cannot cancel a batch with status '{status}'.", status=409)
        if status != "cancelling":
            batch.step("cancelling")
        return self._response(batch)

    def _response(self, batch: _Batch) -> Response:
        self._go_on(batch)
        return json_response(batch.state)

    def _go_on(self, batch: _Batch) -> None:
        """Work on an unfinished batch, also if its event loop is gone.

        In this process, each run of a client has a loop of its own.
        """
        if batch.state["status"] not in FINAL and (batch.task is None or batch.task.done()):
            batch.task = asyncio.create_task(self._work(batch))

    async def _work(self, batch: _Batch) -> None:
        """From `validating` to the end. It may be stopped at any `await` and begun again."""
        state = batch.state
        if state["status"] == "validating" and not await self._validate(batch):
            return

        counts, end = state["request_counts"], None
        while batch.waiting:
            if (counts["completed"] + counts["failed"]) % SLICE == 0:
                await asyncio.sleep(batch.faults.wait() if batch.faults else 0)
            if end := batch.early_end():
                break
            self._answer(batch, batch.waiting.pop())
        if end is None and state["status"] == "in_progress":
            batch.step("finalizing")
            await asyncio.sleep(0)
        end = end or ("cancelled" if state["status"] == "cancelling" else "completed")
        for line in batch.waiting:
            self._note(batch, line, None, {"code": f"batch_{end}", "message": _UNREACHED[end]})

        for kind, lines in (("output", batch.output), ("error", batch.errors)):
            if lines:
                content = "".join(f"{line}\n" for line in lines).encode()
                file = self._add_file(f"{state['id']}_{kind}.jsonl", content, "batch_output")
                state[f"{kind}_file_id"] = file["id"]
        batch.step(end)

    async def _validate(self, batch: _Batch) -> bool:
        """Check the input file and queue its lines; False if the batch fails as a whole."""
        state = batch.state
        await asyncio.sleep(0)
        lines, faults = await checked_lines(batch.raw)
        if state["status"] == "validating" and faults:
            state["errors"] = {"object": "list", "data": faults}
            batch.step("failed")
            return False
        batch.waiting = sorted(lines, key=_digest)
        state["request_counts"]["total"] = len(lines)
        if state["status"] == "validating":  # it may have been cancelled meanwhile
            batch.step("in_progress")
        return True

    def _answer(self, batch: _Batch, line: dict[str, Any]) -> None:
        spoil = batch.faults.for_line(line["body"]) if batch.faults else None
        try:
            status, body = 200, self._complete(line["body"], spoil)
        except RequestError as error:
            status, body = error.status, error_object(error)
        except Exception:  # a bug in the application fails one line, as on any server
            traceback.print_exc()
            status, body = 500, error_object(RequestError("The server had an error", status=500))
        response = {"status_code": status, "request_id": uuid4().hex, "body": body}
        self._note(batch, line, response, None)

    def _note(
        self,
        batch: _Batch,
        line: dict[str, Any],
        response: dict[str, Any] | None,
        error: dict[str, str] | None,
    ) -> None:
        """Write the result of a line to the output, or to the errors if its status isn't 200."""
        completed = response is not None and response["status_code"] == 200
        result = {
            "id": f"batch_req_{uuid4().hex}",
            "custom_id": line["custom_id"],
            "response": response,
            "error": error,
        }
        lines = batch.output if completed else batch.errors
        lines.append(json.dumps(result, ensure_ascii=False))
        batch.state["request_counts"]["completed" if completed else "failed"] += 1

    def _add_file(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        """Store a file; returns its file object."""
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

    def _file_of(self, request: Request) -> tuple[dict[str, Any], bytes]:
        file_id = request.path_params["id"]
        if file_id not in self._files:
            raise RequestError(f"No such File object: {file_id}", "id", 404)
        return self._files[file_id]

    def _batch_of(self, request: Request) -> _Batch:
        batch_id = request.path_params["id"]
        if batch_id not in self._batches:
            raise RequestError(f"No batch found with id '{batch_id}'.", "id", 404)
        return self._batches[batch_id]


def _digest(line: dict[str, Any]) -> bytes:
    return blake2b(line["custom_id"].encode(), digest_size=8).digest()


def _page(
    request: Request, items: list[dict[str, Any]], default_limit: int, max_limit: int
) -> Response:
    """The page of a list that `limit` and `after` select. Raises RequestError."""
    limit = request.query_params.get("limit", str(default_limit))
    after = request.query_params.get("after")
    if not limit.isdecimal() or not 1 <= int(limit) <= max_limit:
        raise RequestError(f"`limit` must be a number from 1 to {max_limit}", "limit")
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise RequestError(f"`after` is no id in the list: {after}", "after")

    start = 0 if after is None else ids.index(after) + 1
    data = items[start : start + int(limit)]
    page = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + int(limit) < len(ids),
    }
    return json_response(page)
