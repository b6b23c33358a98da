"""What several methods need, once each."""
