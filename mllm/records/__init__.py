"""Conversation records: what is asked and answered about recordings, checked at the door."""
