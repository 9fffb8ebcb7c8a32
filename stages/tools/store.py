"""Look into the reply store: what was paid for, archives of it, and the replies of no use.

python -m stages.tools store                            # requests, tokens and cost by stage and model
python -m stages.tools store export FILE.parquet        # all of it as an archive
python -m stages.tools store export --used FILE.parquet # what the last run of each stage used: goes with a release
python -m stages.tools store import FILE                # what is not there yet of an archive, or of a store that was set aside
python -m stages.tools store retry                      # ask for the replies of no use once more, next time
python -m stages.tools store faults                     # the replies of no use: stage, fault, key, the server's JSON
"""

import argparse
from pathlib import Path
from typing import Any

from stages.chat.store import COLUMNS, SQLITE, Store, store_path, taken_over
from stages.core import cli
from stages.core.errors import LibraError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=("show", "export", "import", "retry", "faults"),
        nargs="?",
        default="show",
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="the archive, a Parquet file (import: or a store that was set aside)",
    )
    parser.add_argument(
        "--used", action="store_true", help="export only what the last run of each stage used"
    )
    options = parser.parse_intermixed_args(arguments)  # a file after --used
    if (options.command in ("export", "import")) != (options.file is not None):
        parser.error("export and import take a file, show, retry and faults take none")
    if options.used and options.command != "export":
        parser.error("--used goes with export")
    cli.guarded("store", lambda: _command(options.command, options.file, options.used))


def _command(command: str, file: Path | None, used: bool = False) -> None:
    import polars as pl

    from stages.core.tables import read_table, write_table

    with Store(store_path()) as store:
        if command == "export":
            rows = store.rows(used)
            if not rows:
                which = "that the last run of a stage used" if used else "to export"
                raise LibraError(
                    f"{store.path} holds no replies {which}, so {file} isn't written; what `offline` answers is never kept"
                )
            table = pl.DataFrame(rows, _schema(), orient="row")
            write_table(table, file, "key")
            print(f"{table.height:,} replies written to {file}")
        elif command == "import":
            old = file.is_file() and file.open("rb").read(len(SQLITE)) == SQLITE
            rows = taken_over(file) if old else read_table(file, COLUMNS).select(COLUMNS).rows()
            print(f"{store.take(rows):,} of {len(rows):,} replies were new")
        elif command == "retry":
            print(f"{store.retry():,} replies of no use will be asked for again")
        elif command == "faults":
            for stage, fault, key, reply in store.faults():
                print(f"{stage}: {fault}\n  {key}\n  {reply}")
        else:
            totals = store.totals()
            print(f"{store.path}: {sum(row[2] for row in totals):,} replies")
            for stage, model, replies, useless, asked, told, usd in totals:
                cost = "no price" if usd is None else f"{usd:,.4f} USD"
                extra = f", {useless:,} of no use" if useless else ""
                print(
                    f"  {stage:<24} {model:<32} {replies:>9,} replies {asked:>12,} + {told:,} tokens, {cost}{extra}"
                )


def _schema() -> dict[str, Any]:
    import polars as pl

    kinds = dict.fromkeys(
        ("sample_index", "prompt_tokens", "completion_tokens", "received"), pl.Int64
    ) | {"usd": pl.Float64}
    return {column: kinds.get(column, pl.String) for column in COLUMNS}
