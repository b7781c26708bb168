"""What running programs are doing, as a document and as text."""
