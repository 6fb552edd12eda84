"""The config tree; a package so that an installed wheel finds it."""
