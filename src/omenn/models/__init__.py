"""Models by name, and pictures made ready for them."""
