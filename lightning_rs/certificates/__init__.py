"""One theorem a file: evidence -> bounds -> radius."""
