"""Transfers: worker processes that fetch parts, compute their checksums and write them to files."""
