"""Charts, receipts, tables, handwriting, sketches and boxes: drawn with their truth, asked about, and scored."""
