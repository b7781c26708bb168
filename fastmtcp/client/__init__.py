"""The client: applications become streams over a session with a server."""
