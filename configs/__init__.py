"""Configs: `default.get_config` composes one value of each axis; a file an axis."""
