"""Tuning: search the settings of one consolidating arm, never on test data.

``classroom`` makes students without a message, ``exams`` marks them, ``space`` says what may be
searched, ``search`` searches, ``outcome`` says what came of it.
"""
