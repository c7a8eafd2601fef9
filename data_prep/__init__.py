"""Preparing data: the generated world, and looking at records. Imports `mllm`, never another wing."""
