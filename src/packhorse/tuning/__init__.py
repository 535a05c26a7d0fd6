"""Which way is the right one: measured on rows of the job, never assumed."""
