"""``python -m gpt_torchfunc.train``: the command ``gpt-torchfunc-train``, as torchrun starts it."""

from gpt_torchfunc.commands import train

if __name__ == "__main__":
    train()
