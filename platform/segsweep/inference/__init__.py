"""From a model and a scan to label maps on the scan's own grid."""
