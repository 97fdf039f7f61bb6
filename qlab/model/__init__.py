"""Networks: recipes that say what is quantized and how, and the PyTorch layers that come of it."""
