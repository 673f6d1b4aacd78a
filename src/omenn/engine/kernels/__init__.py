"""Fast backward passes with the numbers of the plain ones."""
