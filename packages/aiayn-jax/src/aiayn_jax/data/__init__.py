"""Sentence pairs: where they come from, their tokens, and batches of few shapes."""
