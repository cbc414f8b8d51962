"""Plain networks: no physics, no solves."""
