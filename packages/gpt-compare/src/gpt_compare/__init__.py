"""Trains the same GPT-2 with every backend and with plain PyTorch, and reports what each costs."""
