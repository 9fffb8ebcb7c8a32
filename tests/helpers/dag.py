"""What dvc.yaml must say of a stage, worked out from the code; and who imports whom."""

import ast
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES = DVC["stages"]
ORDER = [
    "seed",
    "craft",
    "rephrase",
    "combine",
    "validate",
    "sft",
    "dpo",
    "respond",
    "judge",
    "score",
    "report",
]
# A room imports only rooms before it; `chemistry` is for the stage `seed` and for tools alone.
ROOMS = [
    "core",
    "domain",
    "chemistry",
    "chat",
    "teacher",
    "judging",
    "scoring",
    "dataset",
    "training",
    "preference",
    "local",
    "reporting",
    "tools",
]
RESULTS = ("metrics.json", "cells.csv", "comparisons.csv", "intents.csv", "plane.csv")
FIGURES = ("plane.svg", "cells.svg", "margins.svg")
UNCACHED = tuple(f"data/eval/{name}" for name in (*RESULTS, *FIGURES))  # in Git, not in DVC's cache


def entries(listed: list) -> dict[str, dict]:
    """{path: options} of a list under `outs`, `metrics` or `plots`."""
    pairs = [entry.items() if isinstance(entry, dict) else [(entry, {})] for entry in listed]
    return {path: options for pair in pairs for path, options in pair}


def outs(stage: str) -> dict[str, dict]:
    """Everything a stage writes: {path: options}."""
    lists = [entries(STAGES[stage].get(kind, [])) for kind in ("outs", "metrics", "plots")]
    return lists[0] | lists[1] | lists[2]


def module_files() -> dict[str, Path]:
    """{module: its file, relative to ROOT} for all code in stages/; packages by their __init__."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of stages/ that a file imports anywhere in it, also inside functions."""
    modules, names = module_files(), set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {str(node.module)}
    code = {name for name in names if name in modules and modules[name].name != "__init__.py"}
    return frozenset(code)


def code_files(module: str) -> set[str]:
    """Files (relative paths) that `python -m module` can import, packages' docstrings left out."""
    modules, files = module_files(), set()
    waiting = [module]
    while waiting:
        path = modules[waiting.pop()]
        if str(path) not in files:
            files.add(str(path))
            waiting += imports(path)
    return files


def room_of(path: str | Path) -> str | None:
    """The room a file lies in; None for a stage's own script."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 else None
