"""The engine: a model's output as one affine map of its input. It imports torch alone."""
