"""N-gram statistics, vocabulary layouts, and the tokenizer built from them."""
