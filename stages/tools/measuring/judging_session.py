"""Judging outside the pipeline: the verdicts that stage `judge` would give, by the same judges.

    with MeasuringSession("judge", random_seed, caps) as session:
        verdicts = judge_responses(session, responses, test, panel)

The frame has the columns stages.judging.verdicts.COLUMNS.
"""

from stages.chat.client import Session
from stages.chat.protocol import OFFLINE, Endpoint
from stages.domain.description import load_domain_or_default
from stages.judging.verdicts import judge_all


class MeasuringSession(Session):
    """A session outside the pipeline: it leaves data/generation/ alone."""

    def __exit__(self, *_: object) -> None:
        """Nothing is written."""


def judge_responses(session: Session, responses, test, panel: dict[str, Endpoint]):
    """Verdicts on `responses` to the prompts of `test`. Raises LibraError as the stage does."""
    domain = load_domain_or_default()
    return judge_all(session, responses, test, panel, audit_share=0.0, domain=domain)


def sends_requests(panel: dict[str, Endpoint]) -> bool:
    """Whether any judge is a server; the offline ones answer inside the process."""
    return any(judge.base_url != OFFLINE for judge in panel.values())
