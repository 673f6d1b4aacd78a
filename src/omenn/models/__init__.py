"""Models by name, the bundled networks, and their training."""
