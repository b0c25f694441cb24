"""Base of the other packages: command line and errors, hardware, storage, units of work on Ray, reading images."""
