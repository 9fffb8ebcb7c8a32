"""A server that a test starts as a process of its own."""

import os
import re
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(folder: Path, *command: str):
    """The address that a server started in `folder` prints."""
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(folder),
    }
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+)(?:/v1)?", said)):
            line = server.stdout.readline()
            assert line, f"{command} ended: {said}"
            said += line
        threading.Thread(
            target=server.stdout.read, daemon=True
        ).start()  # so that it never waits for a reader
        yield f"{found[1]}/v1"
    finally:
        server.terminate()
        server.wait(20)
