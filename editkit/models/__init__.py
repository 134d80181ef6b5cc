"""All that is known of language models."""
