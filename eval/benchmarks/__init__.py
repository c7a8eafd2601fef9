"""The benchmarks of this package: one file each, named in pyproject.toml under `mllm.benchmarks`."""
