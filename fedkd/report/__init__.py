"""What people look at: tables for the terminal, one HTML page, figures and tables for papers.

``terminal`` prints; ``page`` writes ``report.html`` out of ``verdict`` (what the study says),
``tables`` and the plots of ``costs``, ``silos`` and ``learning`` (plain Plotly dictionaries);
``paper`` writes PNG, SVG and CSV. All of them read one thing: the summary of ``results``.
"""

from fedkd.report.terminal import print_recommendation, print_summary, render

__all__ = ["print_recommendation", "print_summary", "render"]
