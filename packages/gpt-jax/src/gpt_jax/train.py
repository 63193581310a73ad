"""``python -m gpt_jax.train``: the command ``gpt-jax-train``, as a launcher of processes starts it."""

from gpt_jax.commands import train

if __name__ == "__main__":
    train()
