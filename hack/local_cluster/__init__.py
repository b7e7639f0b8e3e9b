"""A real one-node Kubernetes on this machine, for tests and for looking around: ``python -m local_cluster up``."""
