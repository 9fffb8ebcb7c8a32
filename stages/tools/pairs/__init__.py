"""Pairwise preferences: votes of a panel and win rates."""
