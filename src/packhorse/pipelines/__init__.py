"""packhorse.pipeline: what transformers.pipeline takes and gives, computed by an Engine. One task a file, found by its
name: which call parameters it has, how they become settings and rows, how a table becomes results."""
