"""The exceptions a user is meant to read.

LibraError            a user's mistake or a broken surrounding: one line that names the thing and the mend
├── OverBudget        a spending cap is reached (stages/chat/budget.py)
└── Interrupted       the user stopped it (Ctrl-C, SIGTERM)
anything else         a bug in Libra: keeps its traceback
"""


class LibraError(Exception):
    """What went wrong and how to mend it, in one or two sentences."""


class Interrupted(LibraError):
    """Stopped on request; what was done by then is kept."""
