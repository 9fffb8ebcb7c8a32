"""The exceptions that a user is meant to read.

LibraError            a user's mistake or a broken environment: what is wrong and how to fix it
├── OverBudget        a spending cap is reached (stages/chat/budget.py)
└── Interrupted       the user stopped it (Ctrl-C, SIGTERM)
anything else         a bug in Libra: keeps its traceback
"""


class LibraError(Exception):
    """What went wrong and how to fix it, in one line."""


class Interrupted(LibraError):
    """Stopped on request; everything done so far is kept."""
