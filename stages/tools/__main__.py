"""Commands beside the pipeline: `python -m stages.tools NAME ...`, and `python -m stages.tools NAME --help`.

A command is a module of this folder with `main(arguments)`; no stage depends on any of them.
"""

import ast
import importlib
import sys
from pathlib import Path

USAGE = "usage: python -m stages.tools NAME ...   (python -m stages.tools NAME --help says more)"


def commands() -> dict[str, str]:
    """{name: the first line of its docstring}, in alphabetical order, without importing any."""
    files = sorted(
        path for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("__")
    )
    docs = {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in files
    }
    return {name.replace("_", "-"): doc.partition("\n")[0] for name, doc in docs.items()}


def main(arguments: list[str]) -> None:
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, known))
        print(
            "\n".join([USAGE, "", *(f"  {name:<{width}}  {line}" for name, line in known.items())])
        )
        return
    name, *rest = arguments
    if name not in known:
        from stages.core.params import did_you_mean

        sys.exit(f"error: there is no tool `{name}`{did_you_mean(name, known)}")
    importlib.import_module(f"stages.tools.{name.replace('-', '_')}").main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
