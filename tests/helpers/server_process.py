"""A server that a test starts as a process of its own."""

import os
import re
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(folder: Path, *command: str):
    """The base URL of a server started in `folder`, from what it prints."""
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(folder),
    }
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            printed = ""
            while not (url := re.search(r"(http://127\.0\.0\.1:\d+)(?:/v1)?", printed)):
                line = server.stdout.readline()
                assert line, f"{command} ended: {printed}"
                printed += line
            # Drain the pipe, so that the server never blocks on a full one.
            reader = threading.Thread(target=server.stdout.read, daemon=True)
            reader.start()
            yield f"{url[1]}/v1"
        finally:
            server.terminate()
            server.wait(20)
        reader.join(20)
