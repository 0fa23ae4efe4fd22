"""Where fairseq's files come from: folders, archives and releases, as runs of bytes."""
