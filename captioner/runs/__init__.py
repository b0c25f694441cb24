"""A captioning run from plan to report: its start, the work on a unit, its status, its price."""
