"""Verbs on real models."""
