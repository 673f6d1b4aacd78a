"""What makes an exact map faithful: configurations of it against the other methods."""
