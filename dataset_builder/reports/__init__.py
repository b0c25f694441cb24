"""What is shown to people: the report page, the density table, the card."""
