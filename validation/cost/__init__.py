"""What an error costs in network calls, and where it is made."""
