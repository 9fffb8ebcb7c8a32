"""Judging outside the pipeline: the same verdicts as stage `judge` gives, by the judges of params.yaml.

judged(session, responses, test, panel)    # a frame of stages.judging.verdicts.COLUMNS
"""

from stages.chat.client import Session
from stages.chat.protocol import OFFLINE, Endpoint
from stages.domain.description import load_domain_or_default
from stages.judging.verdicts import judge_all


class Measured(Session):
    """A session outside the pipeline: it leaves data/generation/ alone."""

    def __exit__(self, *_: object) -> None:
        """Nothing is written."""


def judged(session: Session, responses, test, panel: dict[str, Endpoint]):
    """Verdicts on `responses` to the requests of `test`; columns as the stage has them."""
    return judge_all(session, responses, test, panel, audit_share=0.0, domain=load_domain_or_default())


def are_asked(panel: dict[str, Endpoint]) -> bool:
    """Whether anything is sent to a judge: one that answers inside the process isn't asked."""
    return any(member.base_url != OFFLINE for member in panel.values())
