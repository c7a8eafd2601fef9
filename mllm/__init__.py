"""mllm: a recording becomes a row of time windows, and every window becomes a few tokens.

The library that training, evaluation and serving share. Import the modules you need; this file stays
empty so that `mllm --help` need not load torch.
"""

__version__ = "0.1.0"
