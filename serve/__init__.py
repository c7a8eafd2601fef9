"""Serving and asking: vLLM launcher, chat, index, search. Verbs: `mllm serve | chat | index | search`."""
