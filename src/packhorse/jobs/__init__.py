"""A job from its beginning to its report, and what may be done with a finished one."""
