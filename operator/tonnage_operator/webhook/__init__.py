"""The process that answers admission reviews: stateless, several replicas, no kopf."""
