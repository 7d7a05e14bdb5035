"""Tuning: search the settings of one consolidating arm, never on test data.

``simulated_teachers`` (in ``fedkd.federation``) makes students without messages, ``objective``
scores them, ``space`` defines what is searched, ``search`` searches, ``store`` stores the trials,
``outcome`` summarises them, and ``command`` runs all of it in one call.
"""
