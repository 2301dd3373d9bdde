"""Families of methods: the parameters and hooks that several methods share, one family a file."""
