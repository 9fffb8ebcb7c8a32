"""Virtual environments of their own for tools that tests need and the project doesn't: made once, under .cache/venvs."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers.dag import ROOT


def venv_python(name: str, *packages: str) -> str:
    """The Python of the environment `name` with `packages`; skips the test, saying why, where it can't be made, and in CI always."""
    if os.environ.get("CI"):
        pytest.skip(f"{name}: not installed in CI")
    folder = ROOT / ".cache/venvs" / name
    python, ready = folder / "bin/python", folder / "installed"
    wanted = "\n".join(packages)
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", str(folder)],
                check=True,
                capture_output=True,
                timeout=60,
            )
            install = [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *packages,
            ]
            subprocess.run(install, check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            pytest.skip(
                f"{name}: can't be installed ({said.decode().strip().splitlines()[-1][:200]})"
            )
        ready.write_text(wanted)
    return str(python)
