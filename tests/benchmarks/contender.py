"""What all contenders of replies.py share; standard library only, since each has its own venv.

    job = contender.begin()          # after the imports: starts the clock that leaves them out
    ...                              # make prompts by PROMPTS[job.template], rows by PARSERS[...]
    contender.finish(job, rows)      # all rows, in the order of job.rows

The job is a JSON file, the only argument of the script. A contender's cache or store is in the
working folder.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What to ask, and where. The parser makes a row of each reply's text."""

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
    """Write the rows and the times."""
    finished = time.monotonic()
    Path(job.out).write_text(json.dumps({"began": job.began, "finished": finished, "rows": rows}))
