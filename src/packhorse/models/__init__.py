"""Which model: its folder found, checked before anything of it is loaded, and described."""
