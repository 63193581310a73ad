"""``python -m gpt_triton.train``: the command ``gpt-triton-train``, as torchrun starts it."""

from gpt_triton.commands import train

if __name__ == "__main__":
    train()
