"""Substances: the catalog by hand, their identity, measured properties, hazards, and the screens
that keep dangerous structures out. Only the stage `seed` looks in here.
"""
