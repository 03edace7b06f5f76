"""What becomes of an error that is already there."""
