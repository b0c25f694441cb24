"""Images and what comes with them: found, indexed, read, decoded."""
