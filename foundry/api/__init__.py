"""Python API of the packages: names that load when they are used, functions that take the options of a command."""
