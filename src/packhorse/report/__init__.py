"""What a person sees of a run: notes, the first predictions, a progress line, a summary."""
