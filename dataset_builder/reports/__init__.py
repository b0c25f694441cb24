"""Reports for people: the report page, the density table, the card."""
