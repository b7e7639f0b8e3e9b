"""Decides the Jobs, status and events of one ModelWeights."""
