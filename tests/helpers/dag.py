"""What dvc.yaml must say of a stage, worked out from the code."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_files(module: str) -> set[str]:
    """Project files (relative paths) that `python -m module` may import, functions' own imports included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = _path(waiting.pop())
        if path is None or str(path) in found:
            continue
        found.add(str(path))
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative import"
                waiting.append(node.module)
                waiting += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _path(module: str) -> Path | None:
    """The file of a module of this project, None for others and for packages (their __init__ files are empty)."""
    if module.split(".")[0] != "stages":
        return None
    path = Path(*module.split(".")).with_suffix(".py")
    return path if (ROOT / path).exists() else None
