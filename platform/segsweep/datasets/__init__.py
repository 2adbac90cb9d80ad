"""Dataset recipes: one dataset a file. The folder is the registry: see `segsweep.recipes`."""

from segsweep.recipes import search_path

__path__ = search_path("datasets", packaged=__path__)
