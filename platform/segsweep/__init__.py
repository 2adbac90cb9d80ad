"""segsweep: sweep, compare, register and ensemble 3D CT segmentation methods on Ray."""
