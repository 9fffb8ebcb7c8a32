"""Who replies.py measures, the fake endpoint that they ask, and a run of one of them.

with Server("--latency", "0.05") as server, empty_folder() as folder:
    result = run(OURS, server, folder, ["prompt 0", "prompt 1"])
result.served, result.stale    # 2, 0
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fake_endpoint import reply_text

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CONCURRENCY = 64
LONGEST = 900.0  # seconds a run may take; a longer one counts as never finished
SETTINGS = {  # no telemetry, and no look-ups on the network that a run doesn't need
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NEMO_TELEMETRY_ENABLED": "false",
    "NO_PROXY": "127.0.0.1",
    "TELEMETRY_ENABLED": "false",
}


@dataclass(frozen=True)
class Contender:
    """A script that does a job (contender.py), its Python, and the package whose version counts."""

    name: str
    script: Path
    python: Path = Path(sys.executable)
    package: str | None = None

    def versioned(self) -> str:
        """Its name with the version of its package."""
        if self.package is None:
            return self.name
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        command = [self.python, "-c", code]
        version = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return f"{self.name} ({self.package} {version.strip()})"


def _peer(name: str, folder: str, package: str, script: str) -> Contender:
    python = REPOSITORY / ".cache" / "peers" / folder / "bin" / "python"
    return Contender(name, HERE / "peers" / script, python, package)


OURS = Contender("Libra", HERE / "ours.py")
BARE = Contender("bare loop", HERE / "bare.py", package="openai")
CURATOR = _peer("Bespoke Curator", "curator", "bespokelabs-curator", "curator.py")
DATA_DESIGNER = _peer("NeMo Data Designer", "data_designer", "data-designer", "data_designer_.py")
DISTILABEL = _peer("distilabel", "distilabel", "distilabel", "distilabel_.py")
PEERS = (CURATOR, DATA_DESIGNER, DISTILABEL)
# In Curator's environment; without it tiktoken, which two peers use, downloads the same.
TOKEN_TABLES = "lib/python*/site-packages/litellm/litellm_core_utils/tokenizers"


@dataclass(frozen=True)
class Question:
    """What is asked about the rows; the edits of the matrix change it."""

    model: str = "m"
    temperature: float = 0.0
    system: str | None = None
    template: str = "plain"
    parser: str = "plain"

    def answers(self, path: str, rows: list[str]) -> list[str]:
        """The rows that a run must end with."""
        url = f"{path}/chat/completions"
        texts = []
        for row in rows:
            user = f"Question: {row}" if self.template == "edited" else row
            text = reply_text(url, self.model, self.temperature, self.system, user)
            texts.append(text.upper() if self.parser == "edited" else text)
        return texts


PLAIN = Question()


@dataclass(frozen=True)
class Run:
    """Figures of a run. Times in seconds; `first` and `asking` mean nothing if nothing was sent."""

    served: int
    refused: int
    first: float  # process start to the first request
    asking: float  # first request to the last row
    working: float  # end of the imports to the last row
    peak: float  # MiB, of the contender's largest process
    stale: int  # rows that are wrong, missing or too many
    ordered: bool  # every row in its place

    @property
    def total(self) -> float:
        """Process start to the last row."""
        return self.first + self.asking


class Failed(Exception):
    """A contender that stopped with an error or didn't finish."""


class Server:
    """A fake endpoint in a process of its own."""

    def __init__(self, *arguments: str):
        command = [sys.executable, str(HERE / "fake_endpoint.py"), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def counts(self, reset: bool = False) -> dict:
        """What came in so far; `reset` starts again from zero."""
        method = "DELETE" if reset else "GET"
        request = urllib.request.Request(f"{self.address}/counts", method=method)
        with urllib.request.urlopen(request) as response:
            return json.load(response)


@contextmanager
def empty_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="libra-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(
    contender: Contender, url: str, folder: Path, rows: list[str], question: Question
) -> subprocess.Popen:
    """Start the contender in `folder`; its output goes to log.txt there."""
    job = {
        "url": url,
        "rows": rows,
        "out": str(folder / "out.json"),
        "concurrency": CONCURRENCY,
        **asdict(question),
    }
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "out.json").unlink(missing_ok=True)

    private = ("DVC_", "PYTHON", "OPENAI_")
    environment = {key: text for key, text in os.environ.items() if not key.startswith(private)}
    environment |= SETTINGS
    environment |= {"PYTHONPATH": f"{HERE}{os.pathsep}{REPOSITORY}", "HOME": str(folder)}
    for tables in CURATOR.python.parent.parent.glob(TOKEN_TABLES):
        environment["TIKTOKEN_CACHE_DIR"] = str(tables)
    command = [str(contender.python), str(contender.script), str(folder / "job.json")]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def run(
    contender: Contender,
    server: Server,
    folder: Path,
    rows: list[str],
    question: Question = PLAIN,
    path: str = "/v1",
    reset: bool = True,
) -> Run:
    """One run to its end; what it stores in `folder` is there for the next one.

    With `reset`, requests from before don't count. Raises Failed.
    """
    server.counts(reset)
    began = time.monotonic()
    process = start(contender, server.address + path, folder, rows, question)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        if time.monotonic() - began > LONGEST:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            served = server.counts()["served"]
            raise Failed(
                f"not done after {LONGEST:.0f} s ({served:,} of {len(rows):,} requests served)"
            )
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(ended[1])

    counts = server.counts()
    if not (folder / "out.json").exists():
        last_line = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"stopped after {counts['served']:,} requests ({' '.join(last_line)[:120]})")
    out = json.loads((folder / "out.json").read_text())
    expected = question.answers(path, rows)
    missing = Counter(expected) - Counter(out["rows"])
    extra = Counter(out["rows"]) - Counter(expected)
    first = counts["first"] or out["finished"]
    return Run(
        served=counts["served"],
        refused=counts["refused"],
        first=first - began,
        asking=out["finished"] - first,
        working=out["finished"] - out["began"],
        peak=ended[2].ru_maxrss / 1024,
        stale=max(missing.total(), extra.total()),
        ordered=out["rows"] == expected,
    )
