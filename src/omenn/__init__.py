"""omenn: one matrix that explains what a PyTorch network did with one input, exactly."""
