"""The pipeline: one module per stage (`python -m stages.NAME --help`), and the rooms they use.

A room is a folder whose docstring says what is in it. It imports only rooms before it in this list:
core, domain, chemistry, chat, teacher, judging, scoring, dataset, training, preference, local,
reporting, tools. tests/test_rooms.py draws the arrows.
"""
