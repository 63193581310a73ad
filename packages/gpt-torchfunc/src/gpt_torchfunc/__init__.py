"""GPT-2 as pure functions over a named parameter tree: ``torch.func`` gradients, one compiled step."""
