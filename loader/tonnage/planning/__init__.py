"""Plans a load: segments, parts and output files, computed before any tensor is transferred. Pure."""
