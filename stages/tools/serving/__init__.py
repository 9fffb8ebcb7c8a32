"""The offline endpoints as a server: HTTP routes, the Batch API, injected faults."""
