"""Tuning: search settings on validation data, never on test data.

Of a start (``command``): ``student`` distils students without messages, ``objective`` scores them,
``space`` defines what is searched, ``search`` and ``grid`` search, ``outcome`` summarises.

Of whole arms (``arms_command``): ``exchanges`` judges runs, ``arm_space`` defines what is searched,
``arm_search`` searches, ``importance`` measures which settings matter, ``arms_outcome``
summarises. What runs an arm is passed in, as it needs Flower.

``store`` is the file of either search.
"""
