"""Documentation site: the pages that are generated from code, and how MkDocs joins them with the rest of the repository."""
