"""Text: tokenizers, sequences of tokens, and the data sets made of them."""
