"""Rows of different lengths in one forward without any padding: one sequence of T tokens, whose boundaries only
attention knows. Used by backends/torch, and by `unpad` for people who keep their own loop."""
