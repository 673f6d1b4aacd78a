"""Pictures: reading files, preprocessing, and the locations of a map."""
