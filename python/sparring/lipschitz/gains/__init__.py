"""What one operation of a network does to distances: its Lipschitz constant in the Euclidean norm.

`RULES` of each module here has a function for every operation that it knows, by the name that torch gives it. It is
called with a `Call` and then as the operation itself would be, without its first argument, and returns a `Gain` or
raises `Refused`.
"""
