"""Any OpenAI-compatible chat endpoint, each reply paid for once: requests and replies, the client,
its pace and budget, batches, the reply store, and endpoints inside this process.
"""
