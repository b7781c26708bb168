"""Streams: bytes in order, each direction by itself."""
