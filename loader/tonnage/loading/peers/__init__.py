"""A load's peers: who they are, what they have, and what this load shows to them."""
