"""Errors that a user, a file or a machine causes."""


class UserError(ValueError):
    """Error that the user, a file or a machine caused. The message is one line that ends in what to do."""
