"""Priors as integer tables: the code that a point estimate is charged by, and that messages and files are made of."""
