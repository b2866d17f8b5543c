"""Foreign weight formats, both directions: one name table, one reader per file type, one loader for any source."""
