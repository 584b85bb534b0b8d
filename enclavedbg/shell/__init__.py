"""The interactive shell: commands that look into a running enclave, with its events above the prompt."""
