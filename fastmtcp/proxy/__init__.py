"""SOCKS5, HTTP and the PROXY header, from both sides."""
