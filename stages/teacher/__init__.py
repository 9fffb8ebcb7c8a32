"""What a teacher is asked for (fact sheets, prompts, response schemas), the checks on what it
writes, and the offline teacher that writes from a grammar.
"""
