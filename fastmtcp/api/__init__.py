"""The library: what `import fastmtcp` offers, over the same workers as the commands."""
