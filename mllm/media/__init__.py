"""Recordings in, clips and windows out: the only decoder of the project."""
