"""Pairs: one silo's model teaches another's, for all ordered pairs of silos and all methods.

The main experiment of 2402.14922, without any message. ``measure`` distils one pair and looks at
what came of it, ``command`` measures all of them, ``log`` keeps the rows over an interruption,
``outcome`` says what makes a good teacher.
"""
