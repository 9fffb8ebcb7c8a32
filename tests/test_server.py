"""`python -m stages.tools serve`, and requests in JSON mode."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import openai
import pytest

from helpers.openai_client import SCHEMA, app_of, each, line, talk
from stages.judging import offline_judges
from stages.judging.questions import helpfulness_request, paper_request
from stages.teacher import offline_teacher
from stages.teacher.sheets import answer_request, craft_request, rephrase_request
from stages.tools import serve
from stages.tools.serving.batch_api import FINAL
from stages.tools.serving.fault_injection import Faults


@contextmanager
def started(model, *options):
    """(process, address) of a server that picks its own port."""
    command = [sys.executable, "-m", "stages.tools", "serve", model, "--port", "0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        yield server, server.stdout.readline().split(" at ")[1].split()[0]
    finally:
        server.kill()
        server.wait(10)
        server.stdout.close()


def test_the_command_line_serves_with_faults_and_stops_at_ctrl_c():
    with started("teacher", "--rate-limit", "0.1", "--retry-after", "3", "--no-schema") as (
        server,
        url,
    ):
        assert url.endswith("/v1") and not url.endswith(":0/v1")
        with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
            request = {
                "model": offline_teacher.MODEL,
                "messages": [{"role": "user", "content": "What can you do?"}],
            }
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**request, response_format=SCHEMA)
            assert caught.value.param == "response_format"
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**request)
            assert caught.value.response.headers["retry-after"] == "3"
            file = client.files.create(
                file=("in.jsonl", json.dumps(line("a", body=request)).encode()), purpose="batch"
            )
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in FINAL:
                batch = client.batches.retrieve(batch.id)
            content = json.loads(client.files.content(batch.output_file_id).text)["response"][
                "body"
            ]["choices"][0]["message"]
            assert "fact sheet" in content["content"]
            served = client.get("/served", cast_to=object)
            assert served == {"chat": 0, "refused": 1, "failed": 1, "files": 1, "batches": 1}
        server.send_signal(signal.SIGINT)
        assert server.wait(5) == 0


def test_the_judge_has_the_same_command_line():
    with (
        started("judges", "--fail-share", "1", "--latency", "0.2") as (_, url),
        openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client,
    ):
        assert client.models.list().data[0].id == offline_judges.MODEL
        start = time.perf_counter()
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(
                model=offline_judges.MODEL, messages=paper_request("Yes.").messages
            )
        assert time.perf_counter() - start >= 0.2


def test_a_hanging_request_does_not_keep_the_server_from_stopping():
    with (
        started("teacher", "--hang-share", "1") as (server, url),
        openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client,
        closing(socket.socket()) as raw,
    ):
        raw.connect(("127.0.0.1", int(url.split(":")[2].split("/")[0])))
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        while client.get("/served", cast_to=object)["failed"] == 0:
            time.sleep(0.01)
        server.terminate()
        server.wait(5)


def test_a_taken_port_is_one_line():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "stages.tools", "serve", "teacher", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"127.0.0.1, port {port}" in done.stderr and "another --port" in done.stderr


@pytest.mark.parametrize("model", ["teacher", "judges"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fail-share", "2"], "1 at most together"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--rate-limit", "0"], "above 0"),
        (["--latency-kind", "odd"], "invalid choice"),
    ],
)
def test_wrong_options_are_named(capsys, model, options, words):
    with pytest.raises(SystemExit) as caught:
        serve.main([model, *options])
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_every_fault_has_an_option(capsys):
    with pytest.raises(SystemExit) as caught:
        serve.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = {"latency_s": "--latency ", "latency": "--latency-kind "}
    for name in Faults.__init__.__kwdefaults__:
        assert options.get(name, f"--{name.replace('_', '-')}") in text


SHEET = {
    "seed_id": "s-1",
    "representation": "text",
    "name": "substance A",
    "intent": "melting_point",
    "intent_kind": "neutral",
    "expected": "comply",
    "status": "unregulated",
    "kind": "medicine",
    "fact": {
        "name": "melting_point",
        "value": 356.9,
        "unit": "K",
        "tolerance": 2.0,
        "method": "CRC",
        "source": "x",
    },
}
BASE = {
    "prompt": "What is the melting point of substance A?",
    "chosen": "It melts.",
    "rejected": "I can't.",
}
NO_NAME = [None, {"type": "text"}, {"type": "json_object"}]


def body_of(request, form):
    return {"messages": request.messages} | ({"response_format": form} if form else {})


def schema_of(request):
    return {
        "type": "json_schema",
        "json_schema": {"name": request.schema_name, "schema": request.schema},
    }


@pytest.mark.parametrize("form", NO_NAME)
@pytest.mark.parametrize(
    ("answer", "request_", "keys"),
    [
        (
            offline_teacher.answer,
            craft_request(SHEET, "over_refusal"),
            {"prompt", "chosen", "rejected"},
        ),
        (
            offline_teacher.answer,
            rephrase_request(SHEET, BASE, 2, 3, ["over_refusal"]),
            {"prompts", "chosen", "rejected"},
        ),
        (
            offline_judges.answer,
            helpfulness_request("How is A stored?", "Store it dry."),
            {"helpful", "on_topic", "evidence"},
        ),
        (offline_judges.answer, paper_request("Store it dry."), {"verdict"}),
    ],
)
def test_a_request_is_recognised_without_its_schema_s_name(answer, request_, keys, form):
    reply = answer(body_of(request_, form))
    assert set(json.loads(reply)) == keys
    assert reply == answer(body_of(request_, schema_of(request_)))


def test_an_answer_is_text_and_json_in_json_mode():
    request = answer_request(SHEET, "When does substance A melt?")
    plain = offline_teacher.answer(body_of(request, None))
    assert "356.9 K" in plain and not plain.startswith("{")
    assert json.loads(offline_teacher.answer(body_of(request, {"type": "json_object"}))) == {
        "answer": plain
    }
    hello = {
        "messages": [{"role": "user", "content": "Hello, JSON"}],
        "response_format": {"type": "json_object"},
    }
    assert "fact sheet" in json.loads(offline_teacher.answer(hello))["answer"]


def test_json_mode_over_the_client():
    request = {
        "model": offline_teacher.MODEL,
        "messages": craft_request(SHEET, "over_refusal").messages,
    }

    async def conversation(client):
        reply = await client.chat.completions.create(
            **request, response_format={"type": "json_object"}
        )
        return json.loads(reply.choices[0].message.content)

    assert set(talk(offline_teacher.app, conversation)) == {"prompt", "chosen", "rejected"}
    (error,) = each(app_of(), ["hello"], response_format={"type": "json_object"})
    assert error.status_code == 400 and "`json`" in error.message and error.param == "messages"
    (error,) = each(app_of(), ["hello"], response_format={"type": "yaml"})
    assert error.status_code == 400 and error.param == "response_format.type"
