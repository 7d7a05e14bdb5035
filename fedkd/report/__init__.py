"""Reports: tables for the terminal, one HTML page, figures and tables for papers.

``terminal`` prints. ``page`` writes ``report.html`` from ``verdict`` (the conclusion), ``tables``
and the plots of ``costs``, ``silos`` and ``learning`` (plain Plotly dictionaries). ``paper`` writes
PNG, SVG and CSV. All of them read the summary of a study (``fedkd.results.folder``).
"""

from fedkd.report.terminal import print_recommendation, print_summary, render

__all__ = ["print_recommendation", "print_summary", "render"]
