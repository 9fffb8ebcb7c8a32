"""Making a release: its objects in the remote, what changed, the changelog, the versions file."""
