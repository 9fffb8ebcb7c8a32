"""Characters that show nothing, which could split a word that a rule looks for.

HIDDEN.sub("", "re\\u200bfuse")    -> "refuse"
"""

import re

# Soft hyphen, zero-width and direction marks, invisible operators, variation selectors, the byte
# order mark, and tags.
HIDDEN = re.compile(
    r"[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
