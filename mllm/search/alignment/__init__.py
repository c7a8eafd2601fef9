"""Temporal alignment of picture and sound, of two sounds, and of a sound and a transcript."""
