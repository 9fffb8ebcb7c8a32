"""What every `python -m stages.NAME` shares: --help from its docstring, and one-line errors.

if __name__ == "__main__":
    cli.run("seed", main, __doc__)
"""

import argparse
import errno
import sys
from collections.abc import Callable

from stages.core.errors import Interrupted, LibraError


def run(name: str, main: Callable[[], None], doc: str | None) -> None:
    """Parse the command line of stage `name` and run `main` as `guarded` does.

    `doc` is the module's docstring: what the stage reads, writes, and which params change it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    guarded(name, main)


def guarded(name: str, main: Callable[[], None]) -> None:
    """Call `main`; a LibraError, a file error or Ctrl-C ends the process with one line on stderr.

    The exit status is 1, or 130 if stopped. Anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(130)
    except LibraError as error:
        sys.exit(f"{name}: error: {error}")
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        place = error.filename or "while writing"
        fix = "free space or fix the path, then run again"
        sys.exit(f"{name}: error: {error.strerror}: {place}; {fix}")
    except KeyboardInterrupt:
        outputs = "no output is half-written, since each is renamed into place when complete"
        print(f"{name}: stopped by Ctrl-C; {outputs}", file=sys.stderr)
        sys.exit(130)
