"""For people: the command line, the PNG it writes, a bar, solutions on disk, and their figure.

It imports all of the kernel; of it nothing is imported there but by `Solution.plot`, `Solution.save` and
`solve(progress=True)` when they are called.
"""
