"""Damaged recordings by the thousand: `make fuzz`."""
