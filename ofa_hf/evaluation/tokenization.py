"""The one rule by which captions become tokens before they are scored.

1. Case does not count: text is lower-cased.
2. Text that looks the same is the same: canonical composition (Unicode NFC), so `é` is one character however typed.
3. A run of the Latin letters a-z is one token, and so is a run of the digits 0-9: `iPhone11` is `iphone`, `11`.
4. Every other character is one token, punctuation too. That includes full-width forms (`Ａ`, `！`) and accented
   letters (`é`): they are neither folded to their plain forms nor joined, so `！` and `!` are different tokens.
5. Blanks of any kind separate tokens and are none themselves.

Scores are comparable only under one rule. Source: MUGE's published scores count characters, a Latin or digit run as
one.
"""

import re
import unicodedata


TOKEN = re.compile(r"[a-z]+|[0-9]+|\S")


def tokenize(text: str) -> list[str]:
    """Split a caption by the rule of this module; a text of blanks gives no token."""
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))
