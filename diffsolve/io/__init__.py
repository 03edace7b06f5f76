"""What is written to disk and read back: files that are whole or not there, solutions, what is installed."""
