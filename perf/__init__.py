"""Benchmarks of fastmtcp. Each has a script of its own beside this file; see README.md."""
