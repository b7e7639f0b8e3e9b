"""Files of tensors on this machine: cache entries and plain files, and which tensor lies where."""
