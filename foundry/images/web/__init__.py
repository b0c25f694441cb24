"""Images on the web: fetched many at once, with limits for each host, and not where their owners object."""
