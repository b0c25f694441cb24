"""Reporting of commands while they work: lines, numbers and bars, for a terminal, a log, a program or a notebook."""
