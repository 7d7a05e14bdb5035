"""Study files, and the research behind the project's claims: paper, robustness, bench."""
