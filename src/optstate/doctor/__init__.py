"""Why is my momentum missing? Codes, rules and findings; nothing here imports torch."""
