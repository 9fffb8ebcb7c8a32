"""`python -m stages.tools`: the one way in to the commands beside the pipeline."""

import ast
import re
import subprocess
import sys

import pytest

from helpers.dag import ORDER, ROOT
from stages.tools.__main__ import commands

CODE = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py"))
HEAVY = ("torch", "polars", "numpy", "transformers", "mlflow", "rdkit", "dvc", "openai", "uvicorn")
HELP = """
import sys
from stages.tools.__main__ import main
try:
    main([sys.argv[1], "--help"])
finally:
    print(*sys.modules, file=sys.stderr)
"""


def tools(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stages.tools", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def trees():
    for path in CODE:
        yield path, ast.parse((ROOT / path).read_text(encoding="utf-8"))


def has_main(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def test_the_list_names_every_tool_on_a_line_of_its_own():
    listing = tools()
    rows = re.findall(r"^  ([a-z-]+) +(\S.*)$", listing.stdout, flags=re.M)
    in_tools = {
        path.stem.replace("_", "-")
        for path, tree in trees()
        if path.parts[1] == "tools" and has_main(tree) and path.stem != "__main__"
    }
    assert listing.returncode == 0 and dict(rows).keys() == in_tools
    assert tools("--help").stdout == listing.stdout
    for name, summary in rows:
        assert summary == commands()[name] and summary.endswith(".") and len(summary) <= 75, name


@pytest.mark.parametrize("name", commands())
def test_help_says_what_a_tool_reads_and_writes_and_loads_nothing_heavy(name):
    command = [sys.executable, "-c", HELP, name]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m stages.tools")
    assert commands()[name] in result.stdout
    assert re.search(r"\breads?\b", result.stdout, flags=re.I)
    assert re.search(r"\bwrites?\b", result.stdout, flags=re.I)
    assert not set(HEAVY) & set(result.stderr.split())


def test_an_unknown_tool_is_an_error_with_the_nearest_name():
    failed = tools("estimat", "--help")
    assert failed.returncode == 1
    assert re.fullmatch(
        r"error: there is no tool `estimat`\W+did you mean `estimate`\?\n", failed.stderr
    )


def test_only_stages_and_the_tools_entry_point_can_be_run():
    runnable = {
        path.as_posix()
        for path, tree in trees()
        if any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
        )
    }
    assert runnable == {"stages/tools/__main__.py", *(f"stages/{stage}.py" for stage in ORDER)}
    for path, tree in trees():
        if has_main(tree):
            assert len(path.parts) == 2 or path.parts[:2] == ("stages", "tools"), path
