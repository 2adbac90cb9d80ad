"""Ray: training runs, sweeps and clusters."""
