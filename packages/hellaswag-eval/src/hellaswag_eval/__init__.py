"""HellaSwag for any model that gives log-probabilities."""
