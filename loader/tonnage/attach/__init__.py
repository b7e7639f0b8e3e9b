"""From a cache entry to tensors. Needs torch, which nothing else in Tonnage imports."""
