"""What every other package stands on: errors, whole files, memory, several processes."""
