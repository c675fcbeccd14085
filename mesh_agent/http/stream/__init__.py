"""Streams of frames on upgraded connections."""
