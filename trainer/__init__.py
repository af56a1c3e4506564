"""Builds, trains, evaluates and exports the two models."""
