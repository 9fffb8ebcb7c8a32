"""What is asked of what, and what must never be said: a domain's description (intents, label
table), the planner of seeds, groups and splits, and the safety gate.
"""
