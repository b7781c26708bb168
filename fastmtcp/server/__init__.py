"""The server: streams become connections to targets."""
