"""The gate's process: it removes startup taints from nodes on which the models are warm."""
