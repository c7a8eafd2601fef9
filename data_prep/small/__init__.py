"""The data of the checkpoint `small`: open sets of recordings, mixtures of them, spoken words, and chat."""
