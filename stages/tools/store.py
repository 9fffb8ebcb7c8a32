"""Look into the reply store: costs, archives, and unusable replies.

    python -m stages.tools store                            # requests, tokens and USD by stage
    python -m stages.tools store export FILE.parquet        # archive of everything in it
    python -m stages.tools store export --used FILE.parquet # only what each stage's last run used
    python -m stages.tools store import FILE                # merge an archive or another store
    python -m stages.tools store retry                      # request unusable replies again
    python -m stages.tools store faults                     # print them: stage, fault, key, JSON

Reads and writes .cache/replies.sqlite; `export` writes the Parquet file, `import` reads it. A store
of any earlier version can be imported as well. What was bought stays bought, and its batches under
way are fetched by the next run. An archive with --used goes with a release (in data/replies/), and
counts as nobody's spending.
"""

import argparse
from pathlib import Path

from stages.core import cli


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
        help="the archive, a Parquet file (import: or another store, an SQLite file)",
    )
    parser.add_argument(
        "--used", action="store_true", help="export only what the last run of each stage used"
    )
    options = parser.parse_intermixed_args(arguments)  # a file after --used
    if (options.command in ("export", "import")) != (options.file is not None):
        parser.error("export and import need a file; show, retry and faults take none")
    if options.used and options.command != "export":
        parser.error("--used goes with export")
    cli.guarded("store", lambda: run(options.command, options.file, options.used))


def run(command: str, file: Path | None = None, used: bool = False) -> None:
    """Run one of the commands. Raises LibraError."""
    from stages.chat.archives import export_archive, import_file
    from stages.chat.store import Store, store_path

    with Store(store_path()) as store:
        if command == "export":
            print(f"{export_archive(store, file, used):,} replies written to {file}")
        elif command == "import":
            new, total = import_file(store, file)
            print(f"{new:,} of {total:,} replies were new")
        elif command == "retry":
            print(f"{store.retry():,} unusable replies will be requested again")
        elif command == "faults":
            for stage, fault, key, reply in store.faults():
                print(f"{stage}: {fault}\n  {key}\n  {reply}")
        else:
            _show(store)


def _show(store) -> None:
    totals = store.totals()
    print(f"{store.path}: {sum(row[2] for row in totals):,} replies")
    for stage, model, replies, unusable, prompt_tokens, completion_tokens, usd in totals:
        cost = "no price" if usd is None else f"{usd:,.4f} USD"
        extra = f", {unusable:,} unusable" if unusable else ""
        counts = f"{replies:>9,} replies {prompt_tokens:>12,} + {completion_tokens:,} tokens"
        print(f"  {stage:<24} {model:<32} {counts}, {cost}{extra}")
