"""BibTeX of fedkd and of the reference paper (Alballa et al.), as in ``CITATION.cff``."""

from __future__ import annotations

from fedkd.version import VERSION

BIBTEX = f"""\
@software{{fedkd,
  author = {{{{The fedkd authors}}}},
  title = {{fedkd}},
  version = {{{VERSION}}},
  license = {{Apache-2.0}}
}}
@article{{alballa2024practical,
  author = {{Alballa, Norah and Abdelmoniem, Ahmed M. and Canini, Marco}},
  title = {{Practical Insights into Knowledge Distillation for Pre-Trained Models}},
  journal = {{arXiv preprint arXiv:2402.14922}},
  year = {{2024}},
  url = {{https://arxiv.org/abs/2402.14922}}
}}
"""
