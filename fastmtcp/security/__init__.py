"""Who is who: keys, links, certificates, the handshake."""
