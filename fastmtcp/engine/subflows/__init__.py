"""Subflows as the engine sees them: what they carry and how fast."""
