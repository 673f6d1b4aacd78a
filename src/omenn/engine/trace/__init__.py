"""Who sees the calls of a model: the tracer, what it hands to rules, and what could pass by it."""
