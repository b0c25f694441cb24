"""What the other packages stand on: command line and errors, hardware, storage, units of work on Ray, reading images."""
