"""A session on the loop: its subflows' sockets and its applications' sockets."""
