"""The objectives of the stages: modules that run the model and return its loss."""
