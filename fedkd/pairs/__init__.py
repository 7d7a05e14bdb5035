"""Pairs: one silo's model is distilled into another's, for all ordered pairs and all methods.

The main experiment of 2402.14922, without messages. ``measure`` distils and evaluates one pair,
``command`` measures all of them, ``log`` stores the rows, ``outcome`` summarises them.
"""
