"""Asks an application inside this process: nothing to keep, to pay or to retry.

asyncio.run(ask_in_process(call, app, rows))
"""

import asyncio
from collections.abc import Iterator

from stages.chat.calls import Call, Row
from stages.chat.protocol import fault, read
from stages.chat.tokens import tokens
from stages.chat.wire import Wire


async def ask_in_process(call: Call, app, rows: list[Row]) -> None:
    """Settle `rows` with what the ASGI application `app` answers."""
    waiting = iter(rows)
    async with Wire(call.endpoint, app) as wire:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(call.endpoint.concurrency, len(rows))):
                    group.create_task(_work(call, wire, waiting))
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from None


async def _work(call: Call, wire: Wire, waiting: Iterator[Row]) -> None:
    for row in waiting:
        while row.reply is None:
            body = call.body(row.current())
            answer = await wire.complete(body)
            reply = read(answer, row.request)
            call.tally.received += 1
            call.tally.count(fault(reply), *tokens(body, answer), 0.0)
            row.settle(reply)
        call.bar.update()
