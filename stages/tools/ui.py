"""Serve what MLflow has recorded at http://127.0.0.1:5000, until interrupted."""

import argparse
import os
import sys

from stages.core.tracking import tracking_uri


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m stages.tools ui", description=__doc__).parse_args(
        arguments
    )
    uri, artifacts = tracking_uri()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        "5000",
    ]
    if artifacts:
        command += ["--default-artifact-root", artifacts]
    os.execv(sys.executable, command)
