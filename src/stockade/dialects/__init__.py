"""One protocol a file (a folder past 500 lines): wire types, pure translators, short handlers, one `dialect` record."""
