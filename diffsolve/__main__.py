"""`python -m diffsolve` is `diffsolve`."""

from .app.cli import main

main()
