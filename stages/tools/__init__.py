"""Commands beside the pipeline, `python -m stages.tools`. Nothing imports them and no stage
depends on them.
"""
