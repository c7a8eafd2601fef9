"""The stages of training, one file each, named in the entry-point group `mllm.stages`.

They load torch only when they run, so that `mllm train --help` stays quick.
"""
