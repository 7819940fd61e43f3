"""Commands that submit and watch jobs."""
