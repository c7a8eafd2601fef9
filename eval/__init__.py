"""Scoring: benchmarks, metrics, baselines, reports. Verbs: `mllm eval …`."""
