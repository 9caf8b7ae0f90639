"""Tables, figures and model cards, made from ledgers and records."""
