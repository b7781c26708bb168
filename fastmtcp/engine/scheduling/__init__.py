"""Which stream sends next, and on which subflow."""
