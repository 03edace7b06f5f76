"""For people: the command line, the PNG it writes, solutions on disk, and their figure.

It imports all of the kernel; nothing there imports it, but `Solution.plot` and `.save` when they are called.
"""
