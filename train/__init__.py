"""Training: language model, contrastive adapters, instruction tuning. Verbs: `mllm train …`."""
