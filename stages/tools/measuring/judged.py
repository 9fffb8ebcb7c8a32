"""Judging outside the pipeline: the same verdicts as stage `judge` gives, by the judges of params.yaml.

judged(session, responses, test, judges)    # a frame of stages.judging.verdicts.COLUMNS
"""

from stages.chat.client import Session
from stages.chat.protocol import OFFLINE
from stages.domain.description import domain_here
from stages.judge import JudgeParams
from stages.judging.verdicts import judge_all


class Measured(Session):
    """A session outside the pipeline: it leaves data/generation/ alone."""

    def __exit__(self, *_: object) -> None:
        """Nothing is written."""


def judged(session: Session, responses, test, judges: JudgeParams):
    """Verdicts on `responses` to the requests of `test`; columns as the stage has them."""
    return judge_all(session, responses, test, judges.panel, audit_share=0.0, domain=domain_here())


def are_asked(judges: JudgeParams) -> bool:
    """Whether anything is sent to a judge: one that answers inside the process isn't asked."""
    return any(member.base_url != OFFLINE for member in judges.panel.values())
