"""What every `python -m stages.NAME` shares: --help from the module's own words, and errors as one line."""

import argparse
import sys
from collections.abc import Callable

from stages.core.errors import Interrupted, LibraError


def run(name: str, main: Callable[[], None], doc: str) -> None:
    """Parse the command line of stage `name`, run `main`, and turn a LibraError into one line and exit status 1.

    `doc` is the module's docstring: it says what the stage reads, writes and which params change it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    guarded(name, main)


def guarded(name: str, main: Callable[[], None]) -> None:
    """Call `main`; a LibraError, a full disk or Ctrl-C ends the process with one line on stderr (exit status 1; 130 if stopped)."""
    try:
        main()
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(130)
    except LibraError as error:
        sys.exit(f"{name}: error: {error}")
    except OSError as error:
        if error.errno is None or error.filename is None and error.errno != 28:
            raise
        sys.exit(
            f"{name}: error: {error.strerror}: {error.filename or 'while writing'}; free space or mend the path, then run again"
        )
    except KeyboardInterrupt:
        print(
            f"{name}: stopped by Ctrl-C; outputs are renamed into place only when whole, so nothing is half-written",
            file=sys.stderr,
        )
        sys.exit(130)
