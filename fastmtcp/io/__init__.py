"""Owns file descriptors: the loop, buffers, sockets. No policy here."""
