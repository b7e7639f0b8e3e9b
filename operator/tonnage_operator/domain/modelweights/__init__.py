"""Decides what one ModelWeights needs: Jobs, status, events."""
