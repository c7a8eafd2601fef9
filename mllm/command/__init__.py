"""The command `mllm` and what only its verbs need."""
