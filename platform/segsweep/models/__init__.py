"""MLflow: tracking, the model registry, its flavour, and ensembles of registered models."""
