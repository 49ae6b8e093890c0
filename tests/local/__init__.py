"""A package, so that the server its tests share ends with the last of them and not with the whole run."""
