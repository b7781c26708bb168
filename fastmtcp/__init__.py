"""fastmtcp: one TCP stream, as fast as N connections."""

__version__ = "0.1.0"

__all__ = ["__version__"]
