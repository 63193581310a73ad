"""One module per backend: its ops under the referee's names, and the errors that can be planted in it."""
