"""What every contender of replies.py does alike; standard library only, since each runs in an environment of its own.

    job = contender.begin()          # after the imports: the clock of "imports aside" starts
    ... ask job.rows, made into prompts by PROMPTS[job.template] and made into rows again by PARSERS[job.parser] ...
    contender.finish(job, rows)      # all rows in hand, in the order of job.rows

The job is a JSON file, the only argument of the script. A contender keeps what it keeps (cache, store) in the working folder.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What to ask, of whom. A reply's row is what the parser makes of its text."""

    url: str
    rows: list[str]
    out: str
    model: str = "m"
    temperature: float = 0.0
    system: str | None = None
    template: str = "plain"
    parser: str = "plain"
    concurrency: int = 64
    began: float = field(default_factory=time.monotonic)


PROMPTS = {"plain": "{}".format, "edited": "Question: {}".format}
PARSERS = {"plain": str, "edited": str.upper}


def begin() -> Job:
    """The job of this process."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def finish(job: Job, rows: list[str | None]) -> None:
    """Write what came of the job."""
    finished = time.monotonic()
    Path(job.out).write_text(json.dumps({"began": job.began, "finished": finished, "rows": rows}))
