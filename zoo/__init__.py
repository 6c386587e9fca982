"""The bug zoo: for each code of the doctor one small program in which today's libraries let the fault pass.

`python -m zoo` runs them all, shows what the library said and what doctor says, and fails where doctor misses one.
"""
