"""The one exception a user is meant to read.

    LibraError            a user's mistake or a broken surrounding: one line that names the thing and the mend
    └── anything else     a bug in Libra: keeps its traceback
"""


class LibraError(Exception):
    """What went wrong and how to mend it, in one or two sentences."""
