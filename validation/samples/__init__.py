"""How good the samples are, and how likely the data."""
