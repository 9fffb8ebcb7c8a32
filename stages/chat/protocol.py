"""What is asked of a chat model and what comes back: the OpenAI chat protocol, without a network.

ChatRequest([{"role": "user", "content": "When does it melt?"}], "answer", {"type": "object", ...})
Reply(content='{"answer": "At 356.9 K."}', parsed={'answer': 'At 356.9 K.'}, reasoning=None,
      finish_reason='stop', error=None)
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.params import Section

OFFLINE = "offline"  # the base_url of an application inside this process
DEEPEST = 100  # levels of a server's JSON: Python's own limit depends on the call stack
SCALARS = (str, int, float, type(None))


class Price(Section):
    """What a model costs, in USD per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class Connection(Section):
    """How an endpoint is reached: an entry of `connections` in params.yaml. No reply depends on it.

    Of an entry other than `connections.default`, only the keys that are set count.
    """

    concurrency: int = Field(default=16, ge=1, le=1024)
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(default=120.0, gt=0)
    mode: Literal["online", "batch"] = "online"
    usd_per_million: Price | None = None


class ChatModel(Section):
    """A chat model and how it samples: what decides its replies, and so a param of a stage."""

    base_url: str = Field(pattern=r"^(offline|https?://[^\s@?#]+)$")
    model: str = Field(min_length=1)
    temperature: float = Field(ge=0, le=2)
    max_tokens: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _no_connection(cls, values: Any) -> Any:
        elsewhere = Connection.model_fields.keys() - cls.model_fields.keys()
        if isinstance(values, dict) and (moved := sorted(elsewhere & values.keys())):
            keys = ", ".join(f"`{key}`" for key in moved)
            raise ValueError(
                f"{keys} can't change a result and has moved to section `connections`: to "
                "connections.default, or for this endpoint alone to connections.teacher, "
                "connections.judge.NAME or connections.respond.NAME"
            )
        return values


class Endpoint(ChatModel, Connection):
    """A chat model with its connection (connections.py), or, in a subclass, command options."""

    given_in: ClassVar[str] = "params.yaml"

    def __str__(self) -> str:
        return f"endpoint {self.base_url} (model `{self.model}`)"

    def called(self, key: str, value: str = "") -> str:
        """The setting `key` as its user writes it, with `value` if any: for error messages."""
        setting = f"{key}: {value}" if value else key
        return f"{setting} (in `connections`)" if key in Connection.model_fields else setting


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One thing to ask.

    `schema` (JSON Schema) and `schema_name` go together; `sample_index` distinguishes repeats.
    """

    messages: list[dict[str, Any]]
    schema_name: str | None = None
    schema: dict[str, Any] | None = None
    sample_index: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    `parsed` is the content as JSON, valid against the schema, or None; `error` says why the reply
    is unusable; `key` is its key in the reply store.
    """

    content: str
    parsed: dict[str, Any] | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    error: str | None = None
    key: str | None = field(default=None, compare=False)


def request_body(endpoint: Endpoint, request: ChatRequest, random_seed: int) -> dict[str, Any]:
    """The JSON body that asks `request`: with the address, all that decides the reply."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": request.messages,
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "seed": random_seed * 100_003 + request.sample_index,
    }
    if request.schema is not None:
        form = {"name": request.schema_name, "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def is_completion(answer: Any) -> bool:
    """Whether a server's JSON is a chat completion that can be read."""
    try:
        return isinstance(answer["choices"][0]["message"], dict)
    except (KeyError, IndexError, TypeError):
        return False


def server_json(text: str) -> Any:
    """A server's JSON. Raises ValueError if it can't be read, or nests deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [value]
    for _ in range(DEEPEST):
        values = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for parts in values if not isinstance(parts, SCALARS) for part in parts]
        if not level:
            return value
    raise ValueError("nested too deep")


def is_filter(error: dict[str, Any]) -> bool:
    """Whether an error object says that a content filter stopped the request."""
    code = str(error.get("code"))
    return "content_filter" in code or "content_policy" in code


def filtered(model: str) -> dict[str, Any]:
    """The completion that stands for a request the server's content filter stopped."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "content_filter",
    }
    return {"object": "chat.completion", "model": model, "choices": [choice]}


def read(answer: dict[str, Any], request: ChatRequest) -> Reply:
    """A chat completion (`is_completion`) as a Reply.

    Reasoning is split off; the content is checked against the request's schema.
    """
    choice = answer["choices"][0]
    message, finish = choice["message"], _text(choice.get("finish_reason"))
    raw_content, refusal = message.get("content"), _text(message.get("refusal"))
    content = _text(raw_content) or refusal or ""
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning")) or None
    if thought := re.match(r"\s*<think>(.*?)(</think>\s*|\Z)", content, flags=re.DOTALL):
        reasoning, content = reasoning or thought[1].strip(), content[thought.end() :]
    parsed, error = None, None
    if finish == "content_filter":
        # A candidate's refusal, decided by the server; unusable if a schema was asked for.
        error = "stopped by the server's content filter" if request.schema is not None else None
    elif finish == "length" and (request.schema is not None or not content):
        error = "cut off at max_tokens" + ("" if content else " before the answer began")
    elif raw_content and not isinstance(raw_content, str):
        error = f"its content is not a text but a {type(raw_content).__name__}"
    elif request.schema is not None and refusal and not raw_content:
        error = "the model refused to answer"
    elif request.schema is not None:
        parsed, error = _parse(content, request.schema)
    return Reply(content, parsed, reasoning, finish, error)


def _text(value: Any) -> str | None:
    """`value` if it is a text, with U+FFFD for each lone surrogate: tables and files take none."""
    return (
        value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, str)
        else None
    )


def fault(reply: Reply) -> str | None:
    """Why a reply is unusable, cut off or filtered, or None.

    A candidate's cut or filtered answer is measured all the same.
    """
    if reply.error is not None:
        return reply.error
    return {
        "length": "cut off at max_tokens",
        "content_filter": "stopped by the server's content filter",
    }.get(reply.finish_reason or "")


def _parse(content: str, schema: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """(the first object in the content that is valid against `schema`, None), or (None, why not).

    A model without structured output wraps its object in a code fence or in a sentence, which is
    taken off.
    """
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema)
    first_fault = None
    try:
        for value in _values(content):
            violation = jsonschema.exceptions.best_match(validator.iter_errors(value))
            if violation is None:
                json.dumps(value, ensure_ascii=False).encode()
                return value, None
            first_fault = (
                first_fault
                or f"not of the schema: {violation.json_path}: {violation.message[:200]}"
            )
        if first_fault is not None:
            return None, first_fault
        json.loads(content)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at character {error.pos})"
    except UnicodeEncodeError:
        return None, "a text with half a surrogate pair"
    except ValueError:  # Python reads no integer of more than 4,300 digits
        return None, "not JSON (a number of too many digits)"
    except RecursionError:
        return None, "not JSON (nested too deep)"
    return None, "not JSON"


def _values(content: str) -> Iterator[Any]:
    """The JSON value that `content` is, else each outermost JSON object inside it."""
    try:
        value = json.loads(content)
    except ValueError:
        pass
    else:
        yield value
        return
    decoder, start = json.JSONDecoder(), content.find("{")
    while start >= 0:
        try:
            value, start = decoder.raw_decode(content, start)
        except ValueError:
            start += 1
        else:
            yield value
        start = content.find("{", start)
