"""Where the batch of an update comes from."""
