"""Patches, augmentation, losses, stages and the training loop: torch and numpy only, no Ray, no MLflow."""
