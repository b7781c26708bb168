"""What both sides of a proxy write: SOCKS5 (RFC 1928, sections 3 and 4) and HTTP."""

from __future__ import annotations

import re

NO_LOGIN, PASSWORD, NONE_FITS = 0, 2, 255
"""How to log in."""

IPV4, NAME, IPV6 = 1, 3, 4
"""Kinds of addresses."""

END = re.compile(rb"\r?\n\r?\n")
"""The end of an HTTP head."""
