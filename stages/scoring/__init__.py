"""Verdicts become rates: safety, utility and the rest with intervals clustered by substance,
comparisons of candidates, people's labels and the judges' calibration against them.
"""
