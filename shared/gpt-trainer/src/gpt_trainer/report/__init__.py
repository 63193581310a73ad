"""What a run says: on the terminal, in ``metrics.jsonl``, to trackers, in a plot."""
