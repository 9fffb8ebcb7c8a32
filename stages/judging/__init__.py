"""A text becomes a verdict: rules first, a panel of judges for what they leave open, the two
offline judges, and the paper's judge beside them.
"""
