"""Text: the embedded story corpus, corpora by name, token blocks with labels, and the Lightning data module."""
