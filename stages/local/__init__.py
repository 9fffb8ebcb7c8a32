"""Candidates and their answers in this process: policies and hub models, the n-gram guard, and
what `respond.candidates` may name.
"""
