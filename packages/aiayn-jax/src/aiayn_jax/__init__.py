"""The encoder-decoder of "Attention Is All You Need" in JAX."""

TRAIN, TRANSLATE = "aiayn-jax-train", "aiayn-jax-translate"
"""The names of the two commands."""
