"""The model inside vLLM, and vLLM's server made strict; no other room imports vLLM."""
