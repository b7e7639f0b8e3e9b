"""What will be written where: segments, parts and output files, decided before a byte moves. Pure."""
