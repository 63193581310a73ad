"""One run of one task: from the command line into the loop and to the end."""
