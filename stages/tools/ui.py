"""Show what MLflow recorded, at http://127.0.0.1:5000.

    make ui        # or: python -m stages.tools ui; Ctrl-C stops it

Reads the tracking store, mlflow.db and mlartifacts/ unless MLFLOW_TRACKING_URI names another, and
writes what you edit in the browser.
"""

import argparse
import os
import sys

from stages.core.tracking import tracking_uri


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools ui",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    uri, artifacts = tracking_uri()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", "5000"]
    if artifacts:
        command += ["--default-artifact-root", artifacts]
    os.execv(sys.executable, command)
