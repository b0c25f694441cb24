"""Commit records of units: what they say, and the index that saves reading them one by one."""
