"""What the stages minimise: each objective is a module that runs the model and returns its loss."""
