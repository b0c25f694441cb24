"""Training techniques compared on the user's features: arms trained at equal compute with paired seeds, tables, a page."""
