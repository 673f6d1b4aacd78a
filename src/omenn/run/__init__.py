"""What the commands do: explain pictures, check a model, show the demonstration."""
