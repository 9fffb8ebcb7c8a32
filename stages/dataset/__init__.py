"""What `validate` holds a release to: the contract on columns and invariants, probes for
shortcuts, the dataset card, its metadata and checksums.
"""
