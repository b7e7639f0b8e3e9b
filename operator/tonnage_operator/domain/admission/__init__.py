"""Decides how a pod that asks for weights is changed."""
