"""Search-space recipes: one sweep a file. The folder is the registry: see `segsweep.recipes`."""

from segsweep.recipes import search_path

__path__ = search_path("search_spaces", packaged=__path__)
