"""The webhook process: answers admission reviews. It is stateless and runs in several replicas, without kopf."""
