"""Of the machine: what is installed, and how much memory there is."""
