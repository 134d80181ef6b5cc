"""The run: its folder, and how one that was interrupted goes on."""
