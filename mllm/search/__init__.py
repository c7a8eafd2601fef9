"""Embeddings of recordings and texts in one space, and the index that finds them."""
