"""Object storage: addresses, credentials, listing, pinning, and the classification of failed requests."""
