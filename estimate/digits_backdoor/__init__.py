"""A digits CNN with a backdoor: 240 filters, every held-out digit without and with the trigger."""
