"""Commands beside the pipeline: `python -m stages.tools` lists them.

    python -m stages.tools NAME ...
    python -m stages.tools NAME --help

A command is a module of this folder with `main(arguments)`; the first line of its docstring is its
line in the list. No stage depends on any of them.
"""

import ast
import importlib
import sys
from pathlib import Path

USAGE = "usage: python -m stages.tools NAME ...   (python -m stages.tools NAME --help says more)"


def commands() -> dict[str, str]:
    """{name: the first line of its docstring}, in alphabetical order, without importing any."""
    summaries = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("__"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summaries[path.stem.replace("_", "-")] = doc.partition("\n")[0]
    return summaries


def main(arguments: list[str]) -> None:
    summaries = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, summaries))
        lines = [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
        print("\n".join([USAGE, "", *lines]))
        return

    name, *rest = arguments
    if name not in summaries:
        from stages.core.params import did_you_mean

        sys.exit(f"error: there is no tool `{name}`{did_you_mean(name, summaries)}")
    importlib.import_module(f"stages.tools.{name.replace('-', '_')}").main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
