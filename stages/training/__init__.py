"""What both trainers share: model params, loading and saving policies and adapters, tokenizer and
encoding, the TRL trainer, checkpoints, processes, launcher configurations.
"""
