"""Object storage: addresses, credentials, listing, pinning, and what its failures mean."""
