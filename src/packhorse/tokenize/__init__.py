"""Stage 2, tokenize: text to flat token ids, and rows with equal tokens found."""
