"""The user-facing API: the two resources, names, and pod annotations. Pydantic models without I/O."""
