"""Asks any OpenAI-compatible endpoint; each reply is received once, in order, and kept.

    with Session("craft", random_seed, budget) as session:
        replies = session.ask(endpoint, requests, "craft", app)   # [Reply, ...], as the requests

`base_url: offline` goes to an ASGI application inside this process, over the same protocol and
client. Any other endpoint is asked only for what neither the reply store (store.py) nor an archive
in data/replies/ holds, many at once (sender.py) or in batches (batches.py), under the caps of
`budget` (budget.py). A session ends with data/generation/STAGE.json: what its replies cost.
"""

import asyncio
import sys
import time
from collections.abc import Mapping

from stages.chat.budget import BudgetParams
from stages.chat.calls import Call, Row, in_order
from stages.chat.in_process import ask_in_process
from stages.chat.kept import KeptReplies
from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply
from stages.chat.sender import Sender
from stages.chat.store import Store, store_path
from stages.chat.tally import Tally, log_run
from stages.core.progress import counter


class Session:
    """All that a stage asks of chat models; a context manager.

    When the stage succeeds, it writes data/generation/STAGE.json, prints a line for each kind of
    request and logs to MLflow what a server was asked in this run.
    """

    def __init__(self, stage: str, random_seed: int, budget: BudgetParams | None = None):
        self.stage, self.random_seed, self.caps = stage, random_seed, budget or BudgetParams()
        self.tallies: dict[str, Tally] = {}
        self._started = False  # whether the store has dropped what the stage's last run used

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            return

        from stages.core.tables import write_json

        report = {kind: tally.report() for kind, tally in self.tallies.items()}
        write_json(report, f"data/generation/{self.stage}.json")
        for kind, tally in self.tallies.items():
            print(f"{kind}: {tally.summary()}", file=sys.stderr)
        log_run(self.stage, self.tallies)

    def ask(
        self, endpoint: Endpoint, requests: list[ChatRequest], kind: str, app=None, note: str = ""
    ) -> list[Reply]:
        """The replies to `requests`, in their order.

        `kind` names them in progress lines and records, `note` is added to the progress line; `app`
        is the ASGI application that answers when base_url is `offline`. A reply that doesn't fit
        its schema comes back with `error` set. Raises LibraError when the endpoint can't be
        reached, refuses the key, model or request, or still fails after the retries; OverBudget at
        a cap; Interrupted at Ctrl-C. Whatever came in until then is kept.
        """
        call = Call(self.stage, kind, endpoint, self.random_seed, self.tally(kind, endpoint))
        rows = call.rows(requests)
        call.tally.requests += len(rows)
        call.bar = counter(kind + note, len(rows))
        try:
            if endpoint.base_url == OFFLINE:
                asyncio.run(ask_in_process(call, app, rows))
            else:
                with Store(store_path()) as store:
                    self._ask_server(call, store, rows)
        finally:
            call.bar.close()
        return in_order(rows, len(requests))

    def tally(self, kind: str, endpoint: Endpoint) -> Tally:
        """The counts of one kind of request, begun at its first call."""
        if kind not in self.tallies:
            self.tallies[kind] = Tally.of(endpoint)
        return self.tallies[kind]

    def quarantined(self, kind: str, count: int, unfit: Mapping[str, str] | None = None) -> None:
        """Note that `count` rows had no usable reply and are left out.

        `unfit` are {key: fault} of the replies that came in for them.
        """
        self.tallies[kind].quarantined += count
        if unfit is not None and self.tallies[kind].base_url != OFFLINE:
            with Store(store_path()) as store:
                store.note_unfit(self.stage, unfit)

    def give_up(self, unfit: Mapping[str, str] | None = None) -> None:
        """Have the next run ask again for unusable replies and for `unfit`: the stage fails."""
        if any(tally.base_url != OFFLINE for tally in self.tallies.values()):
            with Store(store_path()) as store:
                store.retry(self.stage, unfit or {})

    def _ask_server(self, call: Call, store: Store, rows: list[Row]) -> None:
        """Settle `rows` from what is kept, then from the server; the store notes what is used."""
        store.use(self.stage, (row.key for row in rows), replace=not self._started)
        self._started = True
        kept = KeptReplies(store, call)
        missing = kept.missing(rows)
        store.use(self.stage, call.keys(rows), replace=False)
        call.bar.update(len(rows) - len(missing))
        if not missing:
            return

        start = time.monotonic()
        try:
            asyncio.run(Sender(call, kept, self.caps).run(missing))
        finally:
            call.tally.wall_s += time.monotonic() - start
        store.use(
            self.stage, call.keys(missing), replace=False
        )  # also what another run kept meanwhile
