"""DPO alone: the preference grid, shared prefixes, the reference's log-probabilities, the mean of
several policies. `sft` never depends on it.
"""
