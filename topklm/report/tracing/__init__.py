"""Histories as figures, tables and sentences: one dimension, identity match, persistence. Plain numbers in."""
