"""From logits to tokens to text, and the command that continues a prompt."""
