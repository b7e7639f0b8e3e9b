"""What people see: the two resources, their names, and the annotations of pods. Models without I/O."""
