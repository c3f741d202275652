"""A search for settings: what may be set, a study that many processes share, those that train, and an honest end."""
