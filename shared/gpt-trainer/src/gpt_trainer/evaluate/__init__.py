"""The validation loss, other evaluations, and the command that makes the first of a model that exists."""
