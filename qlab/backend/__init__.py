"""The torch twins of the NumPy reference: the same numbers to the last bit, on any device, differentiable."""
