"""Built-in benchmarks, one module each, registered in pyproject.toml under `mllm.benchmarks`."""
