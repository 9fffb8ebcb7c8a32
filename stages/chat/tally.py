"""What the replies of one kind cost, and what this run did to get them.

    tally.report()    # {"base_url": ..., "model": ..., "requests": 2656, "usd": 0.4672, ...}

The first part depends on the replies alone, so data/generation/STAGE.json is the same bytes each
time. The second, where replies came from and how long it took, is printed and logged to MLflow.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.chat.budget import price_of
from stages.chat.protocol import OFFLINE, Endpoint
from stages.core.errors import LibraError

OUTPUTS = (
    "base_url", "model", "requests", "unusable", "quarantined", "prompt_tokens",
    "completion_tokens", "usd",
)  # fmt: skip
RUN_METRICS = ("received", "from_store", "from_archive", "retries", "refusals", "wall_s", "usd")


@dataclass
class Tally:
    """Counts of one kind of request."""

    base_url: str
    model: str
    mode: str
    price: str | None  # where the price comes from; None: no price is known

    requests: int = 0  # distinct requests the stage needs
    unusable: int = 0  # replies cut off, filtered or not of their schema
    quarantined: int = 0  # rows the stage left out for want of a usable reply
    prompt_tokens: int = 0
    completion_tokens: int = 0
    costs: list[float | None] = field(default_factory=list)  # USD of each reply when it was bought

    from_store: int = 0  # replies kept before, those from archives included
    from_archive: int = 0
    received: int = 0  # replies sent for in this run
    retries: int = 0  # requests sent again after a broken connection or a server error
    refusals: int = 0  # requests the server refused with 429 or 503
    wall_s: float = 0.0  # of what was sent to a server in this run

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Tally":
        """An empty tally of an endpoint."""
        pricing = price_of(endpoint)
        source = pricing.source if pricing else None
        return cls(endpoint.base_url, endpoint.model, endpoint.mode, source)

    @property
    def usd(self) -> float | None:
        """What all replies cost, in whatever order they came; None if a price is unknown."""
        known = [usd for usd in self.costs if usd is not None]
        return round(math.fsum(known), 6) if len(known) == len(self.costs) else None

    def count(self, fault: str | None, prompt: int, completion: int, usd: float | None) -> None:
        """Add a reply: its fault if any, its tokens, its cost in USD (None: unknown)."""
        self.unusable += fault is not None
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.costs.append(usd)

    def report(self) -> dict[str, Any]:
        """What is the same on every run with the same replies."""
        return {key: getattr(self, key) for key in OUTPUTS}

    def summary(self) -> str:
        """What this run did, for people."""
        if self.base_url == OFFLINE:
            return f"{self.requests:,} requests, answered in this process"
        usd = "no price known" if self.usd is None else f"{self.usd:.4f} USD in all ({self.price})"
        sent = f"{self.received:,} replies received"
        if self.received:
            sent += f" in {self.wall_s:.1f} s ({self.retries:,} retries, {self.refusals:,} refused)"
        stored = f"{self.from_store:,} from the store"
        if self.from_archive:
            stored += f" ({self.from_archive:,} of them out of an archive)"
        return f"{self.requests:,} requests: {sent}, {stored}; {usd}"


def log_run(stage: str, tallies: Mapping[str, Tally]) -> None:
    """Log this run's part to MLflow; what was answered in this process isn't worth the import."""
    paid = {
        kind.replace(": ", "."): tally
        for kind, tally in tallies.items()
        if tally.base_url != OFFLINE
    }
    if not paid:
        return

    from stages.core import tracking

    params = {
        kind: {key: getattr(tally, key) for key in ("base_url", "model", "mode", "price")}
        for kind, tally in paid.items()
    }
    metrics = {
        kind: {key: getattr(tally, key) for key in RUN_METRICS} for kind, tally in paid.items()
    }
    try:
        with tracking.run(stage, params, []) as record:
            record.metrics(metrics)
    except LibraError as error:  # the replies are kept and the outputs written: no reason to fail
        print(f"warning: {stage} isn't recorded: {error}", file=sys.stderr)
