"""Tuning: search the settings of one consolidating arm, never on test data.

``classroom`` makes students without a message, ``exams`` marks them, ``space`` says what may be
searched, ``search`` searches, ``store`` keeps the trials, ``outcome`` says what came of them, and
``command`` is all of it in one call.
"""
