"""How fast an endpoint is asked: once a server says "too many", no faster than it serves.

    pace = Pace()
    started = await pace.turn()         # before a request: waits for its turn
    pace.served()                       # it was answered
    pace.refused(started, retry_after)  # 429, or 503 with Retry-After (seconds or None)
    pace.failed(started)                # 503 that doesn't say when to come back

After the first refusal nothing starts for a second; then the rate is what the server had taken
until then. Each later refusal cuts it by a seventh. Between refusals it grows by two percent of the
best rate per second, by ten until the first cut: additive increase, multiplicative decrease (Chiu
and Jain 1989), on a rate instead of a window, since a server's limit is per minute, not per
connection. A 503 without Retry-After may be a passing fault: it counts as a refusal once a quarter
of the last answers were such.
"""

import asyncio
import time
from collections import deque

CUT = 6 / 7  # factor of the rate after a refusal
GROWTH, FIRST_GROWTH = 0.02, 0.1  # share of the best rate, per second
FLOOR = 1 / 32  # share of the best rate
FIRST = 1.0  # requests per second if the server took none before it refused
HOLD = 1.0  # seconds in which most answers to earlier requests come in after the first refusal
SLACK = 0.005  # seconds that a late start may make up for: a server may count strictly
NAP = 0.2  # seconds until a waiting request notices that all stop
LAST = 32  # answers that tell a passing fault from an overloaded server
LONGEST_WAIT = 120.0  # seconds; a longer Retry-After is cut to it


class Pace:
    """Shared by all requests of one stage to one endpoint."""

    def __init__(self):
        self._rate = 0.0  # requests per second; 0: no limit, until HOLD after the first refusal
        self._best, self._growth = 0.0, FIRST_GROWTH
        self._first_start: float | None = None
        self._gate = asyncio.Lock()
        # Next start, last growth, last cut (monotonic seconds).
        self._next = self._grown = self._cut = 0.0
        self._started = 0
        self._failures: deque[bool] = deque(maxlen=LAST)  # of the last answers
        self.refusals = 0
        self.stopping = False  # set from outside: nothing waits any more

    async def turn(self) -> float:
        """Wait until the next request may start, or all stop; returns its start (monotonic s)."""
        async with self._gate:  # first come, first served; a cut holds from the next start on
            while not self.stopping and (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, NAP))
            now = time.monotonic()
            if self.stopping:
                return now

            if self._first_start is None:
                self._first_start = now
            if not self._rate and self.refusals:
                taken = self._started - self.refusals
                self._rate = max(FIRST, taken / max(self._cut - self._first_start, HOLD))
                self._best = self._rate
                self._grown = self._cut = now
            if self._rate:
                self._grow(now)
                self._next = max(self._next, now - SLACK) + 1 / self._rate
            self._started += 1
        return now

    def served(self) -> None:
        """A request was answered."""
        self._failures.append(False)

    def refused(self, started: float, retry_after: float | None) -> None:
        """A request was refused; those `started` before the last cut don't cut again."""
        now = time.monotonic()
        self.refusals += 1
        if retry_after is not None:
            self._next = max(self._next, now + min(retry_after, LONGEST_WAIT))
        if not self._rate:
            if self.refusals == 1:
                self._next, self._cut = max(self._next, now + HOLD), now
        elif started >= self._cut:
            self._grow(now)
            self._rate = max(CUT * self._rate, FLOOR * self._best)
            self._grown = self._cut = now
            self._growth = GROWTH

    def failed(self, started: float) -> None:
        """The server failed, and may be overloaded."""
        self._failures.append(True)
        if sum(self._failures) >= LAST // 4:
            self.refused(started, None)

    def _grow(self, now: float) -> None:
        self._rate += self._growth * self._best * (now - self._grown)
        self._best = max(self._best, self._rate)
        self._grown = now
