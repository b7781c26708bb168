"""The subflows of a client's session, kept at their number on every path."""
