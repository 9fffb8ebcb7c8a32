"""The pipeline: one module per stage (`python -m stages.NAME --help`), and the rooms they are built from.

A room is a folder with a docstring that says what is in it. It imports only rooms above it in ROOMS.
"""

ROOMS = (
    "core",
    "domain",
    "chemistry",
    "chat",
    "teacher",
    "judging",
    "scoring",
    "dataset",
    "training",
    "preference",
    "local",
    "reporting",
    "tools",
)
