"""What should exist, given what is. Pure functions: no network, no clock, no kopf; time comes as an argument."""
