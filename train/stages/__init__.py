"""The stages of training, one module each, registered in the entry-point group `mllm.stages`.

They import torch only when they run, so that `mllm train --help` stays fast.
"""
