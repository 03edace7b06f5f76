"""For people: the command line, the PNG it writes, and the figure of a solution.

It imports all of the kernel; nothing there imports it, but `Solution.plot` when it is called.
"""
