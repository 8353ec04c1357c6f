"""Tokenization of captions for scoring.

1. Text is lower-cased.
2. Text is normalized by canonical composition (Unicode NFC), so `é` is always one character.
3. A run of the Latin letters a-z is one token, and so is a run of the digits 0-9: `iPhone11` is `iphone`, `11`.
4. Every other character is one token, punctuation too. That includes full-width forms (`Ａ`, `！`) and accented
   letters (`é`): they are neither folded to their plain forms nor joined, so `！` and `!` are different tokens.
5. Whitespace separates tokens and is dropped.

Scores are comparable only with the same tokenization. Source: MUGE's published scores count characters, and runs of
Latin letters or digits as one.
"""

import re
import unicodedata


TOKEN = re.compile(r"[a-z]+|[0-9]+|\S")


def tokenize(text: str) -> list[str]:
    """Split a caption as described above; whitespace gives no tokens."""
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))
