"""The server of a peer: nginx sends the bytes of the cache's entries, and a small service decides who gets them."""
