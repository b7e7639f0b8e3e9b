"""The compiled part of the copy, and its functions."""
