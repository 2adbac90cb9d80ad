"""Trainable recipes: one method or architecture a file. The folder is the registry: see `segsweep.recipes`."""

from segsweep.recipes import search_path

__path__ = search_path("trainables", packaged=__path__)
