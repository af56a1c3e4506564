"""Faults done to `tumorscan score` at seeded moments, and what must be left: the bytes of an undisturbed run.

`python -m tests.faults --cases 500 --seed 1` runs many cases and prints what became of them.

    kinds/     one fault a function: it runs the command as a user does, hurts it, and mends what it broke
    scene.py   a case's own folder, and the command started in it
    moments.py when a fault strikes
    shim.c     system calls that fail, wait or kill at the nth call (preloaded into the command)
    cases.py   one case: a fault, the same command again, the comparison
"""
