"""Files that must survive a crash, and files that nobody has vouched for: written, locked and read."""
