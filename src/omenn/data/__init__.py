"""Data: the generated birds, FunnyBirds in its official layout."""
