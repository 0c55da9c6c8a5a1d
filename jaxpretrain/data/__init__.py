"""Text to rows: sources of documents, the tokenizer, the token store, and what training reads."""
