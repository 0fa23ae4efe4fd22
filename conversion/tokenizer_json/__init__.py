"""Dictionary and SentencePiece model as tokenizer.json."""
