"""Pairwise comparisons of two candidates: preferences, votes of a panel, win rates."""
