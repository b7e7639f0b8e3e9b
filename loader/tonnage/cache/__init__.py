"""The cache on this machine: entries, locks, journals, manifests."""
