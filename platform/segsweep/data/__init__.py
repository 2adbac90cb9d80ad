"""Scans, label maps, stores and plans: everything before a network sees a voxel."""
