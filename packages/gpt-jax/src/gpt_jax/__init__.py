"""GPT-2 in pure JAX: functions over a named tree, one jitted step, own loss and own AdamW."""
