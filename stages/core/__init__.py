"""What every stage shares: strict params, tables written whole or not at all, caches keyed by
content, progress, errors a user reads, MLflow records. It imports no other room and changes
seldom, because every stage depends on it.
"""
