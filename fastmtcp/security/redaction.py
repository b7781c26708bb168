"""Hides keys and links in texts that are shown."""

from __future__ import annotations

import re

# Something long and hexadecimal that stands alone is most likely a key in the wrong place.
# What is part of a path is not (container file systems have 64-digit directory names).
_KEY_LIKE = re.compile(r"(?<![\w/.-])[0-9a-fA-F]{48,}(?![\w/-]|\.\w)")

_LINK_LIKE = re.compile(r"fastmtcp:/+[^\s'\"`]*", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with everything that could be a key or a link put on the command line by mistake
    hidden."""
    return _KEY_LIKE.sub("(hidden)", _LINK_LIKE.sub("(hidden)", text))
