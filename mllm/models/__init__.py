"""The model, its parts, and checkpoints that keep them."""
