"""A server that reads digits: its app, what it accepts, how it answers many at once."""
