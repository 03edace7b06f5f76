"""How fast errors fall with the steps, measured and proved."""
