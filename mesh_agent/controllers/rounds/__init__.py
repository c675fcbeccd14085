"""Rounds of the areas: what each looks at, and when it looks again."""
