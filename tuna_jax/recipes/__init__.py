"""Recipes: whole experiments, put together from data, models, training and generation. Only
commands import them."""
