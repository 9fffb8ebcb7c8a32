"""What replies cost, and the caps on it.

    budget = Budget(caps, endpoint, price_of(endpoint), lambda: store.paid_elsewhere)
    budget.admit()            # before a request: raises OverBudget if it might pass a cap
    budget.land(tokens, usd)  # once its reply is there

The caps hold for the whole pipeline run: all replies its stages use that were paid for, now or
earlier (`Store.spent`), by this process or by another one with the run's name
(`Store.paid_elsewhere`). A request in flight counts with the average of the replies so far, so that
a cap is hardly ever passed, and never by more than what is in flight. Prices come from genai-prices
(Pydantic; pinned in requirements.lock), or from `usd_per_million` of the connection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from stages.chat.protocol import OFFLINE, Endpoint
from stages.chat.records import Spent
from stages.chat.tokens import counted
from stages.core.errors import LibraError
from stages.core.params import Section

BATCH_DISCOUNT = 0.5  # of the list price: OpenAI's Batch API and those that copy it


class BudgetParams(Section):
    """Section `budget`: null means no cap."""

    max_usd: float | None = Field(default=None, ge=0)
    max_requests: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Pricing:
    """A price: where it comes from, and USD of (prompt tokens, completion tokens, usage object)."""

    source: str
    usd: Callable[[int, int, Mapping[str, Any]], float]


class OverBudget(LibraError):
    """A cap is reached: budget.max_`name` = `cap`."""

    def __init__(self, name: str, cap: float, detail: str):
        super().__init__(f"budget.max_{name} = {cap:g} is reached: {detail}")
        self.name, self.cap = name, cap


def price_of(endpoint: Endpoint) -> Pricing | None:
    """The endpoint's price: its own, else the price library's; None if neither knows the model."""
    if endpoint.base_url == OFFLINE:
        return Pricing("offline", lambda prompt, completion, usage: 0.0)
    if own := endpoint.usd_per_million:
        return Pricing(
            "params",
            lambda prompt, completion, usage: (
                (prompt * own.prompt + completion * own.completion) / 1e6
            ),
        )

    import genai_prices

    share = BATCH_DISCOUNT if endpoint.mode == "batch" else 1.0

    def usd(prompt: int, completion: int, usage: Mapping[str, Any]) -> float:
        details = usage.get("prompt_tokens_details")
        cached = counted(details.get("cached_tokens")) if isinstance(details, dict) else None
        library_usage = genai_prices.Usage(
            input_tokens=prompt,
            cache_read_tokens=min(cached or 0, prompt),
            output_tokens=completion,
        )
        price = genai_prices.calc_price(
            library_usage, model_ref=endpoint.model, provider_api_url=endpoint.base_url
        )
        return float(price.total_price) * share

    try:
        usd(1, 1, {})
    except LookupError:
        return None
    source = f"genai-prices {genai_prices.__version__}"
    return Pricing(source + (" at half, in batches" if share < 1 else ""), usd)


class Budget:
    """The caps of a pipeline run and what is spent of them.

    Raises LibraError for a cap in USD on a model without a price.
    """

    def __init__(
        self,
        caps: BudgetParams,
        endpoint: Endpoint,
        pricing: Pricing | None,
        elsewhere: Callable[[], Spent],
    ):
        if caps.max_usd is not None and pricing is None:
            raise LibraError(
                f"{endpoint} has no price in the price table, so budget.max_usd can't be kept: set "
                f"its {endpoint.called('usd_per_million', '{prompt: ..., completion: ...}')} "
                "(0 for a server that costs nothing), or budget.max_usd: null"
            )
        self._caps, self._elsewhere = caps, elsewhere
        self._answered, self._tokens, self._usd = 0, 0, 0.0
        self.in_flight = 0

    @property
    def spent(self) -> Spent:
        """Spending of the whole pipeline run up to now."""
        return self._elsewhere().plus(Spent(self._answered, self._tokens, self._usd))

    def admit(self) -> None:
        """Let one more request fly.

        Raises OverBudget if a cap is reached, or may be by what is in flight.
        """
        count = max(1, self._answered)
        for name, cap, used, each in self._capped(self._tokens / count, self._usd / count):
            if used + self.in_flight * each >= cap:
                raise OverBudget(name, cap, self.words())
        self.in_flight += 1

    def room(self, tokens: float, usd: float) -> int | None:
        """How many requests of about `tokens` and `usd` each still fit; None without caps.

        Raises OverBudget if none does.
        """
        rooms = [
            (int((cap - used) / each), name, cap)
            for name, cap, used, each in self._capped(tokens, usd)
            if each > 0
        ]
        if rooms and min(rooms)[0] < 1:
            raise OverBudget(*min(rooms)[1:], self.words())
        return min(rooms)[0] if rooms else None

    def land(self, tokens: int | None, usd: float | None) -> None:
        """A request is back: `tokens` and `usd` are paid; None: it has no reply."""
        self.in_flight -= 1
        if tokens is not None:
            self._answered += 1
            self._tokens += tokens
            self._usd += usd or 0.0

    def _capped(self, tokens: float, usd: float) -> list[tuple[str, float, float, float]]:
        """(name, cap, used of it, a request's share of it) of each cap that is set."""
        spent, caps = self.spent, self._caps
        entries: tuple[tuple[str, float | None, float, float], ...] = (
            ("usd", caps.max_usd, spent.usd, usd),
            ("requests", caps.max_requests, spent.requests, 1.0),
            ("tokens", caps.max_tokens, spent.tokens, tokens),
        )
        return [(name, cap, used, share) for name, cap, used, share in entries if cap is not None]

    def words(self) -> str:
        """What is spent, in words."""
        spent = self.spent
        return (
            f"this pipeline run has paid for {spent.requests:,} replies, {spent.tokens:,} tokens, "
            f"{spent.usd:.4f} USD"
        )
