"""GPT-2 as a task: its settings, its data, its weights, and the backend that trains it."""
