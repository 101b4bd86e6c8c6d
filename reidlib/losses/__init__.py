"""Losses as tensor functions: features and labels in, a scalar out."""
