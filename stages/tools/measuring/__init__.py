"""Measuring outside the pipeline: sampling the test set, judging, the inspect_ai task."""
