"""Facts and text: readers and DataModules."""
