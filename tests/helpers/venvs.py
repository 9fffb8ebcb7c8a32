"""Virtual environments for tools that only tests need, kept under .cache/venvs."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers.dag import ROOT


def venv_python(name: str, *packages: str) -> str:
    """The Python of the environment `name`, which is created with `packages` if necessary.

    Skips the test in CI, and where the packages can't be installed.
    """
    if os.environ.get("CI"):
        pytest.skip(f"{name}: not installed in CI")
    folder = ROOT / ".cache/venvs" / name
    python, installed = folder / "bin/python", folder / "installed"
    requirements = "\n".join(packages)
    if not installed.exists() or installed.read_text() != requirements:
        shutil.rmtree(folder, ignore_errors=True)
        create = [sys.executable, "-m", "venv", str(folder)]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            subprocess.run(create, check=True, capture_output=True, timeout=60)
            subprocess.run([*pip, *packages], check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            output = getattr(error, "stderr", None) or str(error).encode()
            reason = output.decode().strip().splitlines()[-1][:200]
            pytest.skip(f"{name}: could not be installed ({reason})")
        installed.write_text(requirements)
    return str(python)
